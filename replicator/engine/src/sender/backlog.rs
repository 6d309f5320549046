//! Epochs between their cut and their acknowledgement.

use super::Sender;
use crate::block::{Run, runs};
use crate::group::GroupCut;
use crate::tracker::Epoch;
use roaring::RoaringBitmap;

/// What the standby does not have, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Still to be sent.
    pub unsent_blocks: u64,
    /// Not acknowledged: may differ from the standby.
    pub in_doubt_blocks: u64,
}

/// The frozen epoch, being shipped.
pub(super) struct Frozen {
    pub epoch: Epoch,
    /// All that changed in it: kept until it is acknowledged.
    pub changed: RoaringBitmap,
    /// What of it is not sent.
    pub unsent: RoaringBitmap,
    pub oldest_ms: Option<u64>,
    pub cut_unix_ms: u64,
    pub group: Option<GroupCut>,
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

/// What is zeroes here, told to a copy that may hold anything: before the first epoch, and again if that is given up.
#[derive(Default)]
pub(super) struct Holes {
    runs: Vec<Run>,
    sent: usize,
}

impl Holes {
    pub fn new(free: &RoaringBitmap) -> Self {
        Self { runs: runs(free).collect(), sent: 0 }
    }

    /// What is not sent.
    pub fn unsent(&self) -> &[Run] {
        &self.runs[self.sent..]
    }

    /// The next to send, at most so many.
    pub fn take(&mut self, max_runs: usize) -> &[Run] {
        let from = self.sent;
        self.sent = self.runs.len().min(from + max_runs);
        &self.runs[from..self.sent]
    }

    /// The epoch that they belong to is given up.
    pub fn send_again(&mut self) {
        self.sent = 0;
    }
}

impl Sender {
    /// [`Self::handle_cut`] for a cut of the whole group, at this time.
    pub fn handle_group_cut(&mut self, epoch: Epoch, now_ms: u64, cut: GroupCut, unix_ms: u64) {
        self.handle_cut(epoch, now_ms);
        self.cut_with = Some((cut, unix_ms));
    }
}

impl Frozen {
    /// The next blocks to send, at most `max_blocks`.
    pub fn take_unsent(&mut self, max_blocks: u32) -> Vec<Run> {
        let next: RoaringBitmap = self.unsent.iter().take(max_blocks as usize).collect();
        self.unsent -= &next;
        runs(&next).collect()
    }
}
