//! Which blocks a copy's epochs changed, since the last one that every copy of the volume has.
//!
//! When one standby of several is promoted, what the others lack, or have beside, is what changed between two epochs. The history answers that
//! with those blocks, and perhaps more: epochs that are long ago are told apart less finely. It forgets its oldest epochs where it would grow too
//! large: then everything is compared.

use crate::tracker::Epoch;
use roaring::RoaringBitmap;
use std::collections::VecDeque;

/// Most sets of a class: one of class N has 2^N epochs. So it is told to a sixteenth how long ago something changed.
const SETS_A_CLASS: usize = 16;
/// Most bytes of all sets, as they would be written down.
const MAX_BYTES: usize = 4 << 20;

#[derive(Clone)]
struct Change {
    /// The last epoch of it; the first is that after the last one of the set before.
    until: Epoch,
    class: u32,
    blocks: RoaringBitmap,
    len_bytes: usize,
}

impl Change {
    fn new(until: Epoch, class: u32, blocks: RoaringBitmap) -> Self {
        let len_bytes = blocks.serialized_size();
        Self { until, class, blocks, len_bytes }
    }
}

/// See the module's documentation.
#[derive(Clone, Default)]
pub struct History {
    floor: Epoch,
    changes: VecDeque<Change>,
    len_bytes: usize,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History").field("floor", &self.floor).field("sets", &self.changes.len()).finish()
    }
}

impl History {
    /// A history that knows nothing of what came before `floor`.
    pub fn new(floor: Epoch) -> Self {
        Self { floor, ..Self::default() }
    }

    /// From here on it is known what changed.
    pub fn floor(&self) -> Epoch {
        self.floor
    }

    /// This epoch, which came after all before, changed these blocks.
    pub fn add(&mut self, epoch: Epoch, blocks: &RoaringBitmap) {
        let change = Change::new(epoch, 0, blocks.clone());
        self.len_bytes += change.len_bytes;
        self.changes.push_back(change);
        self.put_together();
        while self.len_bytes > MAX_BYTES {
            self.forget_oldest();
        }
    }

    /// Every copy has this epoch: what came before is of no use any more.
    pub fn forget_until(&mut self, epoch: Epoch) {
        while self.changes.front().is_some_and(|change| change.until <= epoch) {
            self.forget_oldest();
        }
    }

    /// What changed after this epoch, and perhaps more; `None` if nobody knows.
    pub fn since(&self, epoch: Epoch) -> Option<RoaringBitmap> {
        let later = self.changes.iter().rev().take_while(|change| change.until > epoch);
        (epoch >= self.floor).then(|| later.fold(RoaringBitmap::new(), |all, change| all | &change.blocks))
    }

    /// All blocks of it.
    pub fn blocks(&self) -> RoaringBitmap {
        self.changes.iter().fold(RoaringBitmap::new(), |all, change| all | &change.blocks)
    }

    fn forget_oldest(&mut self) {
        if let Some(change) = self.changes.pop_front() {
            self.len_bytes -= change.len_bytes;
            self.floor = change.until;
        }
    }

    /// Puts the oldest two of a class together where there are too many of it. The older ones are of higher classes.
    fn put_together(&mut self) {
        let mut end = self.changes.len();
        for class in 0.. {
            let begin = self.changes.iter().take(end).rposition(|change| change.class > class).map_or(0, |above| above + 1);
            if end - begin <= SETS_A_CLASS {
                return;
            }
            let Some(second) = self.changes.remove(begin + 1) else { return };
            let first = &mut self.changes[begin];
            self.len_bytes -= first.len_bytes + second.len_bytes;
            *first = Change::new(second.until, class + 1, std::mem::take(&mut first.blocks) | second.blocks);
            self.len_bytes += first.len_bytes;
            end = begin + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(blocks: impl IntoIterator<Item = u32>) -> RoaringBitmap {
        blocks.into_iter().collect()
    }

    #[test]
    fn what_changed_after_an_epoch_is_told_exactly_and_before_the_floor_not_at_all() {
        let mut history = History::new(10);
        for (epoch, block) in [(12, 1), (13, 2), (20, 3)] {
            history.add(epoch, &of([block]));
        }
        assert_eq!(history.since(9), None);
        assert_eq!(history.since(10), Some(of([1, 2, 3])));
        assert_eq!(history.since(12), Some(of([2, 3])));
        assert_eq!(history.since(15), Some(of([3])), "an epoch that was none here");
        assert_eq!(history.since(20), Some(of([])));
        history.forget_until(15);
        assert_eq!((history.floor(), history.since(12), history.since(13)), (13, None, Some(of([3]))));
    }

    #[test]
    fn many_epochs_are_told_apart_less_finely_but_none_is_missing() {
        let mut history = History::new(0);
        (1..=10_000).for_each(|epoch| history.add(epoch, &of([epoch as u32 % 5000])));
        assert!(history.changes.len() < 200);
        for epoch in [0, 1, 777, 5000, 9_000, 9_990, 10_000] {
            let told = history.since(epoch).unwrap();
            assert!(of((epoch + 1..=10_000).map(|epoch| epoch as u32 % 5000)).is_subset(&told), "{epoch}");
        }
        assert_eq!(history.since(9_990).unwrap().len(), 10);
        assert!(history.since(9_000).unwrap().len() < 1_200, "{}", history.since(9_000).unwrap().len());
    }

    #[test]
    fn what_grows_too_large_is_forgotten_from_its_beginning() {
        let mut history = History::new(0);
        // Every other block: nothing to compress.
        let scattered = |from: u32| of((0..500_000).map(|block| from + 2 * block));
        (1..=100).for_each(|epoch| history.add(epoch, &scattered(epoch as u32 * 1_000_000)));
        assert!(history.len_bytes <= MAX_BYTES && history.floor() > 0);
        assert_eq!(history.since(0), None);
        assert_eq!(history.since(99), Some(scattered(100_000_000)));
    }
}
