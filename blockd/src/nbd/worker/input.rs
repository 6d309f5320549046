//! What a client has sent and nobody has used yet.

use std::ops::Range;

/// See the module's documentation.
pub(super) struct Input {
    /// Away while something is received into it.
    bytes: Vec<u8>,
    /// Of it, what was received and not used yet.
    filled: Range<usize>,
}

impl Input {
    /// Goes on with a buffer, of which a part is filled.
    pub(super) fn new(bytes: Vec<u8>, filled: Range<usize>) -> Self {
        Self { bytes, filled }
    }

    /// Bytes that can be taken.
    pub(super) fn len(&self) -> usize {
        self.filled.len()
    }

    /// Takes `len_bytes`, which must be there.
    pub(super) fn take(&mut self, len_bytes: usize) -> &[u8] {
        assert!(len_bytes <= self.len(), "no more than there is");
        let start = self.filled.start;
        self.filled.start += len_bytes;
        &self.bytes[start..start + len_bytes]
    }

    /// Lends the buffer, and says which part of it is free: at most `limit_bytes`, and something if less than the buffer is filled.
    pub(super) fn lend(&mut self, limit_bytes: usize) -> (Vec<u8>, Range<usize>) {
        // Less than a header, or than what is worth receiving in place.
        self.bytes.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        let end = self.bytes.len().min(self.filled.end.saturating_add(limit_bytes));
        (std::mem::take(&mut self.bytes), self.filled.end..end)
    }

    /// Takes the buffer back, with `received_bytes` more in it.
    pub(super) fn give_back(&mut self, bytes: Vec<u8>, received_bytes: usize) {
        self.bytes = bytes;
        self.filled.end += received_bytes;
    }
}
