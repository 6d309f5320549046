//! Running other programs: where ours are, for how long at most, and not for longer than this process lives.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// One of the project's programs.
pub fn ours(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("TERN_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => std::env::current_exe()?.parent().context("this program has no directory")?.to_owned(),
    };
    let path = directory.join(name);
    ensure!(path.is_file(), "{} is not there: run `make bench`, or set $TERN_BIN_DIR to where the release programs are", path.display());
    Ok(path)
}

/// A program that is ended at its limit.
pub fn bounded(limit: Duration, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--kill-after=5", &limit.as_secs().max(1).to_string()]).arg(program);
    command
}

/// Arguments before a program's own that have the kernel kill it when this process goes. The process started becomes the program.
pub const DIES_WITH_US: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];

/// Runs to the end; what it wrote, if it succeeded.
pub fn output(command: &mut Command) -> Result<String> {
    let run = command.output();
    let name = || command_line(command);
    let run = run.with_context(|| format!("{} cannot be started", name()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure!(run.status.success(), "{}: {}: {} {}", name(), run.status, text(&run.stdout), text(&run.stderr));
    String::from_utf8(run.stdout).with_context(|| format!("{} wrote no text", name()))
}

/// As a shell would show it.
pub fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
