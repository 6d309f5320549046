//! One cut for several volumes: when its members are cut together, which of their epochs belong together, and what both sites may call a point.
//!
//! ```text
//!   members ready ──► hold (nobody joins an epoch) ──► cut each ──► let go ──► every member's epoch is at the standby: a group point
//! ```
//!
//! Invariants
//! - Between the hold and its end no write joins an epoch of any member. So a write that was acknowledged before another one began is in the
//!   cut if that one is.
//! - What a cut is made of is named by its number, in the commit of each member's epoch. Epochs that were cut alone have none.
//! - A group point is there once each member has committed its part of the same cut, and for as long as each still has it.

mod ledger;
mod rounds;

pub use ledger::{Complete, Ledger};
pub use rounds::{Rounds, Turn};

use crate::generation::Id;
use std::collections::BTreeMap;

/// Most members of a group.
pub const MAX_MEMBERS: usize = 16;

/// Longest that writes are held for a cut: past it the cut is given up, and taken anew.
pub const MAX_HOLD_MS: u64 = 50;

/// A cut of a whole group. The greater number is the later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupCut {
    /// The group, with these members: it has another id once they change.
    pub group: Id,
    /// The greatest epoch that it closed, of any member: it grows with each cut.
    pub number: u64,
}

/// Whether members may still be cut whose writes have been held for so long.
pub fn may_cut(held_ms: u64) -> bool {
    held_ms < MAX_HOLD_MS
}

/// The cuts of `group` of which every member has its part, the oldest first: the number, and for each member which of its points it is.
/// `members` has the points of each.
pub fn common_points(group: Id, members: &[Vec<Option<GroupCut>>]) -> Vec<(u64, Vec<usize>)> {
    let mut common: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (count, points) in members.iter().enumerate() {
        for (place, cut) in points.iter().enumerate().filter_map(|(place, cut)| Some((place, (*cut)?))) {
            if cut.group != group {
                continue;
            }
            let parts = common.entry(cut.number).or_default();
            // A second one of the same number, which no primary makes, counts for nothing.
            if parts.len() == count {
                parts.push(place);
            }
        }
    }
    common.retain(|_, parts| parts.len() == members.len());
    common.into_iter().collect()
}

#[cfg(test)]
mod tests;
