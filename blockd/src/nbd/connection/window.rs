//! How much a client may have under way: a number of requests, their data, and its share of what all clients together may have.

use rustix::event::{PollFd, PollFlags, Timespec};
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Requests of a connection that are carried out at once.
const MAX_REQUESTS: u32 = 64;
/// Data of a connection's requests; two of the largest.
const MAX_BYTES: u64 = 64 << 20;
/// How often to look whether the client is still there while the window is full: nothing is received meanwhile that would tell.
const PATIENCE: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub(super) struct Window {
    requests: Cell<u32>,
    bytes: Cell<u64>,
    changed: Notify,
    socket: Arc<OwnedFd>,
    /// Permits are KiB.
    buffers: Arc<Semaphore>,
}

/// A request's place in the window, until it is dropped.
pub(super) struct Slot {
    window: Rc<Window>,
    bytes: u64,
    _buffer: Option<OwnedSemaphorePermit>,
}

impl Window {
    pub(super) fn new(socket: Arc<OwnedFd>, buffers: Arc<Semaphore>) -> Self {
        Self { requests: Cell::new(0), bytes: Cell::new(0), changed: Notify::new(), socket, buffers }
    }

    /// Waits for a place for a request with that much data, at most [`crate::request::MAX_TRANSFER_BYTES`]; `None` if the client has left
    /// meanwhile.
    pub(super) async fn enter(self: &Rc<Self>, bytes: u64) -> Option<Slot> {
        if !self.has_room(bytes) {
            tokio::select! {
                biased;
                () = self.room(bytes) => {}
                () = self.departure() => return None,
            }
        }
        let mut slot = Slot { window: self.clone(), bytes, _buffer: None };
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        if bytes > 0 {
            let kib = u32::try_from(bytes.div_ceil(1024)).expect("requests have a limit");
            tokio::select! {
                biased;
                permit = self.buffers.clone().acquire_many_owned(kib) => slot._buffer = permit.ok(),
                () = self.departure() => return None,
            }
        }
        Some(slot)
    }

    /// Returns when nothing is under way.
    pub(super) async fn drained(&self) {
        while self.requests.get() > 0 {
            self.changed.notified().await;
        }
    }

    async fn room(&self, bytes: u64) {
        while !self.has_room(bytes) {
            self.changed.notified().await;
        }
    }

    /// Returns when the client has left, as far as the socket can tell without receiving.
    async fn departure(&self) {
        let mut socket = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        loop {
            tokio::time::sleep(PATIENCE).await;
            if rustix::event::poll(&mut socket, Some(&Timespec::default())) != Ok(0) {
                return;
            }
        }
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.requests.get() < MAX_REQUESTS && self.bytes.get() + bytes <= MAX_BYTES
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.window.requests.set(self.window.requests.get() - 1);
        self.window.bytes.set(self.window.bytes.get() - self.bytes);
        // Kept for the next who waits, if nobody does; only the reader ever does.
        self.window.changed.notify_one();
    }
}
