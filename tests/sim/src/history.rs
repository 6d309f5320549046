//! What happened, as somebody sees it who sees everything: the only states that a copy may show, and what was promised.

use crate::storage::View;
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::tracker::Epoch;
use std::collections::BTreeMap;

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A flush survives the crash of its site; a standby may lag behind.
    Async,
    /// A flush survives the loss of its site.
    Barrier,
    /// So does a write.
    Sync,
    /// As [`Self::Async`].
    Snapshot,
}

/// The size and content of a volume at a cut.
pub struct Cut {
    pub size_bytes: u64,
    pub view: View,
}

/// The newest epochs that acknowledgements rest on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// Of a write that a client was told is done.
    pub written: Epoch,
    /// Of a write that a client was told is durable.
    pub flushed: Epoch,
}

/// See the module's documentation.
pub struct History {
    mode: Mode,
    cuts: BTreeMap<(Id, Epoch), Cut>,
    /// What each copy is known to have.
    acknowledged: BTreeMap<Id, Epoch>,
    /// What clients were told while this copy was the standby.
    told: BTreeMap<Id, Told>,
    /// The site that acknowledges writes in each generation.
    acknowledging: BTreeMap<Id, usize>,
}

impl Mode {
    fn promised(self, told: Told) -> Epoch {
        match self {
            Self::Async | Self::Snapshot => 0,
            Self::Barrier => told.flushed,
            Self::Sync => told.flushed.max(told.written),
        }
    }
}

impl History {
    /// Nothing happened yet.
    pub fn new(mode: Mode) -> Self {
        Self { mode, cuts: BTreeMap::new(), acknowledged: BTreeMap::new(), told: BTreeMap::new(), acknowledging: BTreeMap::new() }
    }

    /// An epoch froze.
    pub fn frozen(&mut self, generation: Id, epoch: Epoch, cut: Cut) {
        assert!(self.cuts.insert((generation, epoch), cut).is_none(), "epoch {epoch} has frozen twice");
    }

    /// A primary was told that the copy has the epoch. Says whether that is news.
    pub fn committed(&mut self, replica: Id, epoch: Epoch) -> bool {
        let known = self.acknowledged.entry(replica).or_default();
        let is_new = epoch > *known;
        *known = epoch.max(*known);
        is_new
    }

    /// A client was told that a write of this epoch is done.
    pub fn written(&mut self, site: usize, generation: Id, standby: Option<Id>, epoch: Epoch) {
        let first = *self.acknowledging.entry(generation).or_insert(site);
        assert_eq!(first, site, "two sites acknowledge writes in one generation");
        if let Some(told) = standby.map(|replica| self.told.entry(replica).or_default()) {
            told.written = told.written.max(epoch);
        }
    }

    /// A client was told that all writes up to this epoch are durable.
    pub fn flushed(&mut self, standby: Option<Id>, epoch: Epoch) {
        if let Some(told) = standby.map(|replica| self.told.entry(replica).or_default()) {
            told.flushed = told.flushed.max(epoch);
        }
    }

    /// The rules for what a copy shows: a cut, and none older than what was acknowledged or promised.
    pub fn check(&self, replica: Id, lineage: &Lineage, epoch: Epoch, size_bytes: u64, view: &View) {
        let acknowledged = self.acknowledged.get(&replica).copied().unwrap_or(0);
        assert!(epoch >= acknowledged, "epoch {epoch} is shown, {acknowledged} was acknowledged");
        let promised = self.mode.promised(self.told.get(&replica).copied().unwrap_or_default());
        assert!(epoch >= promised, "epoch {epoch} is shown, {promised} was promised");
        let may_have = lineage.generations().iter().rev().filter(|generation| generation.branch_epoch <= epoch);
        let cut = may_have.into_iter().find_map(|generation| self.cuts.get(&(generation.id, epoch)));
        let cut = cut.unwrap_or_else(|| panic!("epoch {epoch} is shown, which was never cut in {lineage:?}"));
        assert_eq!(size_bytes, cut.size_bytes, "the size at the cut of epoch {epoch}");
        let differ = cut.view.keys().chain(view.keys()).find(|block| cut.view.get(block) != view.get(block));
        let pair = differ.map(|block| (block, cut.view.get(block), view.get(block)));
        assert!(pair.is_none(), "epoch {epoch} is shown with {size_bytes} bytes, but with another block than at its cut: {pair:?}");
    }
}
