//! How much a client may have under way: a number of requests, their data, and its share of what all clients together may have.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{Interest, unix::AsyncFd};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_uring::net::UnixStream;

/// Requests of a connection that are carried out at once.
const MAX_REQUESTS: u32 = 64;
/// Data of a connection's requests; two of the largest.
const MAX_BYTES: u64 = 64 << 20;
/// How long a full window may stay full before it is worth a look whether the client is still there: nothing is received meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub(super) struct Window {
    requests: Cell<u32>,
    bytes: Cell<u64>,
    changed: Notify,
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
    pub(super) fn new(buffers: Arc<Semaphore>) -> Self {
        Self { requests: Cell::new(0), bytes: Cell::new(0), changed: Notify::new(), buffers }
    }

    /// Waits for a place for a request with that much data, at most [`crate::request::MAX_TRANSFER_BYTES`]; `None` if the client has left
    /// meanwhile.
    pub(super) async fn enter(self: &Rc<Self>, bytes: u64, stream: &UnixStream) -> Option<Slot> {
        if !self.has_room(bytes) {
            tokio::select! {
                biased;
                () = self.room(bytes) => {}
                () = departure(stream) => return None,
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
                () = departure(stream) => return None,
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

/// Returns when the client has left, as far as the socket can tell without receiving. Looks after a while only.
async fn departure(stream: &UnixStream) {
    tokio::time::sleep(PATIENCE).await;
    if hung_up(Descriptor(stream.as_raw_fd())).await.is_err() {
        // Not to be watched: it will be noticed when something is sent.
        std::future::pending::<()>().await;
    }
}

/// A descriptor that the caller keeps open.
struct Descriptor(RawFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

async fn hung_up(descriptor: Descriptor) -> io::Result<()> {
    let watched = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
    loop {
        let mut guard = watched.readable().await?;
        if guard.ready().is_read_closed() {
            return Ok(());
        }
        guard.clear_ready();
    }
}
