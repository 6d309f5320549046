//! The process that runs the operator's program, one event after the other.
//!
//! It is started before the daemon locks itself in, by the daemon's own program, and ends with it. From the daemon it takes lines of JSON and
//! nothing else; the program is named on its command line. No shell reads any of it.

use crate::config::Config;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The daemon's first argument, if it is to be the runner.
pub const ARGUMENT: &str = "run-on-event";
/// Longest line: what fits a pipe, so that a program that does not read holds up nobody.
pub const MAX_LINE_BYTES: u64 = 48 << 10;
/// A program that takes longer is killed, with all that it started.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a program sees of the event in its environment: the variable, and the field.
const VARIABLES: [(&str, &str); 5] =
    [("TERN_EVENT", "event"), ("TERN_VOLUME", "volume"), ("TERN_SITE", "site"), ("TERN_TIME", "time"), ("TERN_MESSAGE", "message")];

/// Starts the runner for `config.on_event`, if there is one. Where to write the lines.
pub fn start(config: &Config) -> io::Result<Option<ChildStdin>> {
    let Some(program) = &config.on_event else { return Ok(None) };
    let mut command = Command::new("/proc/self/exe");
    command.arg(ARGUMENT).arg(program).stdin(Stdio::piped()).stdout(Stdio::null());
    // What the service manager said was for the daemon.
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"].iter().for_each(|name| {
        command.env_remove(name);
    });
    if let Some(user) = config.user.as_ref().filter(|_| rustix::process::geteuid().is_root()) {
        command.uid(user.uid).gid(user.gid);
    }
    Ok(command.spawn()?.stdin.take())
}

/// Runs `program` for each line that comes, until there are no more.
pub fn run(program: &OsStr) -> ExitCode {
    let mut lines = BufReader::new(io::stdin().lock());
    loop {
        let mut line = Vec::new();
        match lines.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => return ExitCode::SUCCESS,
            Ok(_) if line.ends_with(b"\n") => {}
            // The daemon ended within a line, or is not itself any more.
            Ok(_) | Err(_) => return ExitCode::FAILURE,
        }
        if let Err(error) = tell(program, &line) {
            eprintln!("blockd: on_event {}: {error}", program.to_string_lossy());
        }
    }
}

fn tell(program: &OsStr, line: &[u8]) -> io::Result<()> {
    let event: serde_json::Value = serde_json::from_slice(line)?;
    let mut command = Command::new(program);
    for (variable, field) in VARIABLES {
        let text = event[field].as_str().unwrap_or_default();
        command.env(variable, text.chars().filter(|c| !c.is_control()).collect::<String>());
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).spawn()?;
    wait(&mut child, line)
}

/// Waits until it has ended, and gives it `line` meanwhile, which it need not read: a pipe may be smaller than that.
fn wait(child: &mut Child, line: &[u8]) -> io::Result<()> {
    let (mut input, mut unread) = (child.stdin.take(), line);
    input.iter().try_for_each(|pipe| rustix::io::ioctl_fionbio(pipe, true))?;
    let pid = Pid::from_child(child);
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
        fds.extend(input.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        let polled = poll(&mut fds, Some(&timeout));
        let has_ended = !fds[0].revents().is_empty();
        match polled {
            Ok(0) => {
                kill_process_group(pid, Signal::KILL)?;
                child.wait()?;
                return Err(io::Error::other(format!("it was killed after {PATIENCE:?}")));
            }
            Err(rustix::io::Errno::INTR) => {}
            polled if polled.is_err() || has_ended => {
                polled?;
                let status = child.wait()?;
                return if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) };
            }
            _ => match input.as_ref().map_or(Ok(0), |mut pipe| pipe.write(unread)) {
                Ok(written) if written < unread.len() => unread = &unread[written..],
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // It has all of it, or wants no more.
                _ => input = None,
            },
        }
    }
}
