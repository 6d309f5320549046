//! Where other threads leave what a worker waits for.

use crate::volume::Pass;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

/// What became of something that a worker handed to another thread, by the operation's key.
#[derive(Debug)]
pub(super) enum Answer {
    /// A write that had to wait may go on.
    Admitted(usize, io::Result<Pass>),
    /// Zeroes are in place.
    Zeroed(usize, io::Result<()>),
}

/// Answers, and an eventfd that is readable when there may be some, or when the volume's gate has changed.
pub(super) struct Mailbox {
    /// As many as there are operations, at most.
    answers: Mutex<Vec<Answer>>,
    bell: OwnedFd,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { answers: Mutex::default(), bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)? })
    }

    /// Leaves an answer and rings.
    pub(super) fn send(&self, answer: Answer) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        self.ring();
    }

    /// Has the worker look around.
    pub(super) fn ring(&self) {
        // It fails only if it has rung 2^64 times and nobody listened: then it is readable.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Silences the bell and takes what is there. Whatever comes after that rings again.
    pub(super) fn take(&self) -> Vec<Answer> {
        // Nothing to read is no error: another event has brought the worker here.
        let _ = rustix::io::read(&self.bell, &mut [0_u8; 8]);
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl AsRawFd for Mailbox {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}
