//! Block numbers and runs of blocks: the unit in which volumes are tracked and shipped.

use roaring::RoaringBitmap;
use std::fmt;

/// Size of a block in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// Largest volume in blocks: block numbers are 32 bits wide, which is 16 TiB.
pub const MAX_BLOCKS: u64 = u32::MAX as u64;

/// Number of a block within its volume.
pub type BlockNumber = u32;

/// A run of neighbouring blocks, never empty, its end never beyond [`MAX_BLOCKS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// First block.
    pub start: BlockNumber,
    /// Number of blocks.
    pub len: u32,
}

impl Run {
    /// A run of `len` blocks from `start`; `None` if it is empty or reaches beyond the largest block number.
    pub fn new(start: BlockNumber, len: u32) -> Option<Self> {
        (len > 0 && start.checked_add(len).is_some()).then_some(Self { start, len })
    }

    /// The blocks that a range of bytes touches; `None` if the range is empty or too far out.
    pub fn covering(offset: u64, len_bytes: u64) -> Option<Self> {
        let end = offset.checked_add(len_bytes)?.div_ceil(BLOCK_BYTES as u64);
        let start = offset / BLOCK_BYTES as u64;
        Self::new(u32::try_from(start).ok()?, u32::try_from(end.checked_sub(start)?).ok()?)
    }

    /// The block after the last one.
    pub fn end(self) -> BlockNumber {
        self.start + self.len
    }

    /// Offset of the run in bytes.
    pub fn offset(self) -> u64 {
        u64::from(self.start) * BLOCK_BYTES as u64
    }

    /// Length of the run in bytes.
    pub fn len_bytes(self) -> u64 {
        u64::from(self.len) * BLOCK_BYTES as u64
    }

    /// The blocks of the run in order.
    pub fn blocks(self) -> std::ops::Range<BlockNumber> {
        self.start..self.end()
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.len)
    }
}

/// The maximal runs of a set, in order. The largest number, which no block has, is left out.
pub fn runs(blocks: &RoaringBitmap) -> impl Iterator<Item = Run> {
    let mut blocks = blocks.iter();
    std::iter::from_fn(move || {
        let (start, last) = blocks.next_range()?.into_inner();
        Run::new(start, last.min(u32::MAX - 1).checked_sub(start)? + 1)
    })
}

/// Number of blocks that a volume of `size_bytes` has; the last one may be partial.
pub fn block_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_range_covers_every_block_it_touches() {
        assert_eq!(Run::covering(4095, 2), Run::new(0, 2));
        assert_eq!(Run::covering(4096, 4096), Run::new(1, 1));
        assert_eq!(Run::covering(4096, 0), None);
        assert_eq!(Run::covering(u64::MAX, 1), None);
    }

    #[test]
    fn neighbours_join() {
        let joined: Vec<_> = runs(&RoaringBitmap::from_iter([1, 2, 3, 7, 9, 10])).collect();
        assert_eq!(joined, [Run { start: 1, len: 3 }, Run { start: 7, len: 1 }, Run { start: 9, len: 2 }]);
    }

    #[test]
    fn the_runs_of_the_largest_volume_are_found_at_once_and_end_before_the_last_number() {
        let mut blocks = RoaringBitmap::full();
        assert_eq!(runs(&blocks).collect::<Vec<_>>(), [Run { start: 0, len: u32::MAX }]);
        blocks.remove_range(70_000..u32::MAX);
        assert_eq!(runs(&blocks).collect::<Vec<_>>(), [Run { start: 0, len: 70_000 }]);
    }
}
