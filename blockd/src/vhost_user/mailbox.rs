//! Where other threads leave what a worker is to know.

use super::queue::{Change, Setup};
use crate::debt::{self, Inbox};
use crate::volume::Pass;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::GuestMemoryMmap;

/// What another thread has to say.
pub(super) enum Message {
    /// The write of this key, which had to wait, may go on.
    Admitted(usize, io::Result<Pass>),
    /// The request of this key, which had to wait for the standby, may be answered.
    Released(usize, io::Result<()>),
    /// The zeroes of this key are in place.
    Zeroed(usize, io::Result<()>),
    /// The front end wants something.
    Control(Control),
}

/// What a front end wants of a worker. It gets its answer when that is so.
pub(super) enum Control {
    /// A queue, which does not run, is to run.
    Start(Box<Setup>, Sender<io::Result<()>>),
    /// A queue, if it runs, is to be different.
    Change(usize, Change, Sender<()>),
    /// A queue is to complete what it has taken and to run no more. The answer is what it would take next; `None` if it did not run.
    Stop(usize, Sender<Option<u16>>),
    /// The guest's memory is another one.
    Memory(Arc<GuestMemoryMmap>, Sender<()>),
    /// All queues are to stop, and the thread is to end.
    Close,
}

/// The duty to answer one of the messages.
pub(super) type Debt = debt::Debt<Mailbox>;

/// Messages, and an eventfd that is written to when there are some, or when the volume's gate has changed.
pub(super) struct Mailbox {
    /// As many as there are operations and connections, at most.
    messages: Mutex<Vec<Message>>,
    /// There may be something that the worker has not seen. Whoever sets it rings.
    news: AtomicBool,
    bell: OwnedFd,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { messages: Mutex::default(), news: AtomicBool::new(false), bell })
    }

    /// Has the worker look around.
    pub(super) fn ring(&self) {
        if !self.news.swap(true, SeqCst) {
            // It fails only after 2^64 times: nobody reads it, because whoever watches it is woken by each write.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// Whether [`Self::take`] has something to do.
    pub(super) fn has_news(&self) -> bool {
        self.news.load(SeqCst)
    }

    /// Takes what is there. Whatever comes after that rings again.
    pub(super) fn take(&self) -> Vec<Message> {
        if !self.news.swap(false, SeqCst) {
            return Vec::new();
        }
        std::mem::take(&mut *self.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inbox for Mailbox {
    type Message = Message;

    /// Leaves a message and rings.
    fn send(&self, message: Message) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        self.ring();
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
