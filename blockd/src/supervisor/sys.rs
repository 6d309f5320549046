//! Descriptors by number.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Descriptors that the service manager left open for this process, with their names.
pub(super) fn inherited() -> io::Result<Vec<(OwnedFd, String)>> {
    let listed = sd_notify::listen_fds_with_names()?;
    // SAFETY: LISTEN_PID names this process, so that the numbers are of descriptors that were passed to it, which the call above has
    // checked to be open; nothing else in the process knows them, and they are taken once.
    Ok(listed.map(|(number, name)| (unsafe { OwnedFd::from_raw_fd(number) }, name)).collect())
}
