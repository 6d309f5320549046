//! Each layer on a thread of its own: it ends with the thread.

use super::*;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

/// Runs on a thread that is restricted to this directory; `None` if the kernel has no Landlock.
fn confined<T: Send + 'static>(directory: &Path, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let roots = Roots::find(Some(&[directory.to_owned()]), &[]).unwrap();
    let run = move || {
        let ruleset = files::ruleset(&roots).unwrap();
        let enforced = files::restrict(ruleset).unwrap() == files::Enforced::Yes;
        enforced.then(work)
    };
    std::thread::spawn(run).join().unwrap()
}

fn refused<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn the_kernel_refuses_what_lies_outside_even_through_a_link() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (within, beyond) = (inside.path().to_owned(), outside.path().to_owned());
    fs::write(beyond.join("precious"), "x").unwrap();
    std::os::unix::fs::symlink(beyond.join("precious"), within.join("link")).unwrap();
    let seen = confined(inside.path(), move || {
        fs::write(within.join("new"), "y").unwrap();
        fs::read("/etc/hosts").unwrap();
        [
            refused(fs::write(beyond.join("new"), "y")),
            refused(fs::read(beyond.join("precious"))),
            refused(fs::write(within.join("link"), "y")),
            refused(fs::remove_file(beyond.join("precious"))),
            refused(fs::write("/etc/tern-was-here", "y")),
            refused(std::os::unix::net::UnixListener::bind(beyond.join("socket"))),
        ]
    });
    assert!(seen.is_none_or(|seen| seen == [true; 6]), "{seen:?}");
}

#[test]
fn nothing_is_executed_but_the_importer() {
    let directory = tempfile::tempdir().unwrap();
    let seen = confined(directory.path(), || {
        let version = Command::new("qemu-img").arg("--version").output();
        (refused(Command::new("/bin/sh").arg("-c").arg("true").status()), version.map(|output| output.status.success()))
    });
    let Some((shell_refused, importer)) = seen else { return };
    assert!(shell_refused);
    assert!(importer.is_ok_and(|works| works) || Command::new("qemu-img").arg("--version").output().is_err());
}

#[test]
fn threads_that_would_escape_it_keep_the_daemon_from_starting() {
    let error = std::thread::spawn(alone).join().unwrap().unwrap_err().to_string();
    assert!(error.starts_with("sandbox: threads: there are ") && error.contains("no_sandbox"), "{error}");
}

/// vhangup(2) is nobody's business here, and harmless: no terminal is attached to the tests.
#[test]
fn a_call_that_is_not_listed_is_answered_as_unknown_and_the_thread_goes_on() {
    let call = || {
        rustix::thread::set_no_new_privs(true).unwrap();
        syscalls::restrict().unwrap();
        let refused = sys::call(libc::SYS_vhangup);
        (refused.map_err(|error| error.raw_os_error()), fs::read("/etc/hosts").is_ok(), std::thread::spawn(|| 7).join().unwrap())
    };
    assert_eq!(std::thread::spawn(call).join().unwrap(), (Err(Some(libc::ENOSYS)), true, 7));
}

/// As `kill -SYS` does. The call that the signal interrupts is the one that sends it, and its result would be lost.
#[test]
fn the_signal_of_refused_calls_changes_nothing_when_a_process_sends_it() {
    let send = || {
        rustix::thread::set_no_new_privs(true).unwrap();
        syscalls::restrict().unwrap();
        let (process, thread) = (std::process::id(), rustix::thread::gettid());
        sys::call_with(libc::SYS_tgkill, [process.into(), thread.as_raw_nonzero().get().into(), libc::SIGSYS.into()])
    };
    assert_eq!(std::thread::spawn(send).join().unwrap().unwrap(), 0);
}

/// In a process of its own: this test, started again.
#[test]
fn a_call_that_only_an_attacker_makes_ends_the_process() {
    const AGAIN: &str = "TERN_TEST_DIES_HERE";
    if std::env::var_os(AGAIN).is_some() {
        rustix::thread::set_no_new_privs(true).unwrap();
        syscalls::restrict().unwrap();
        let _ = sys::call(libc::SYS_keyctl);
        unreachable!("the kernel ends it");
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "sandbox::tests::a_call_that_only_an_attacker_makes_ends_the_process"]).env(AGAIN, "1");
    assert_eq!(again.output().unwrap().status.signal(), Some(libc::SIGSYS));
}
