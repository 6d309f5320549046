//! systemd's side of the daemon, by its protocol: what it is told, and the sockets that it hands over. A whole systemd boots in
//! `tests/package`.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;
use tern_tests::{eventually, is_installed, program};

/// Longer than any message should take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ended with the test.
struct Daemon(Child);

impl Daemon {
    fn start(mut command: Command, directory: &Path) -> Self {
        let blockd = command.args(["--site", "osaka", "--listen", "127.0.0.1:0"]).arg("--state-dir").arg(directory.join("state"));
        Self(blockd.arg("--admin").arg(directory.join("admin")).spawn().expect("blockd starts"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn next(messages: &UnixDatagram) -> String {
    let mut message = [0; 256];
    let len = messages.recv(&mut message).expect("a message in time");
    String::from_utf8_lossy(&message[..len]).trim_end().to_owned()
}

#[test]
fn readiness_is_told_once_the_daemon_serves_then_signs_of_life_then_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let messages = UnixDatagram::bind(&path).unwrap();
    messages.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut blockd = Command::new(program("blockd"));
    blockd.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let mut daemon = Daemon::start(blockd, directory.path());
    assert_eq!(next(&messages), "READY=1");
    assert!(directory.path().join("admin").exists(), "it serves");
    for _ in 0..3 {
        assert_eq!(next(&messages), "WATCHDOG=1");
    }
    assert!(Command::new("kill").arg(daemon.0.id().to_string()).status().unwrap().success());
    while next(&messages) != "STOPPING=1" {}
    assert!(daemon.0.wait().unwrap().success());
}

#[test]
fn sockets_that_were_bound_before_are_served_and_outlive_the_daemon() {
    if !is_installed("systemd-socket-activate") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("handed-over");
    let activate = |name: &str, flags: &[&str]| {
        let mut command = Command::new("systemd-socket-activate");
        command.args(flags).arg("--listen").arg(&socket).arg(format!("--fdname={name}")).arg(program("blockd"));
        Daemon::start(command, directory.path())
    };
    let daemon = activate("admin", &[]);
    eventually("the socket is there", || socket.exists());
    let status = Command::new(program("tern")).arg("--admin").arg(&socket).arg("status").output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    assert!(!directory.path().join("admin").exists(), "the one that was handed over takes its place");
    drop(daemon);
    assert!(socket.exists(), "it is not the daemon's to remove");

    std::fs::remove_file(&socket).unwrap();
    let mut wrong = activate("adnim", &[]);
    eventually("the socket is there", || socket.exists());
    let _ = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    assert_eq!(wrong.0.wait().unwrap().code(), Some(2), "a socket that is for nothing");

    std::fs::remove_file(&socket).unwrap();
    let mut wrong = activate("admin", &["--datagram"]);
    eventually("the socket is there", || socket.exists());
    UnixDatagram::unbound().unwrap().send_to(b"wake up", &socket).unwrap();
    assert_eq!(wrong.0.wait().unwrap().code(), Some(2), "a socket that nobody can connect to");
}

#[test]
fn as_many_files_may_be_open_as_the_host_allows() {
    let directory = tempfile::tempdir().unwrap();
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=256:4096").arg(program("blockd"));
    let daemon = Daemon::start(limited, directory.path());
    let limits = format!("/proc/{}/limits", daemon.0.id());
    eventually("the daemon serves", || directory.path().join("admin").exists());
    let limits = std::fs::read_to_string(limits).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    assert_eq!(files.split_whitespace().next(), Some("4096"), "{limits}");
}
