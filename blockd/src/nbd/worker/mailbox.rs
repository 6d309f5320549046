//! Where other threads leave what a worker waits for.

use super::Client;
use crate::debt::{self, Inbox};
use crate::nbd::edges::Hold;
use crate::nbd::transmission::Statuses;
use crate::volume::Pass;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// What a worker is told. Numbers are those of operations.
pub(super) enum Message {
    /// Serve this client.
    Client(Box<Client>),
    /// A write that had to wait may go on, or never will.
    Admitted(usize, io::Result<Pass>),
    /// One that had to wait for the standby may be answered, or failed.
    Released(usize, io::Result<()>),
    /// Its turn at the edges has come.
    Edges(usize, Hold),
    /// Another thread has carried it out.
    Helped(usize, io::Result<Statuses>),
    /// Say that you live.
    Answer(oneshot::Sender<()>),
    /// End with the last connection.
    Close,
}

/// The duty to answer one of the messages.
pub(super) type Debt = debt::Debt<Mailbox>;

/// Messages, and an eventfd that is readable when there may be some, or when a volume's gate has changed.
pub(super) struct Mailbox {
    /// As many as there are clients and operations, at most; `None` once nobody reads them.
    messages: Mutex<Option<Vec<Message>>>,
    bell: OwnedFd,
    at_disk: AtomicBool,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        // It blocks: a ring waits by itself.
        Ok(Self { messages: Mutex::new(Some(Vec::new())), bell: eventfd(0, EventfdFlags::CLOEXEC)?, at_disk: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Message>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the worker look around.
    pub(super) fn ring(&self) {
        // Neither 2^64 rings nor another end of it are to be expected.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Takes what is there. Whatever comes later rings again.
    pub(super) fn take(&self) -> Vec<Message> {
        self.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The worker waits for a disk, and reads nothing before that is done.
    pub(super) fn while_at_disk<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.at_disk.store(true, Relaxed);
        let result = wait();
        self.at_disk.store(false, Relaxed);
        result
    }

    /// Whether the worker waits for a disk now.
    pub(super) fn is_at_disk(&self) -> bool {
        self.at_disk.load(Relaxed)
    }

    /// Nobody reads it from now on.
    pub(super) fn close(&self) {
        // What a message owes is told to this mailbox again.
        let unread = self.lock().take();
        drop(unread);
    }
}

impl Inbox for Mailbox {
    type Message = Message;

    /// Leaves a message and rings. Where nobody reads it, it is dropped.
    fn send(&self, message: Message) {
        let unread = match &mut *self.lock() {
            Some(messages) => {
                messages.push(message);
                None
            }
            None => Some(message),
        };
        if unread.is_none() {
            self.ring();
        }
    }
}

impl AsRawFd for Mailbox {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}
