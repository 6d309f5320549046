//! Answers that a thread waits for, and gets whatever becomes of the one that owes them.

use std::sync::Arc;

/// Where a thread is told things.
pub trait Inbox {
    /// What it is told.
    type Message;
    /// Leaves a message, without waiting for anything.
    fn send(&self, message: Self::Message);
}

/// The duty to answer: whoever drops it has answered that it will not be.
#[must_use = "dropped, it answers that it will not be"]
pub struct Debt<I: Inbox> {
    inbox: Arc<I>,
    failed: Option<I::Message>,
}

impl<I: Inbox> Debt<I> {
    /// `failed` is the answer unless there is another.
    pub fn new(inbox: &Arc<I>, failed: I::Message) -> Self {
        Self { inbox: inbox.clone(), failed: Some(failed) }
    }

    /// Answers.
    pub fn answer(mut self, message: I::Message) {
        self.failed = None;
        self.inbox.send(message);
    }
}

impl<I: Inbox> Drop for Debt<I> {
    fn drop(&mut self) {
        if let Some(failed) = self.failed.take() {
            self.inbox.send(failed);
        }
    }
}
