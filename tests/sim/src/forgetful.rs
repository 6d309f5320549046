//! A planted bug: what a standby knows of its epochs, without the blocks that it was asked about, and had.

use replicator_engine::history::History;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Base, Blocks};
use roaring::RoaringBitmap;

/// See the module's documentation.
#[derive(Default)]
pub struct Forgetful {
    pub history: History,
    /// Blocks that came, since the last commit.
    came: RoaringBitmap,
}

impl Forgetful {
    /// A copy that stands at this epoch was opened.
    pub fn new(committed: Epoch) -> Self {
        Self { history: History::new(committed), ..Self::default() }
    }

    /// Content came.
    pub fn came(&mut self, blocks: &Blocks) {
        blocks.runs.iter().for_each(|(run, _)| _ = self.came.insert_range(run.blocks()));
    }

    /// A copy of this kind committed an epoch.
    pub fn committed(&mut self, before: &Base, epoch: Epoch) {
        let came = std::mem::take(&mut self.came);
        if *before == Base::Point { self.history.add(epoch, &came) } else { self.history = History::new(epoch) }
    }
}
