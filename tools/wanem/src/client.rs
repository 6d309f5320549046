//! A client of the control socket.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use crate::{
    command::Command,
    counters::Report,
    error::{Error, Result},
};

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a running emulator.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if nobody listens there.
    pub fn connect(path: &Path) -> Result<Self> {
        let failed = || Error::io(format!("control socket {}", path.display()));
        let stream = UnixStream::connect(path).map_err(failed())?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed())?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(failed())?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends one command and returns the answer's line.
    ///
    /// # Errors
    /// [`Error::Refused`] with what the emulator said; [`Error::Io`].
    pub fn send(&mut self, command: Command) -> Result<String> {
        let failed = || Error::io("control socket");
        self.stream.get_mut().write_all(format!("{command}\n").as_bytes()).map_err(failed())?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer).map_err(failed())? == 0 {
            return Err(Error::Answer("the emulator closed the connection".into()));
        }
        let answer = answer.trim_end();
        match answer.strip_prefix("error: ") {
            Some(message) => Err(Error::Refused(message.into())),
            None => Ok(answer.into()),
        }
    }

    /// The counters.
    ///
    /// # Errors
    /// As [`Self::send`]; [`Error::Answer`] if the emulator is of another version.
    pub fn stats(&mut self) -> Result<Report> {
        let answer = self.send(Command::Stats)?;
        serde_json::from_str(&answer).map_err(|error| Error::Answer(error.to_string()))
    }
}
