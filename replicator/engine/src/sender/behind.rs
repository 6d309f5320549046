//! Which blocks the standby does not have.

use super::{Cut, Phase, Sender};
use crate::block::{BlockNumber, MAX_BLOCKS, Run, block_count};
use crate::history::History;
use crate::tracker::{Epoch, Tracker};
use roaring::RoaringBitmap;

impl Sender {
    /// The standby was another standby before this copy was promoted: it may lack what changed here since the epoch that it has. What is `known`
    /// of it is where this history begins.
    pub fn handle_promoted(&mut self, tracker: &Tracker, owed: History) {
        (self.owed_blocks, self.owed) = (owed.blocks(), owed);
        tracker.note_away(&self.owed_blocks);
    }

    /// It says where it stands: what it lacks is marked, and nothing else is owed to it.
    pub(super) fn settle_owed(&mut self, tracker: &Tracker, committed: Epoch) {
        let owed = std::mem::take(&mut self.owed).since(committed).unwrap_or_default() & self.all_blocks();
        self.mark_again(tracker, &owed, None);
        self.owed_blocks.clear();
    }

    /// The standby's disk has lost these blocks, named in order: they go with the next epoch, as though they had been written again.
    pub(super) fn handle_damaged(&mut self, tracker: &Tracker, damaged: &[Run]) -> Result<(), &'static str> {
        if !damaged.is_sorted_by(|run, next| run.end() <= next.start) {
            return Err("damaged blocks are in no order, or named twice");
        }
        let mut blocks = RoaringBitmap::new();
        damaged.iter().for_each(|run| _ = blocks.insert_range(run.blocks()));
        tracker.mark(&(blocks & self.all_blocks()), None);
        self.gauge.handle_marked();
        Ok(())
    }

    /// Blocks that are sent or frozen and not yet acknowledged, beside the tracker's maps.
    pub fn unacknowledged(&self) -> RoaringBitmap {
        let mut blocks = RoaringBitmap::new();
        self.unacknowledged_sets().for_each(|set| blocks |= set);
        blocks
    }

    /// The blocks of `run` that may differ from the standby: all, as long as nobody knows what it has.
    pub fn behind(&self, tracker: &Tracker, run: Run) -> RoaringBitmap {
        let mut all = RoaringBitmap::new();
        all.insert_range(run.blocks());
        let is_known = self.known.is_some() || (self.phase == Phase::Online && self.mark_base.is_none());
        if !is_known {
            return all;
        }
        let mut blocks = tracker.open().within(run) | tracker.frozen().within(run);
        self.unacknowledged_sets().for_each(|set| blocks |= set & &all);
        for hole in self.holes.unsent() {
            let (from, to) = (hole.start.max(run.start), hole.end().min(run.end()));
            blocks.insert_range(from..to.max(from));
        }
        blocks
    }

    pub(super) fn all_blocks(&self) -> RoaringBitmap {
        let mut all = RoaringBitmap::new();
        all.insert_range(0..block_count(self.size_bytes).min(MAX_BLOCKS) as BlockNumber);
        all
    }

    fn unacknowledged_sets(&self) -> impl Iterator<Item = &RoaringBitmap> {
        let frozen = if let Cut::Frozen(frozen) = &self.cut { Some(&frozen.changed) } else { None };
        let pending = self.pending.iter().map(|pending| &pending.changed);
        [&self.early, &self.owed_blocks].into_iter().chain(self.asked.values()).chain(pending).chain(frozen)
    }
}
