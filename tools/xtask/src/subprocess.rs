//! A child process that cannot outlast its limit, nor the task that started it.
//!
//! `timeout` (coreutils) bounds it and passes the signal on to its whole process group; `setpriv` (util-linux) ends it when
//! this process dies, so that an interrupted gate leaves no compiler or guest behind.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// From the polite signal to the one that cannot be caught.
const KILL_AFTER_S: u32 = 30;
/// How long output may still come after the process ended (a grandchild may hold the pipe for ever).
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Lines on their way from the reader to us; a full queue slows the child, nothing else.
const LINE_QUEUE: usize = 1024;

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It exited with 0.
    Passed,
    /// It exited with something else, or by a signal.
    Failed {
        /// What the operating system says.
        status: String,
    },
    /// It was ended at its limit.
    TimedOut,
}

/// A command with a time limit; no terminal input.
#[derive(Debug)]
pub struct Subprocess {
    command: Command,
    limit: Duration,
}

impl Subprocess {
    /// A command that may take as long as `limit`.
    pub fn new(program: impl AsRef<OsStr>, limit: Duration) -> Self {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "timeout", "--kill-after"])
            .arg(format!("{KILL_AFTER_S}s"))
            .arg(format!("{}s", limit.as_secs()))
            .arg(program)
            .stdin(Stdio::null());
        Self { command, limit }
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds one variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Adds variables.
    pub fn envs(mut self, variables: impl IntoIterator<Item = (&'static str, OsString)>) -> Self {
        self.command.envs(variables);
        self
    }

    /// Sets the directory it runs in.
    pub fn current_dir(mut self, dir: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it with our own output streams.
    pub fn run(mut self) -> Result<Verdict> {
        let started = Instant::now();
        let child = self.spawn()?;
        self.finish(child, started)
    }

    /// Runs it with both output streams joined; hands on each line as it comes.
    pub fn run_reading(mut self, mut on_line: impl FnMut(&str)) -> Result<Verdict> {
        let started = Instant::now();
        let (reader, writer) = std::io::pipe().context("pipe")?;
        self.command.stdout(writer.try_clone().context("pipe")?).stderr(writer);
        let child = self.spawn()?;
        // The command keeps the pipe's writing ends until it is dropped: without this, reading would never end.
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        let (sender, lines) = mpsc::sync_channel(LINE_QUEUE);
        thread::spawn(move || forward_lines(reader, &sender));
        let waiter = self.limit + Duration::from_secs(u64::from(KILL_AFTER_S)) + DRAIN_LIMIT;
        // The child ends at its limit at the latest; what holds the pipe after that is no longer waited for.
        while let Ok(line) = lines.recv_timeout(waiter.saturating_sub(started.elapsed())) {
            on_line(&line);
        }
        self.finish(child, started)
    }

    fn spawn(&mut self) -> Result<Child> {
        self.command.spawn().context("cannot start setpriv and timeout (packages util-linux and coreutils)")
    }

    fn finish(&self, mut child: Child, started: Instant) -> Result<Verdict> {
        let status = child.wait().context("wait for a child process")?;
        if status.success() {
            Ok(Verdict::Passed)
        } else if started.elapsed() >= self.limit {
            Ok(Verdict::TimedOut)
        } else {
            Ok(Verdict::Failed { status: status.to_string() })
        }
    }
}

fn forward_lines(reader: PipeReader, sender: &mpsc::SyncSender<String>) {
    for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
        if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit_s: u64) -> Subprocess {
        Subprocess::new("sh", Duration::from_secs(limit_s)).args(["-c", script])
    }

    #[test]
    fn success_and_failure_are_told_apart() {
        assert_eq!(shell("exit 0", 60).run().unwrap(), Verdict::Passed);
        assert!(matches!(shell("exit 3", 60).run().unwrap(), Verdict::Failed { status } if status.contains('3')));
    }

    #[test]
    fn a_command_is_ended_at_its_limit() {
        assert_eq!(shell("exec tail -f /dev/null", 1).run().unwrap(), Verdict::TimedOut);
    }

    #[test]
    fn both_streams_are_read_in_order() {
        let mut lines = Vec::new();
        let verdict = shell("echo one; echo two >&2; echo three", 60).run_reading(|line| lines.push(line.to_owned())).unwrap();
        assert_eq!((verdict, lines), (Verdict::Passed, vec!["one".to_owned(), "two".to_owned(), "three".to_owned()]));
    }

    #[test]
    fn a_missing_program_is_a_failure() {
        assert!(matches!(Subprocess::new("no-such-program", Duration::from_secs(60)).run().unwrap(), Verdict::Failed { .. }));
    }
}
