//! Which cuts of the group are at the standby, as the primary sees it.

use crate::tracker::Epoch;
use std::collections::VecDeque;

/// A cut of which the standby has every member's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complete {
    /// Its number.
    pub number: u64,
    /// When it was made, by this site's clock, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Each member's epoch.
    pub epochs: Vec<Epoch>,
}

struct UnderWay {
    cut: Complete,
    /// Which members' parts are not acknowledged.
    missing: Vec<bool>,
}

/// See the module's documentation. It has no more cuts than a member has epochs under way.
#[derive(Default)]
pub struct Ledger {
    under_way: VecDeque<UnderWay>,
    complete: Option<Complete>,
}

impl Ledger {
    /// All members were cut.
    pub fn handle_cut(&mut self, cut: Complete) {
        let missing = vec![true; cut.epochs.len()];
        self.under_way.push_back(UnderWay { cut, missing });
    }

    /// The standby has a member's epochs up to this one, and its stream has not broken since they were cut. Says whether there is a newer
    /// group point.
    pub fn handle_acked(&mut self, member: usize, acked: Epoch) -> bool {
        for one in self.under_way.iter_mut().filter(|one| one.cut.epochs[member] <= acked) {
            one.missing[member] = false;
        }
        let Some(newest) = self.under_way.iter().rposition(|one| !one.missing.contains(&true)) else { return false };
        self.complete = self.under_way.drain(..=newest).next_back().map(|one| one.cut);
        true
    }

    /// What a member has under way may never arrive: those cuts do not count, though the standby may have them. Returns their numbers.
    pub fn handle_broken(&mut self, member: usize) -> Vec<u64> {
        let (void, left) = std::mem::take(&mut self.under_way).into_iter().partition(|one| one.missing[member]);
        self.under_way = left;
        VecDeque::into_iter(void).map(|one| one.cut.number).collect()
    }

    /// The newest that is complete.
    pub fn complete(&self) -> Option<&Complete> {
        self.complete.as_ref()
    }

    /// Up to which of its epochs a member is in a group point; 0: nobody knows of one.
    pub fn safe(&self, member: usize) -> Epoch {
        self.complete.as_ref().map_or(0, |cut| cut.epochs[member])
    }

    /// How many are not there yet.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }
}
