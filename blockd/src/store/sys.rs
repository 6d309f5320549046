//! The one system call that no crate of ours wraps: locks that belong to an open file and not to a process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Locks all bytes of the file for this open file description, or fails with `WouldBlock`.
///
/// QEMU marks an image that it has open by locks of the same kind on single bytes (from 100 and from 200 on), so each keeps the other out.
pub fn lock_exclusively(file: BorrowedFd<'_>) -> io::Result<()> {
    let whole = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: the descriptor is open for the duration of the call, and the kernel only reads the structure, which outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
