//! The last content of hot blocks that went over a connection, so that the next one can go as what differs from it.
//!
//! ```text
//!   first time ──► probation, a quarter ──in vain──► remembered by number ──again──► hot
//!                       └───────────came again meanwhile──────────────────────────►──┘
//! ```
//!
//! A first sync, or whatever else writes once, passes through probation and leaves the hot blocks alone. Both sides keep one of these: the primary finds
//! its bases here and nowhere else; the standby spares itself a read. Memory comes in slabs, when it is needed, out of [`BasesMemory`].

use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use replicator_engine::wire::MAX_BASE_AGE_BLOCKS;
use roaring::RoaringBitmap;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Blocks of a slab.
const SLAB_BLOCKS: usize = 64;
const SLAB_BYTES: u64 = (SLAB_BLOCKS * BLOCK_BYTES) as u64;
/// A block that came again so often survives as many rounds.
const MOST_HITS: u8 = 3;
/// Looks of [`Bases::forget_idle`] without use after which all memory is given back, wanted or not.
const IDLE_LOOKS: u32 = 180;

/// What all connections of a site may use.
#[derive(Debug, Default)]
pub struct BasesMemory {
    each_bytes: u64,
    total_bytes: u64,
    used_bytes: AtomicU64,
    /// Somebody got none: whoever is idle gives back.
    is_wanted: AtomicBool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Bases {
    memory: Arc<BasesMemory>,
    slabs: Vec<Box<[u8]>>,
    free: Vec<u32>,
    entries: BTreeMap<BlockNumber, Entry>,
    probation: VecDeque<Queued>,
    hot: VecDeque<Queued>,
    /// Blocks that left probation in vain, in two generations.
    seen: [RoaringBitmap; 2],
    /// Blocks of content that went over the connection.
    count: u64,
    is_in_use: bool,
    idle_looks: u32,
}

#[derive(Debug)]
struct Entry {
    slot: u32,
    /// The connection's count when it came last, and when it was queued: there may be places in the queues of one that was forgotten since.
    number: u64,
    queued: u64,
    hits: u8,
}

/// A block, and the count when it was queued.
type Queued = (BlockNumber, u64);

impl BasesMemory {
    /// At most so much for each connection, and for all of them.
    pub fn new([each_bytes, total_bytes]: [u64; 2]) -> Arc<Self> {
        Arc::new(Self { each_bytes, total_bytes, ..Self::default() })
    }

    /// What is in use.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Relaxed)
    }

    fn take_slab(&self) -> bool {
        let taken =
            self.used_bytes.fetch_update(Relaxed, Relaxed, |used| used.checked_add(SLAB_BYTES).filter(|used| *used <= self.total_bytes));
        if taken.is_err() {
            self.is_wanted.store(true, Relaxed);
        }
        taken.is_ok()
    }
}

impl Bases {
    /// None yet.
    pub fn new(memory: Arc<BasesMemory>) -> Self {
        let mut bases = Self::default();
        bases.memory = memory;
        bases
    }

    /// What went for this block last, if that is known and the other side must have it still.
    pub fn get(&self, block: BlockNumber) -> Option<&[u8]> {
        let entry = self.entries.get(&block).filter(|entry| self.count - entry.number < MAX_BASE_AGE_BLOCKS)?;
        let slot = entry.slot as usize;
        let start = slot % SLAB_BLOCKS * BLOCK_BYTES;
        Some(&self.slabs[slot / SLAB_BLOCKS][start..start + BLOCK_BYTES])
    }

    /// This content went for the block.
    pub fn put(&mut self, block: BlockNumber, content: &[u8]) {
        (self.count, self.is_in_use) = (self.count + 1, true);
        let number = self.count;
        if let Some(entry) = self.entries.get_mut(&block) {
            (entry.number, entry.hits) = (number, MOST_HITS.min(entry.hits + 1));
            let slot = entry.slot;
            return self.fill(slot, content);
        }
        let Some(slot) = self.free_slot() else { return };
        self.fill(slot, content);
        self.entries.insert(block, Entry { slot, number, queued: number, hits: 0 });
        let was_seen = self.seen.iter_mut().any(|seen| seen.remove(block));
        if was_seen { &mut self.hot } else { &mut self.probation }.push_back((block, number));
        if self.probation.len() + self.hot.len() > 2 * self.slabs.len() * SLAB_BLOCKS {
            let entries = &self.entries;
            for queue in [&mut self.probation, &mut self.hot] {
                queue.retain(|queued| is_queued(entries, queued));
            }
        }
    }

    /// The other side may have something else for these blocks, or nothing.
    pub fn forget(&mut self, run: Run) {
        self.free.extend(self.entries.extract_if(run.blocks(), |_, _| true).map(|(_, entry)| entry.slot));
    }

    /// Whether it holds no memory.
    pub fn is_empty(&self) -> bool {
        self.slabs.is_empty()
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        *self = Self::new(self.memory.clone());
    }

    /// The same, if there was no use for it since the last call and somebody else needs it, or for a long time.
    pub fn forget_idle(&mut self) {
        self.idle_looks = if std::mem::take(&mut self.is_in_use) { 0 } else { self.idle_looks + 1 };
        let is_due = self.idle_looks >= IDLE_LOOKS || self.idle_looks > 0 && self.memory.is_wanted.swap(false, Relaxed);
        if is_due && !self.slabs.is_empty() {
            self.clear();
        }
    }

    fn fill(&mut self, slot: u32, content: &[u8]) {
        let (slab, start) = (slot as usize / SLAB_BLOCKS, slot as usize % SLAB_BLOCKS * BLOCK_BYTES);
        self.slabs[slab][start..start + BLOCK_BYTES].copy_from_slice(content);
    }

    fn free_slot(&mut self) -> Option<u32> {
        if self.free.is_empty() {
            let may_grow = (self.slabs.len() as u64 + 1) * SLAB_BYTES <= self.memory.each_bytes;
            if may_grow && self.memory.take_slab() {
                let first = (self.slabs.len() * SLAB_BLOCKS) as u32;
                self.slabs.push(vec![0; SLAB_BLOCKS * BLOCK_BYTES].into_boxed_slice());
                self.free.extend((first..first + SLAB_BLOCKS as u32).rev());
            } else {
                self.evict();
            }
        }
        self.free.pop()
    }

    /// Lets go of one block, if there is one. A step that lets go of none takes a hit from one: each was paid for by [`Self::put`].
    fn evict(&mut self) {
        while self.free.is_empty() {
            let on_probation = self.probation.len() >= self.entries.len().div_ceil(4) || self.hot.is_empty();
            let queue = if on_probation { &mut self.probation } else { &mut self.hot };
            let Some(queued) = queue.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&queued.0).filter(|entry| entry.queued == queued.1) else { continue };
            if entry.hits > 0 {
                entry.hits -= 1;
                self.hot.push_back(queued);
                continue;
            }
            if on_probation {
                self.remember(queued.0);
            }
            self.free.extend(self.entries.remove(&queued.0).map(|entry| entry.slot));
        }
    }

    fn remember(&mut self, block: BlockNumber) {
        let [now, before] = &mut self.seen;
        if now.len() >= (self.slabs.len() * SLAB_BLOCKS) as u64 {
            *before = std::mem::take(now);
        }
        now.insert(block);
    }
}

fn is_queued(entries: &BTreeMap<BlockNumber, Entry>, (block, queued): &Queued) -> bool {
    entries.get(block).is_some_and(|entry| entry.queued == *queued)
}

impl Drop for Bases {
    fn drop(&mut self) {
        self.memory.used_bytes.fetch_sub(self.slabs.len() as u64 * SLAB_BYTES, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn block(byte: u8) -> [u8; BLOCK_BYTES] {
        [byte; BLOCK_BYTES]
    }

    fn run(start: u32, len: u32) -> Run {
        Run::new(start, len).unwrap()
    }

    #[test]
    fn what_went_last_is_found_until_it_is_forgotten() {
        let mut bases = Bases::new(BasesMemory::new([MIB; 2]));
        bases.put(7, &block(1));
        bases.put(8, &block(2));
        bases.put(7, &block(3));
        assert_eq!([7, 8, 9].map(|number| bases.get(number).map(|base| base[0])), [Some(3), Some(2), None]);
        bases.forget(run(0, 8));
        assert_eq!([7, 8].map(|number| bases.get(number).map(|base| base[0])), [None, Some(2)]);
        bases.put(7, &block(4));
        assert_eq!(bases.get(7), Some(&block(4)[..]));
        bases.clear();
        assert_eq!(bases.get(7), None);
    }

    #[test]
    fn a_first_sync_passes_and_hot_blocks_stay() {
        let mut bases = Bases::new(BasesMemory::new([MIB; 2]));
        for round in 0..4 {
            (0..100).for_each(|number| bases.put(number, &block(round)));
        }
        for number in 1000..20_000 {
            bases.put(number, &block(9));
        }
        assert!((0..100).all(|number| bases.get(number) == Some(&block(3)[..])));
        assert_eq!(bases.memory.used_bytes(), MIB);
    }

    #[test]
    fn a_block_that_comes_back_soon_after_probation_is_hot() {
        let mut bases = Bases::new(BasesMemory::new([MIB; 2]));
        (0..300).for_each(|number| bases.put(number, &block(1)));
        assert_eq!(bases.get(5), None);
        bases.put(5, &block(2));
        (1000..3000).for_each(|number| bases.put(number, &block(1)));
        assert_eq!(bases.get(5), Some(&block(2)[..]));
    }

    #[test]
    fn what_went_too_long_ago_is_no_base() {
        let mut bases = Bases::new(BasesMemory::new([MIB; 2]));
        (0..3).for_each(|_| bases.put(5, &block(1)));
        (0..MAX_BASE_AGE_BLOCKS - 1).for_each(|_| bases.put(6, &block(1)));
        assert!(bases.get(5).is_some());
        bases.put(6, &block(1));
        assert!(bases.get(5).is_none() && bases.get(6).is_some());
    }

    #[test]
    fn blocks_that_are_forgotten_and_come_again_without_end_take_no_more_memory() {
        let mut bases = Bases::new(BasesMemory::new([MIB; 2]));
        for round in 0..100_000 {
            bases.put(round % 400, &block(1));
            bases.forget(run(round % 300, 1));
        }
        let queued = bases.probation.len() + bases.hot.len();
        assert!(queued <= 512 && bases.entries.len() <= 256, "{queued} numbers for {} blocks", bases.entries.len());
        assert_eq!(bases.memory.used_bytes(), MIB);
    }

    #[test]
    fn memory_is_taken_when_it_is_needed_and_shared_with_whoever_is_not_idle() {
        let memory = BasesMemory::new([MIB; 2]);
        let [mut one, mut other] = [(); 2].map(|()| Bases::new(memory.clone()));
        assert_eq!(memory.used_bytes(), 0);
        (0..1000).for_each(|number| one.put(number, &block(1)));
        other.put(5, &block(1));
        assert!(other.get(5).is_none() && memory.used_bytes() == MIB);
        one.forget_idle();
        assert_eq!(memory.used_bytes(), MIB, "it was in use");
        one.forget_idle();
        assert_eq!(memory.used_bytes(), 0);
        other.put(5, &block(1));
        assert!(other.get(5).is_some());
        drop(other);
        assert_eq!(memory.used_bytes(), 0);
        (0..10).for_each(|number| one.put(number, &block(1)));
        (0..IDLE_LOOKS).for_each(|_| one.forget_idle());
        assert_ne!(memory.used_bytes(), 0, "nobody else needs it");
        one.forget_idle();
        assert_eq!(memory.used_bytes(), 0);
    }

    #[test]
    fn without_memory_there_are_no_bases() {
        let mut bases = Bases::new(BasesMemory::new([0, MIB]));
        (0..10).for_each(|number| bases.put(number, &block(1)));
        assert!((0..10).all(|number| bases.get(number).is_none()));
    }
}
