//! Programs of others.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::process::{Command, Output};

/// Longest that one may take.
const LIMIT_SECONDS: &str = "120";

/// Whether a program is there; says so if it is not.
pub fn is_installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$0\" >/dev/null", program]).status().is_ok_and(|status| status.success());
    if !found {
        eprintln!("left out: {program} is not installed");
    }
    found
}

/// Runs a program to its end.
pub fn try_client<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Output {
    Command::new("timeout").arg(LIMIT_SECONDS).arg(program).args(arguments).output().expect("a program that runs")
}

/// Runs a program, which succeeds; returns what it says.
pub fn client<A: AsRef<OsStr> + Debug>(program: &str, arguments: &[A]) -> String {
    let output = try_client(program, arguments);
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{said}\n{errors}", output.status);
    said.into_owned()
}
