//! Buffers that direct I/O can take as they are, with room for a reply's header in front.
//!
//! ```text
//!   frame:  │ headroom (64) │ data, page aligned … │
//!                           └ AlignedBuf derefs to this
//! ```
//!
//! A front end reads from the disk into the data, writes its protocol's header into the end of the headroom, and sends both at once.

use super::PAGE_BYTES;
use std::ops::{Deref, DerefMut, Range};

/// Bytes in front of the data.
pub const HEADROOM_BYTES: usize = 64;

/// Most memory that a pool keeps for later.
const POOL_BYTES: usize = 16 << 20;
/// Largest buffer that a pool keeps; larger ones are rare, and fresh pages for them cost little beside the transfer.
const POOLED_BUF_BYTES: usize = 1 << 20;
/// Size classes of a pool: powers of two from a page to [`POOLED_BUF_BYTES`].
const CLASSES: usize = (POOLED_BUF_BYTES.trailing_zeros() - (PAGE_BYTES as usize).trailing_zeros()) as usize + 1;

/// A zeroed or reused buffer whose data begins at a page boundary.
#[derive(Debug)]
pub struct AlignedBuf {
    /// Never grows, so the data stays where it is.
    bytes: Vec<u8>,
    /// Where the data begins: page aligned, at least [`HEADROOM_BYTES`].
    start: usize,
    len_bytes: usize,
    capacity: usize,
}

impl AlignedBuf {
    /// A zeroed buffer with `len_bytes` of data.
    pub fn new(len_bytes: usize) -> Self {
        let capacity = len_bytes.next_multiple_of(PAGE_BYTES as usize);
        let bytes = vec![0; HEADROOM_BYTES + PAGE_BYTES as usize + capacity];
        let start = HEADROOM_BYTES + bytes[HEADROOM_BYTES..].as_ptr().align_offset(PAGE_BYTES as usize);
        Self { bytes, start, len_bytes, capacity }
    }

    /// Changes the length of the data, within the capacity.
    pub fn set_len(&mut self, len_bytes: usize) {
        assert!(len_bytes <= self.capacity, "an aligned buffer does not grow");
        self.len_bytes = len_bytes;
    }

    /// Most data that fits.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Writes `header` directly in front of the data's byte `at`. What lies there in the data is overwritten: `at` is beyond what is of no use.
    pub fn put_header(&mut self, at: usize, header: &[u8]) {
        assert!(header.len() <= HEADROOM_BYTES && at <= self.len_bytes, "a header fits the headroom");
        let end = self.start + at;
        self.bytes[end - header.len()..end].copy_from_slice(header);
    }

    /// Where a header of `header_bytes`, put in front of the data's byte `range.start`, and the data's bytes `range` lie in the frame.
    pub fn framed(&self, header_bytes: usize, range: Range<usize>) -> Range<usize> {
        self.start + range.start - header_bytes..self.start + range.end
    }

    /// A part of the frame: headroom and data.
    pub fn frame(&self, part: Range<usize>) -> &[u8] {
        &self.bytes[part]
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len_bytes]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len_bytes]
    }
}

/// Keeps buffers for later, up to 16 MiB in all. Their content is whatever the last user left.
#[derive(Debug, Default)]
pub struct BufferPool {
    classes: [Vec<AlignedBuf>; CLASSES],
    kept_bytes: usize,
}

impl BufferPool {
    /// A buffer of `len_bytes`, not necessarily zeroed.
    pub fn take(&mut self, len_bytes: usize) -> AlignedBuf {
        let Some(class) = class_of(len_bytes) else { return AlignedBuf::new(len_bytes) };
        match self.classes[class].pop() {
            Some(mut buf) => {
                self.kept_bytes -= buf.capacity;
                buf.set_len(len_bytes);
                buf
            }
            None => {
                let mut buf = AlignedBuf::new((PAGE_BYTES as usize) << class);
                buf.set_len(len_bytes);
                buf
            }
        }
    }

    /// Gives a buffer back.
    pub fn give(&mut self, buf: AlignedBuf) {
        let Some(class) = class_of(buf.capacity) else { return };
        if buf.capacity == (PAGE_BYTES as usize) << class && self.kept_bytes + buf.capacity <= POOL_BYTES {
            self.kept_bytes += buf.capacity;
            self.classes[class].push(buf);
        }
    }
}

/// The smallest class that holds `len_bytes`.
fn class_of(len_bytes: usize) -> Option<usize> {
    let pages = len_bytes.div_ceil(PAGE_BYTES as usize).max(1).next_power_of_two();
    (len_bytes <= POOLED_BUF_BYTES).then(|| pages.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_page_aligned_and_headers_lie_in_front_of_it() {
        for len_bytes in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let mut buf = AlignedBuf::new(len_bytes);
            assert_eq!(buf.as_ptr().align_offset(PAGE_BYTES as usize), 0);
            assert_eq!(buf.len(), len_bytes);
            buf.fill(7);
            buf.put_header(0, b"header");
            let framed = buf.frame(buf.framed(6, 0..len_bytes));
            assert_eq!((&framed[..6], &framed[6..]), (&b"header"[..], &vec![7; len_bytes][..]));
        }
    }

    #[test]
    fn a_pool_gives_back_what_fits_and_keeps_no_more_than_its_limit() {
        let mut pool = BufferPool::default();
        for len_bytes in [1, 4096, 4097, POOLED_BUF_BYTES, POOLED_BUF_BYTES + 1] {
            let buf = pool.take(len_bytes);
            assert!(buf.len() == len_bytes && buf.capacity() >= len_bytes);
            pool.give(buf);
        }
        assert_eq!(pool.kept_bytes, 4096 + 8192 + POOLED_BUF_BYTES);
        for _ in 0..100 {
            pool.give(AlignedBuf::new(POOLED_BUF_BYTES));
        }
        assert!(pool.kept_bytes <= POOL_BYTES);
    }
}
