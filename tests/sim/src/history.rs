//! What happened, as somebody sees it who sees everything: the only states that a copy may show, and what was promised.

use crate::storage::View;
use replicator_engine::acknowledgement::{Kind, Promise};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::tracker::Epoch;
use std::collections::BTreeMap;

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
#[derive(Default)]
pub struct History {
    cuts: BTreeMap<(Id, Epoch), Cut>,
    /// What each copy is known to have.
    acknowledged: BTreeMap<Id, Epoch>,
    /// What clients were told in each generation.
    told: BTreeMap<Id, Told>,
    /// The site that acknowledges writes in each generation.
    acknowledging: BTreeMap<Id, usize>,
}

impl History {
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
    pub fn written(&mut self, site: usize, generation: Id, epoch: Epoch) {
        let first = *self.acknowledging.entry(generation).or_insert(site);
        assert_eq!(first, site, "two sites acknowledge writes in one generation");
        let told = self.told.entry(generation).or_default();
        told.written = told.written.max(epoch);
    }

    /// A client was told that all writes up to this epoch are durable.
    pub fn flushed(&mut self, generation: Id, epoch: Epoch) {
        let told = self.told.entry(generation).or_default();
        told.flushed = told.flushed.max(epoch);
    }

    /// The rule for a promise that a primary has recorded: its site may go now, and what its standby shows has all that was promised.
    pub fn check_promise(&self, generation: Id, promise: Promise, shown: Epoch) {
        let told = self.told.get(&generation).copied().unwrap_or_default();
        let promised = [(Kind::Write, told.written), (Kind::Durable, told.flushed)];
        for (kind, epoch) in promised.into_iter().filter(|(kind, _)| promise.covers(*kind)) {
            assert!(shown >= epoch, "{kind:?} of epoch {epoch} was acknowledged while {promise:?} held, but the standby has {shown}");
        }
    }

    /// The rule for what a copy is: none older than what was acknowledged.
    pub fn check_age(&self, replica: Id, epoch: Epoch) {
        let acknowledged = self.acknowledged.get(&replica).copied().unwrap_or(0);
        assert!(epoch >= acknowledged, "epoch {epoch} is shown, {acknowledged} was acknowledged");
    }

    /// The rule for what a copy shows: a cut.
    pub fn check(&self, lineage: &Lineage, epoch: Epoch, size_bytes: u64, view: &View) {
        let may_have = lineage.generations().iter().rev().filter(|generation| generation.branch_epoch <= epoch);
        let cut = may_have.into_iter().find_map(|generation| self.cuts.get(&(generation.id, epoch)));
        let cut = cut.unwrap_or_else(|| panic!("epoch {epoch} is shown, which was never cut in {lineage:?}"));
        assert_eq!(size_bytes, cut.size_bytes, "the size at the cut of epoch {epoch}");
        let differ = cut.view.keys().chain(view.keys()).find(|block| cut.view.get(block) != view.get(block));
        let pair = differ.map(|block| (block, cut.view.get(block), view.get(block)));
        assert!(pair.is_none(), "epoch {epoch} is shown with {size_bytes} bytes, but with another block than at its cut: {pair:?}");
    }
}
