//! What a copy is to a primary that it did not follow before: an old primary that was overtaken, or a standby that has epochs beyond the one at
//! which the new primary branched. Both stand at the branch, but for the blocks that changed here since.

use replicator_engine::generation::{Lineage, Relation};
use replicator_engine::history::History;
use replicator_engine::sender::Known;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Base;
use roaring::RoaringBitmap;

/// Where a copy stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Stand {
    /// The last epoch that it has of what the new primary has.
    pub committed: Epoch,
    /// What differs from that.
    pub base: Base,
    /// The generation that it is of.
    pub lineage: Lineage,
}

impl Stand {
    /// What differs is anybody's guess.
    fn unknown(theirs: &Lineage) -> Self {
        Self { committed: 0, base: Base::Unfinished, lineage: theirs.clone() }
    }
}

/// A standby of `mine` that stands still, and has epochs that `theirs` has not. `damaged` is what its disk lost. `None`: the new primary does not
/// continue what it has. It is of the later generation from now on: the primary of its own must not write to what it gave up for that.
pub fn as_standby(mine: &Lineage, base: &Base, history: &History, damaged: &RoaringBitmap, theirs: &Lineage) -> Option<Stand> {
    let Relation::TheirsAhead(branch) = mine.relation(theirs) else { return None };
    // Too long ago, or no recovery point: everything is compared.
    let changed = history.since(branch).filter(|_| *base == Base::Point).map(|changed| changed | damaged);
    let at_branch = |changed| Stand { committed: branch, base: Base::PointBut(changed), lineage: theirs.clone() };
    Some(changed.map_or_else(|| Stand::unknown(theirs), at_branch))
}

/// Which of an old primary's standbys says best what it has alone: the one that was closest to where the new primary branched, and not beyond. What
/// that standby lacks is all that changed here since, and perhaps more. With it, the epoch of the branch.
pub fn closest<Site>(mine: &Lineage, theirs: &Lineage, known: impl IntoIterator<Item = (Site, Option<Known>)>) -> Option<(Site, Epoch)> {
    let Relation::TheirsAhead(branch) = mine.relation(theirs) else { return None };
    // A standby that was promoted below what it had acknowledged lost something; of one that never committed nothing is known.
    let acked = known.into_iter().filter_map(|(site, known)| Some((site, known?.acked))).filter(|(_, acked)| *acked <= branch);
    acked.max_by_key(|(_, acked)| *acked).map(|(site, _)| (site, branch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use replicator_engine::generation::Id;

    #[test]
    fn a_standby_stands_at_the_branch_but_for_what_changed_since_or_nowhere() {
        let mine = Lineage::first(Id([1; 16]));
        let (theirs, mut history) = (mine.promoted(Id([2; 16]), 12), History::new(10));
        (11..14).for_each(|epoch| history.add(epoch, &RoaringBitmap::from_iter([epoch as u32])));
        let damaged = RoaringBitmap::from_iter([99]);
        let stands = |base, theirs: &Lineage| as_standby(&mine, &base, &history, &damaged, theirs);
        let changed = RoaringBitmap::from_iter([13, 99]);
        let at_branch = Stand { committed: 12, base: Base::PointBut(changed), lineage: theirs.clone() };
        assert_eq!(stands(Base::Point, &theirs), Some(at_branch));
        let nowhere = |theirs: &Lineage| Some(Stand { committed: 0, base: Base::Unfinished, lineage: theirs.clone() });
        let long_ago = mine.promoted(Id([3; 16]), 9);
        assert_eq!(stands(Base::Point, &long_ago), nowhere(&long_ago));
        assert_eq!(stands(Base::PointBut(RoaringBitmap::new()), &theirs), nowhere(&theirs));
        assert_eq!(as_standby(&theirs, &Base::Point, &history, &damaged, &mine), None);
    }

    #[test]
    fn an_old_primary_goes_by_the_standby_that_was_closest_to_the_branch_and_not_beyond() {
        let mine = Lineage::first(Id([1; 16]));
        let theirs = mine.promoted(Id([2; 16]), 12);
        let known = |acked| Some(Known { replica: None, acked });
        assert_eq!(
            closest(&mine, &theirs, [("near", known(13)), ("far", known(9)), ("new", None), ("middle", known(11))]),
            Some(("middle", 12))
        );
        assert_eq!(closest(&mine, &theirs, [("near", known(13))]), None);
        assert_eq!(closest(&theirs, &mine, [("near", known(3))]), None);
    }
}
