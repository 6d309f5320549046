//! What the client is sent: replies in the order in which they are ready, one send at a time.
//!
//! Whoever has a reply while nobody sends becomes the sender, until the queue is empty; the others leave theirs with it. So a lone reply
//! costs no switch of tasks, and many of them share a send.

use super::window::Slot;
use crate::nbd::rings::Ring;
use crate::nbd::transmission::Header;
use crate::store::AlignedBuf;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::rc::Rc;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::UnixStream;

/// Replies up to this length are copied together.
const SMALL_BYTES: usize = 16 << 10;
/// Length of replies that are sent together.
const BATCH_BYTES: usize = 256 << 10;

/// A reply, encoded.
pub(super) enum Reply {
    /// Without data.
    Header(Header),
    /// Anything.
    Bytes(Vec<u8>),
    /// Data where the disk put it, with the header directly in front.
    Data { buf: AlignedBuf, header_bytes: usize, data: Range<usize> },
}

/// See the module's documentation.
pub(super) struct Output {
    stream: Rc<UnixStream>,
    ring: Rc<Ring>,
    /// Bounded by the window: each holds its place in it.
    queue: RefCell<VecDeque<(Reply, Slot)>>,
    sending: Cell<bool>,
    /// The client takes nothing any more.
    broken: Cell<bool>,
}

impl Output {
    pub(super) fn new(stream: Rc<UnixStream>, ring: Rc<Ring>) -> Self {
        Self { stream, ring, queue: RefCell::default(), sending: Cell::new(false), broken: Cell::new(false) }
    }

    /// Sends a reply, or leaves it with whoever sends already. Its slot is free once it is sent.
    pub(super) async fn send(&self, reply: Reply, slot: Slot) {
        if self.broken.get() {
            return;
        }
        self.queue.borrow_mut().push_back((reply, slot));
        if self.sending.replace(true) {
            return;
        }
        while let Some(first) = self.next() {
            if self.send_some(first).await.is_err() {
                self.broken.set(true);
                self.queue.borrow_mut().clear();
                // The reader learns of it, too.
                let _ = self.stream.shutdown(Shutdown::Both);
            }
        }
        self.sending.set(false);
    }

    fn next(&self) -> Option<(Reply, Slot)> {
        self.queue.borrow_mut().pop_front()
    }

    /// Sends one reply, with those behind it that are small if it is.
    async fn send_some(&self, (reply, slot): (Reply, Slot)) -> io::Result<()> {
        let alone = self.queue.borrow().is_empty();
        if alone || reply.len_bytes() > SMALL_BYTES {
            return self.send_one(reply, slot).await;
        }
        let mut batch = Vec::with_capacity(BATCH_BYTES.min(self.queue.borrow().len() * SMALL_BYTES));
        let mut slots = vec![slot];
        self.append(&mut batch, reply);
        while batch.len() <= BATCH_BYTES - SMALL_BYTES {
            let small = |(reply, _): &mut (Reply, Slot)| reply.len_bytes() <= SMALL_BYTES;
            let Some((reply, slot)) = self.queue.borrow_mut().pop_front_if(small) else { break };
            self.append(&mut batch, reply);
            slots.push(slot);
        }
        self.stream.write_all(batch).await.0
    }

    async fn send_one(&self, reply: Reply, _slot: Slot) -> io::Result<()> {
        match reply {
            Reply::Header(header) => self.stream.write_all(header.as_bytes().to_vec()).await.0,
            Reply::Bytes(bytes) => self.stream.write_all(bytes).await.0,
            Reply::Data { buf, header_bytes, data } => {
                let (bytes, shape) = buf.into_parts();
                let (result, slice) = self.stream.write_all(bytes.slice(shape.framed(header_bytes, data))).await;
                self.recycle(AlignedBuf::from_parts(slice.into_inner(), shape));
                result
            }
        }
    }

    fn append(&self, batch: &mut Vec<u8>, reply: Reply) {
        match reply {
            Reply::Header(header) => batch.extend_from_slice(header.as_bytes()),
            Reply::Bytes(bytes) => batch.extend_from_slice(&bytes),
            Reply::Data { buf, header_bytes, data } => {
                let (bytes, shape) = buf.into_parts();
                batch.extend_from_slice(&bytes[shape.framed(header_bytes, data)]);
                self.recycle(AlignedBuf::from_parts(bytes, shape));
            }
        }
    }

    fn recycle(&self, buf: AlignedBuf) {
        self.ring.pool.borrow_mut().give(buf);
    }
}

impl Reply {
    fn len_bytes(&self) -> usize {
        match self {
            Self::Header(header) => header.as_bytes().len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Data { header_bytes, data, .. } => header_bytes + data.len(),
        }
    }
}
