//! Generations: who may be primary, told from the volume's lineage.
//!
//! A generation is minted at a promotion and names the epoch of its parent at which it branched. A side sends its whole lineage, oldest
//! first, so that the other can tell at once whether one continues the other:
//!
//! ```text
//!   mine    1 ── 2 ── 3            the longer one is ahead; what the shorter has beyond the branch is lost unless it is resynced
//!   theirs  1 ── 2 ── 3 ── 4
//!
//!   mine    1 ── 2 ── 3            neither continues the other: split brain
//!   theirs  1 ── 2 ── 3'
//! ```

use crate::tracker::Epoch;
use std::fmt;

/// Most generations that a lineage may have; older ones are dropped from the front.
pub const MAX_LINEAGE: usize = 256;

/// Largest counter and largest epoch that another site may name: counting on from there never overflows, and nobody gets there.
pub const MAX_NUMBER: u64 = 1 << 48;

/// A random id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Id(pub [u8; 16]);

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One primary's term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// One more than the parent's.
    pub counter: u64,
    /// Tells generations with equal counters apart.
    pub id: Id,
    /// The last epoch of the parent that this one continues; 0 for the first.
    pub branch_epoch: Epoch,
}

impl Generation {
    /// Whether its numbers can be counted on from.
    pub fn is_valid(&self) -> bool {
        // One less: whoever is told it may be promoted after it.
        self.counter < MAX_NUMBER && self.branch_epoch <= MAX_NUMBER
    }
}

/// A generation with its ancestors, oldest first. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage(Vec<Generation>);

/// What two lineages say about each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same generation.
    Same,
    /// Theirs continues mine from this epoch on.
    TheirsAhead(Epoch),
    /// Mine continues theirs from this epoch on.
    MineAhead(Epoch),
    /// They branched from a common ancestor: two sides were primary at once.
    Split,
    /// They have nothing in common: unrelated volumes.
    Unrelated,
}

impl Lineage {
    /// The lineage of a new volume.
    pub fn first(id: Id) -> Self {
        Self(vec![Generation { counter: 1, id, branch_epoch: 0 }])
    }

    /// A lineage from its generations; `None` if they are none, too many, out of range, or not in order.
    pub fn from_generations(generations: Vec<Generation>) -> Option<Self> {
        let in_order = generations.windows(2).all(|pair| pair[0].counter < pair[1].counter);
        let valid = generations.iter().all(Generation::is_valid);
        (!generations.is_empty() && generations.len() <= MAX_LINEAGE && in_order && valid).then_some(Self(generations))
    }

    /// All generations, oldest first.
    pub fn generations(&self) -> &[Generation] {
        &self.0
    }

    /// The newest generation.
    pub fn current(&self) -> Generation {
        *self.0.last().expect("a lineage is never empty")
    }

    /// The lineage after a promotion at `branch_epoch`.
    pub fn promoted(&self, id: Id, branch_epoch: Epoch) -> Self {
        let keep_from = (self.0.len() + 1).saturating_sub(MAX_LINEAGE);
        let mut generations = self.0[keep_from..].to_vec();
        generations.push(Generation { counter: self.current().counter + 1, id, branch_epoch });
        Self(generations)
    }

    /// Compares two lineages of a volume.
    pub fn relation(&self, theirs: &Self) -> Relation {
        if self.current().id == theirs.current().id {
            return Relation::Same;
        }
        if let Some(epoch) = theirs.branched_from(self.current().id) {
            return Relation::TheirsAhead(epoch);
        }
        if let Some(epoch) = self.branched_from(theirs.current().id) {
            return Relation::MineAhead(epoch);
        }
        if self.0.iter().any(|mine| theirs.0.iter().any(|their| their.id == mine.id)) { Relation::Split } else { Relation::Unrelated }
    }

    /// The last epoch of the generation `ancestor` that this lineage has. A copy that had taken on a later generation, and nothing of its
    /// content, may have been promoted at an epoch before that generation's own branch.
    fn branched_from(&self, ancestor: Id) -> Option<Epoch> {
        let at = self.0.iter().position(|generation| generation.id == ancestor)?;
        self.0[at + 1..].iter().map(|generation| generation.branch_epoch).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(value: u8) -> Id {
        Id([value; 16])
    }

    #[test]
    fn the_longer_of_two_lines_is_ahead_from_its_first_branch() {
        let old = Lineage::first(id(1));
        let new = old.promoted(id(2), 40).promoted(id(3), 55);
        assert_eq!(old.relation(&new), Relation::TheirsAhead(40));
        assert_eq!(new.relation(&old), Relation::MineAhead(40));
        assert_eq!(new.relation(&new.clone()), Relation::Same);
    }

    #[test]
    fn a_line_that_went_back_has_nothing_beyond_where_it_went_back_to() {
        let old = Lineage::first(id(1)).promoted(id(2), 40);
        let back = old.promoted(id(3), 55).promoted(id(4), 20);
        assert_eq!(old.relation(&back), Relation::TheirsAhead(20));
    }

    #[test]
    fn two_promotions_from_one_parent_are_a_split() {
        let parent = Lineage::first(id(1));
        assert_eq!(parent.promoted(id(2), 40).relation(&parent.promoted(id(3), 40)), Relation::Split);
        assert_eq!(parent.relation(&Lineage::first(id(9))), Relation::Unrelated);
    }

    #[test]
    fn a_counter_that_cannot_be_counted_on_from_is_refused() {
        let line = |counter, branch_epoch| Lineage::from_generations(vec![Generation { counter, id: id(1), branch_epoch }]);
        assert!(line(MAX_NUMBER - 1, MAX_NUMBER).unwrap().promoted(id(2), 1).current().counter == MAX_NUMBER);
        assert_eq!((line(MAX_NUMBER, 1), line(1, MAX_NUMBER + 1)), (None, None));
    }

    #[test]
    fn a_long_history_is_cut_at_the_front_and_still_related_to_its_end() {
        let mut line = Lineage::first(id(0));
        let mut before = line.clone();
        for step in 0..2 * MAX_LINEAGE {
            before = line.clone();
            line = line.promoted(Id((step as u128 + 1).to_le_bytes()), step as u64);
        }
        assert_eq!(line.generations().len(), MAX_LINEAGE);
        assert_eq!(before.relation(&line), Relation::TheirsAhead(2 * MAX_LINEAGE as u64 - 1));
    }
}
