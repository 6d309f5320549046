//! Replies that are sent together: what is short in one piece, then data from where the disk put it.

use crate::nbd::transmission::Header;
use crate::store::{AlignedBuf, BufferPool};
use std::ops::Range;
use std::ptr;

/// Length of data after which a batch takes no more: whoever waits for room in the window does not wait for everything.
const BATCH_BYTES: usize = 512 << 10;

/// A reply, encoded.
pub(super) enum Reply {
    /// Without data.
    Header(Header),
    /// Anything that is short.
    Bytes(Vec<u8>),
    /// Data where the disk put it, with the header directly in front.
    Data { buf: AlignedBuf, header_bytes: usize, data: Range<usize> },
}

/// See the module's documentation. It is used again and again, so that replies cost no allocation.
pub(super) struct Batch {
    short: Vec<u8>,
    data: Vec<(AlignedBuf, Range<usize>)>,
    data_bytes: usize,
    /// What is still to be sent, from `first` on. The pointers lead into the two above, which do not change until all is sent.
    vectors: Vec<libc::iovec>,
    first: usize,
    message: Box<libc::msghdr>,
    /// Requests that it answers.
    pub(super) requests: u32,
    /// Room in the window that they give back.
    pub(super) window_bytes: u64,
}

impl Default for Batch {
    fn default() -> Self {
        let message = libc::msghdr {
            msg_name: ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: ptr::null_mut(),
            msg_iovlen: 0,
            msg_control: ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        let (short, data, vectors) = (Vec::new(), Vec::new(), Vec::new());
        Self { short, data, data_bytes: 0, vectors, first: 0, message: Box::new(message), requests: 0, window_bytes: 0 }
    }
}

impl Batch {
    /// Adds a reply; replies may be sent in any order.
    pub(super) fn add(&mut self, reply: Reply, window_bytes: u64) {
        self.requests += 1;
        self.window_bytes += window_bytes;
        match reply {
            Reply::Header(header) => self.short.extend_from_slice(header.as_bytes()),
            Reply::Bytes(bytes) => self.short.extend_from_slice(&bytes),
            Reply::Data { buf, header_bytes, data } => {
                let framed = buf.framed(header_bytes, data);
                self.data_bytes += framed.len();
                self.data.push((buf, framed));
            }
        }
    }

    /// Whether it is worth sending before it takes more.
    pub(super) fn is_full(&self) -> bool {
        self.data_bytes >= BATCH_BYTES
    }

    /// Nothing is added any more: it can be sent.
    pub(super) fn seal(&mut self) {
        let short = (!self.short.is_empty()).then_some(&self.short[..]);
        let data = self.data.iter().map(|(buf, framed)| buf.frame(framed.clone()));
        let vector = |part: &[u8]| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        self.vectors.extend(short.into_iter().chain(data).map(vector));
    }

    /// The only piece that is left, if it is one.
    pub(super) fn only(&self) -> Option<(*const u8, usize)> {
        match &self.vectors[self.first..] {
            [vector] => Some((vector.iov_base.cast_const().cast(), vector.iov_len)),
            _ => None,
        }
    }

    /// All pieces that are left.
    pub(super) fn message(&mut self) -> *const libc::msghdr {
        let left = &mut self.vectors[self.first..];
        (self.message.msg_iov, self.message.msg_iovlen) = (left.as_mut_ptr(), left.len());
        &raw const *self.message
    }

    /// `len_bytes` were sent; whether that was all.
    pub(super) fn advance(&mut self, mut len_bytes: usize) -> bool {
        while let Some(vector) = self.vectors.get_mut(self.first) {
            let part = len_bytes.min(vector.iov_len);
            vector.iov_base = vector.iov_base.wrapping_byte_add(part);
            vector.iov_len -= part;
            len_bytes -= part;
            if vector.iov_len > 0 {
                return false;
            }
            self.first += 1;
        }
        true
    }

    /// Empties it for the next replies.
    pub(super) fn clear(&mut self, pool: &mut BufferPool) {
        self.short.clear();
        self.data.drain(..).for_each(|(buf, _)| pool.give(buf));
        self.vectors.clear();
        (self.data_bytes, self.first, self.requests, self.window_bytes) = (0, 0, 0, 0);
    }
}
