//! The QEMU guest agent, at its unix socket: file systems that stand still for an instant.
//!
//! One JSON document a line, in each direction. What an earlier client left unread is skipped: a byte that no JSON has, 0xFF, comes before the
//! first answer that is ours.

use blockd_api::{ApiError, ErrorCode};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For an answer: a freeze waits for what the guest has not written yet.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// For the agent to take part at all.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest line of an answer.
const MAX_ANSWER_BYTES: usize = 1 << 20;
const SENTINEL: u8 = 0xFF;

/// An agent that answers.
pub struct GuestAgent {
    socket: PathBuf,
    stream: UnixStream,
}

/// A guest whose file systems stand still. Dropped, they go on.
pub struct Frozen {
    agent: GuestAgent,
    is_thawed: bool,
}

impl GuestAgent {
    /// Connects, and finds out whether somebody answers.
    pub fn connect(socket: &Path) -> Result<Self, ApiError> {
        let failed = |error: io::Error| {
            let error = ApiError::new(ErrorCode::Io, format!("guest agent {}: {error}", socket.display()));
            error.with_hint("give --quiesce the socket of QEMU's chardev that the guest's agent is at")
        };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        let mut agent = Self { socket: socket.to_owned(), stream };
        agent.greet().map_err(failed)?;
        Ok(agent)
    }

    /// Freezes the guest's file systems.
    pub fn freeze(self) -> Result<Frozen, ApiError> {
        // From here on they are thawed, whatever happens: a freeze that failed may have frozen some.
        let mut frozen = Frozen { agent: self, is_thawed: false };
        match frozen.agent.ask("guest-fsfreeze-freeze")? {
            0 => Err(frozen.agent.failed("there is no file system that can be frozen")),
            _ => Ok(frozen),
        }
    }

    fn greet(&mut self) -> io::Result<()> {
        let id = u64::from(std::process::id());
        let mut greeting = vec![SENTINEL];
        greeting.extend(json!({"execute": "guest-sync-delimited", "arguments": {"id": id}}).to_string().into_bytes());
        greeting.push(b'\n');
        self.stream.set_write_timeout(Some(GREETING_TIMEOUT))?;
        self.stream.write_all(&greeting)?;
        let until = Instant::now() + GREETING_TIMEOUT;
        loop {
            self.read_until(SENTINEL, until)?;
            if self.answer(until)?["return"] == id {
                return Ok(());
            }
        }
    }

    /// Has the agent do something that it counts.
    fn ask(&mut self, command: &str) -> Result<u64, ApiError> {
        let question = json!({"execute": command}).to_string() + "\n";
        let asked = self.stream.write_all(question.as_bytes()).and_then(|()| self.answer(Instant::now() + ANSWER_TIMEOUT));
        let answer = asked.map_err(|error| self.failed(&format!("{command}: {error}")))?;
        answer["return"].as_u64().ok_or_else(|| {
            let why = answer["error"]["desc"].as_str().unwrap_or("its answer makes no sense");
            self.failed(&format!("{command}: {why}"))
        })
    }

    fn answer(&mut self, until: Instant) -> io::Result<Value> {
        let line = self.read_until(b'\n', until)?;
        serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn read_until(&mut self, end: u8, until: Instant) -> io::Result<Vec<u8>> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        loop {
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
            self.stream.set_read_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))?;
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte[0] == end => return Ok(line),
                Ok(_) if line.len() < MAX_ANSWER_BYTES => line.push(byte[0]),
                Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error),
            }
        }
    }

    fn failed(&self, why: &str) -> ApiError {
        // What the guest says is shown without what a terminal would obey.
        let why: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        ApiError::new(ErrorCode::Io, format!("guest agent {}: {why}", self.socket.display()))
    }
}

impl Frozen {
    /// Has the guest go on.
    pub fn thaw(mut self) -> Result<(), ApiError> {
        self.is_thawed = true;
        self.agent.ask("guest-fsfreeze-thaw").map(drop)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if !self.is_thawed {
            // Whatever went wrong is told already.
            let _ = self.agent.ask("guest-fsfreeze-thaw");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    /// Takes one client, says these answers, and returns what was asked.
    fn agent(answers: &'static [&'static str], talk: impl FnOnce(&Path)) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("ga");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::scope(|scope| {
            let agent = scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = BufReader::new(stream.try_clone().unwrap()).split(b'\n');
                let mut line = move || asked.next().and_then(Result::ok).map(|line| String::from_utf8_lossy(&line).into_owned());
                let greeting = line().unwrap();
                let id = greeting.split("\"id\":").nth(1).and_then(|rest| rest.split('}').next()).unwrap();
                stream.write_all(b"{\"return\": 7}\nleft by another").unwrap();
                stream.write_all(&[SENTINEL]).unwrap();
                stream.write_all(format!("{{\"return\": {id}}}\n").as_bytes()).unwrap();
                let mut said = Vec::new();
                for answer in answers {
                    let Some(question) = line() else { break };
                    said.push(question);
                    stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
                }
                said
            });
            talk(&socket);
            agent.join().unwrap()
        })
    }

    const FREEZE: &str = r#"{"execute":"guest-fsfreeze-freeze"}"#;
    const THAW: &str = r#"{"execute":"guest-fsfreeze-thaw"}"#;

    #[test]
    fn file_systems_are_frozen_and_go_on_also_when_nobody_says_so() {
        let asked = agent(&[r#"{"return": 2}"#, r#"{"return": 2}"#], |socket| {
            GuestAgent::connect(socket).unwrap().freeze().unwrap().thaw().unwrap();
        });
        assert_eq!(asked, [FREEZE, THAW]);
        let asked = agent(&[r#"{"return": 2}"#, r#"{"return": 2}"#], |socket| {
            drop(GuestAgent::connect(socket).unwrap().freeze().unwrap());
        });
        assert_eq!(asked, [FREEZE, THAW]);
    }

    #[test]
    fn a_freeze_that_failed_is_told_and_taken_back() {
        let refused = r#"{"error": {"class": "GenericError", "desc": "frozen\u001b[2J already"}}"#;
        for (answer, why) in [(refused, "frozen [2J already"), (r#"{"return": 0}"#, "no file system")] {
            let answers: &'static [&'static str] = Box::leak(Box::new([answer, r#"{"return": 0}"#]));
            let asked = agent(answers, |socket| {
                let error = GuestAgent::connect(socket).unwrap().freeze().err().unwrap();
                assert!(error.message.contains(why), "{error}");
            });
            assert_eq!(asked, [FREEZE, THAW]);
        }
    }

    #[test]
    fn a_socket_with_nobody_behind_it_is_an_error_that_names_it() {
        let error = GuestAgent::connect(Path::new("/nonexistent/ga")).err().unwrap();
        assert!(error.message.contains("/nonexistent/ga") && error.hint.is_some(), "{error}");
    }
}
