//! A set of blocks that many threads mark and one thread drains, lock-free.
//!
//! A dense bitmap in leaves of 4 GiB of volume, made when first touched, so a sparse 1 TiB volume costs what it uses and a resize
//! costs nothing. A summary bit for each 64 words lets the drainer skip what is clean.
//!
//! Invariants: a set bit's summary bit is set, or is about to be by the thread that set the bit; `len` counts the set bits.

use crate::block::{BlockNumber, Run};
use roaring::RoaringBitmap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

const WORD_BITS: u32 = u64::BITS;
const LEAF_BLOCKS: u32 = 1 << 20;
const LEAF_WORDS: usize = (LEAF_BLOCKS / WORD_BITS) as usize;
const SUMMARY_WORDS: usize = LEAF_WORDS / 64 / 64;
const LEAVES: usize = 1 << (32 - 20);
/// Words that one summary bit stands for.
const GROUP_WORDS: usize = 64;

struct Leaf {
    words: Box<[AtomicU64]>,
    summary: [AtomicU64; SUMMARY_WORDS],
}

/// See the module's documentation.
pub struct DirtyMap {
    leaves: Box<[OnceLock<Box<Leaf>>]>,
    len: AtomicI64,
}

impl Default for DirtyMap {
    fn default() -> Self {
        Self { leaves: (0..LEAVES).map(|_| OnceLock::new()).collect(), len: AtomicI64::new(0) }
    }
}

/// The mask of a run's bits in each word that it touches, as `(leaf, word, mask)`.
fn masks(run: Run) -> impl Iterator<Item = (usize, usize, u64)> {
    let mut block = run.start;
    std::iter::from_fn(move || {
        if block >= run.end() {
            return None;
        }
        let bit = block % WORD_BITS;
        let count = (WORD_BITS - bit).min(run.end() - block);
        let mask = (u64::MAX >> (WORD_BITS - count)) << bit;
        let item = ((block / LEAF_BLOCKS) as usize, (block % LEAF_BLOCKS / WORD_BITS) as usize, mask);
        block += count;
        Some(item)
    })
}

impl DirtyMap {
    /// Marks every block of `run`.
    pub fn set(&self, run: Run) {
        for (leaf, word, mask) in masks(run) {
            self.leaf(leaf).set(word, mask, &self.len);
        }
    }

    /// Marks every block of `blocks`.
    pub fn set_all(&self, blocks: &RoaringBitmap) {
        for run in crate::block::runs(blocks) {
            self.set(run);
        }
    }

    /// Clears `block` and tells whether it was set.
    pub fn clear(&self, block: BlockNumber) -> bool {
        let (leaf, word, mask) = position(block);
        let Some(leaf) = self.leaves[leaf].get() else { return false };
        let was_set = leaf.words[word].fetch_and(!mask, SeqCst) & mask != 0;
        self.len.fetch_sub(i64::from(was_set), SeqCst);
        was_set
    }

    /// Whether `block` is set.
    pub fn contains(&self, block: BlockNumber) -> bool {
        let (leaf, word, mask) = position(block);
        self.leaves[leaf].get().is_some_and(|leaf| leaf.words[word].load(SeqCst) & mask != 0)
    }

    /// Whether any block of `run` is set.
    pub fn intersects(&self, run: Run) -> bool {
        !self.is_empty()
            && masks(run).any(|(leaf, word, mask)| self.leaves[leaf].get().is_some_and(|l| l.words[word].load(SeqCst) & mask != 0))
    }

    /// Number of set blocks.
    pub fn len(&self) -> u64 {
        self.len.load(SeqCst).max(0).unsigned_abs()
    }

    /// Whether no block is set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first set block at or after `from`. Only the draining thread calls this: it tidies the summary on its way.
    pub fn next(&self, from: BlockNumber) -> Option<BlockNumber> {
        let mut word = (from % LEAF_BLOCKS / WORD_BITS) as usize;
        let mut floor = u64::MAX << (from % WORD_BITS);
        for index in (from / LEAF_BLOCKS) as usize..LEAVES {
            let found = self.leaves[index].get().and_then(|leaf| leaf.next(word, floor));
            if let Some(found) = found {
                return Some(index as u32 * LEAF_BLOCKS + found);
            }
            (word, floor) = (0, u64::MAX);
        }
        None
    }

    /// The set as it stands; exact only while nobody writes.
    pub fn snapshot(&self) -> RoaringBitmap {
        let mut blocks = RoaringBitmap::new();
        for (index, leaf) in self.leaves.iter().enumerate() {
            if let Some(leaf) = leaf.get() {
                leaf.append_to(index as u32 * LEAF_BLOCKS, &mut blocks);
            }
        }
        blocks
    }

    /// Those of `run`, as they stand.
    pub fn within(&self, run: Run) -> RoaringBitmap {
        let mut blocks = RoaringBitmap::new();
        for (index, word, mask) in masks(run) {
            if let Some(leaf) = self.leaves[index].get() {
                let start = index as u32 * LEAF_BLOCKS + word as u32 * WORD_BITS;
                append(start, leaf.words[word].load(SeqCst) & mask, &mut blocks);
            }
        }
        blocks
    }

    /// Clears every block; bits that are set meanwhile may stay or go.
    pub fn clear_all(&self) {
        let mut from = 0;
        while let Some(block) = self.next(from) {
            self.clear(block);
            let Some(next) = block.checked_add(1) else { break };
            from = next;
        }
    }

    fn leaf(&self, index: usize) -> &Leaf {
        self.leaves[index].get_or_init(|| {
            Box::new(Leaf {
                words: (0..LEAF_WORDS).map(|_| AtomicU64::new(0)).collect(),
                summary: std::array::from_fn(|_| AtomicU64::new(0)),
            })
        })
    }
}

fn position(block: BlockNumber) -> (usize, usize, u64) {
    ((block / LEAF_BLOCKS) as usize, (block % LEAF_BLOCKS / WORD_BITS) as usize, 1 << (block % WORD_BITS))
}

impl Leaf {
    fn set(&self, word: usize, mask: u64, len: &AtomicI64) {
        // A word that has the bits already needs no write: a drainer that clears it now has yet to look for writes in flight.
        if self.words[word].load(SeqCst) & mask == mask {
            return;
        }
        let before = self.words[word].fetch_or(mask, SeqCst);
        len.fetch_add(i64::from((mask & !before).count_ones()), SeqCst);
        let group = word / GROUP_WORDS;
        let bit = 1 << (group % 64);
        if self.summary[group / 64].load(SeqCst) & bit == 0 {
            self.summary[group / 64].fetch_or(bit, SeqCst);
        }
    }

    /// The first set block of the leaf at or after bit `floor` of `word`.
    fn next(&self, word: usize, floor: u64) -> Option<u32> {
        let first = word / GROUP_WORDS;
        for group in first..LEAF_WORDS / GROUP_WORDS {
            let bit = 1 << (group % 64);
            if self.summary[group / 64].load(SeqCst) & bit == 0 {
                continue;
            }
            let words = group * GROUP_WORDS..(group + 1) * GROUP_WORDS;
            for index in words.clone().skip_while(|index| *index < word) {
                let bits = self.words[index].load(SeqCst) & if index == word { floor } else { u64::MAX };
                if bits != 0 {
                    return Some(index as u32 * WORD_BITS + bits.trailing_zeros());
                }
            }
            if self.words[words.clone()].iter().all(|w| w.load(SeqCst) == 0) {
                self.summary[group / 64].fetch_and(!bit, SeqCst);
                // A bit that was set between the look and the clearing found the summary set and left it so.
                if self.words[words].iter().any(|w| w.load(SeqCst) != 0) {
                    self.summary[group / 64].fetch_or(bit, SeqCst);
                }
            }
        }
        None
    }

    fn append_to(&self, base: u32, blocks: &mut RoaringBitmap) {
        for (index, word) in self.words.iter().enumerate() {
            append(base + index as u32 * WORD_BITS, word.load(SeqCst), blocks);
        }
    }
}

/// Adds the blocks of a word, of which the first is `start`.
fn append(start: BlockNumber, mut bits: u64, blocks: &mut RoaringBitmap) {
    if bits == u64::MAX {
        blocks.insert_range(start..=start + (WORD_BITS - 1));
        return;
    }
    while bits != 0 {
        blocks.insert(start + bits.trailing_zeros());
        bits &= bits - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_across_words_and_leaves_are_marked_whole() {
        let map = DirtyMap::default();
        let run = Run::new(LEAF_BLOCKS - 70, 140).unwrap();
        map.set(run);
        map.set(run);
        assert_eq!(map.len(), 140);
        assert_eq!(map.snapshot(), RoaringBitmap::from_iter(run.blocks()));
        assert_eq!(map.within(Run::new(LEAF_BLOCKS - 100, 32).unwrap()), RoaringBitmap::from_iter([LEAF_BLOCKS - 70, LEAF_BLOCKS - 69]));
        assert_eq!(map.within(Run::new(0, 2 * LEAF_BLOCKS).unwrap()), map.snapshot());
        assert!(map.intersects(Run::new(LEAF_BLOCKS + 69, 5).unwrap()));
        assert!(!map.intersects(Run::new(LEAF_BLOCKS + 70, 5).unwrap()));
        assert_eq!(map.next(0), Some(run.start));
        assert_eq!(map.next(run.end()), None);
    }

    #[test]
    fn a_drained_map_finds_what_is_set_again() {
        let map = DirtyMap::default();
        for block in [0, 5000, 3 * LEAF_BLOCKS + 1, u32::MAX - 1] {
            map.set(Run::new(block, 1).unwrap());
        }
        map.clear_all();
        assert!(map.is_empty());
        assert_eq!(map.next(0), None);
        map.set(Run::new(5001, 2).unwrap());
        assert_eq!(map.next(0), Some(5001));
        assert!(map.clear(5001) && !map.clear(5001));
        assert_eq!(map.next(0), Some(5002));
        assert_eq!(map.len(), 1);
    }
}
