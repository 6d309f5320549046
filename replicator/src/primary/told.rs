//! What the witness knows of the promise: between the thread that keeps it and the task that tells.
//!
//! The thread calls [`Told::weaken`] before the first weaker acknowledgement, and goes on only once that says so.

use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Debug)]
struct Inner {
    /// Whether somebody is promoted by the witness's word.
    needed: bool,
    /// The promise does not hold, or will not soon.
    broken: bool,
    /// The witness has recorded that.
    confirmed: bool,
}

/// See the module's documentation. It begins as one that does not hold.
#[derive(Debug)]
pub struct Told {
    inner: Mutex<Inner>,
    changed: Notify,
}

impl Default for Told {
    fn default() -> Self {
        Self { inner: Mutex::new(Inner { needed: false, broken: true, confirmed: false }), changed: Notify::new() }
    }
}

impl Told {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody is promoted by the witness's word.
    pub fn need(&self, needed: bool) {
        self.lock().needed = needed;
        self.changed.notify_one();
    }

    /// The thread: a weaker acknowledgement is to be given. Whether it may be.
    pub fn weaken(&self) -> bool {
        let mut inner = self.lock();
        if !std::mem::replace(&mut inner.broken, true) {
            inner.confirmed = false;
            self.changed.notify_one();
        }
        inner.confirmed || !inner.needed
    }

    /// The thread: all that the promise covers is at the standby.
    pub fn hold(&self) {
        let mut inner = self.lock();
        if std::mem::replace(&mut inner.broken, false) {
            inner.confirmed = false;
            self.changed.notify_one();
        }
    }

    /// The task: what to say.
    pub fn is_held(&self) -> bool {
        !self.lock().broken
    }

    /// The task: the witness has recorded that the promise does not hold, and nothing else was said to it since.
    pub fn confirm(&self) {
        let mut inner = self.lock();
        inner.confirmed = inner.broken;
    }

    /// The task: returns when there may be something else to say.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weaker_acknowledgements_wait_for_the_witness_each_time() {
        let told = Told::default();
        assert!(!told.is_held() && told.weaken(), "nobody has to be told");
        told.need(true);
        told.hold();
        assert!(told.is_held() && !told.weaken() && !told.is_held());
        told.confirm();
        assert!(told.weaken());
        told.hold();
        told.confirm();
        assert!(!told.weaken(), "it was told so before the promise held again");
    }
}
