//! Where other threads leave what a worker waits for.

use crate::volume::Pass;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
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
    /// Set after the bell was rung: spares those who look in passing a system call.
    rung: AtomicBool,
    bell: OwnedFd,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            answers: Mutex::default(),
            rung: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
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
        self.rung.store(true, SeqCst);
    }

    /// Silences the bell and takes what is there. Whatever comes after that rings again; a bell that is just being rung stays readable.
    pub(super) fn take(&self) -> Vec<Answer> {
        if !self.rung.swap(false, SeqCst) {
            return Vec::new();
        }
        // Nothing to read is no error: it was silenced for two that rang at once.
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
