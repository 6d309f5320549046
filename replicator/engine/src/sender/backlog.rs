//! Epochs between their cut and their acknowledgement.

use crate::block::{Run, runs};
use crate::tracker::Epoch;
use roaring::RoaringBitmap;

/// The frozen epoch, being shipped.
pub(super) struct Frozen {
    pub epoch: Epoch,
    /// All that changed in it: kept until it is acknowledged.
    pub changed: RoaringBitmap,
    /// What of it is not sent.
    pub unsent: RoaringBitmap,
    pub oldest_ms: Option<u64>,
    pub cut_unix_ms: u64,
    pub size_bytes: u64,
}

/// An epoch whose commit is sent.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Its number.
    pub epoch: Epoch,
    /// All that changed in it.
    pub changed: RoaringBitmap,
    /// Time of its first write.
    pub oldest_ms: Option<u64>,
}

impl Frozen {
    /// The next blocks to send, at most `max_blocks`.
    pub fn take_unsent(&mut self, max_blocks: u32) -> Vec<Run> {
        let next: RoaringBitmap = self.unsent.iter().take(max_blocks as usize).collect();
        self.unsent -= &next;
        runs(&next).collect()
    }
}
