//! Which blocks changed in which epoch: the part of replication that the request path touches.
//!
//! A write calls [`Tracker::begin_write`] before it is submitted and [`Tracker::finish_write`] after it completed; both cost a few
//! atomic operations. One thread, the *owner* (the volume's sender, or nobody), cuts epochs and drains the maps.
//!
//! ```text
//!            cut                   count of writers zero           every block taken
//!   open ──────────► closing ──────────────────────────► frozen ──────────────────► shipped
//! ```
//!
//! Invariants
//! - A block's bit in the open map is set before its write is submitted, so a write of the next epoch that finds the bit in the closing
//!   or frozen map knows that old content must be kept first.
//! - At most one epoch is closing or frozen: two maps, used in turn by the epoch's parity, are enough.
//! - [`Tracker::take_open`] never takes a block with a write in flight: what the owner reads after it is the content of a finished write,
//!   and a write that starts later sets the bit again.

mod dirty_map;

pub use dirty_map::DirtyMap;

use crate::block::{Run, runs};
use roaring::RoaringBitmap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

/// Number of an epoch within a volume; never used twice.
pub type Epoch = u64;

/// Blocks that share one counter of writes in flight: 256 KiB of volume.
const REGION_BLOCKS: u32 = 64;
const REGION_SLOTS: usize = 4096;

/// A write under way. Hand it back with [`Tracker::finish_write`].
#[derive(Debug)]
#[must_use = "an unfinished write keeps its epoch from closing"]
pub struct Write {
    epoch: Epoch,
    run: Run,
}

impl Write {
    /// The epoch that the write belongs to.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The blocks that the write touches.
    pub fn run(&self) -> Run {
        self.run
    }
}

/// What a write has to do before it is submitted.
#[derive(Debug)]
pub enum Begun {
    /// Nothing.
    Clear(Write),
    /// Blocks of the closing or frozen epoch lie in its way: once that epoch has closed, their content must be kept.
    Frozen(Write),
}

/// See the module's documentation.
pub struct Tracker {
    open: AtomicU64,
    /// Nobody joins an epoch while other volumes of the group are cut at the same instant.
    held: AtomicBool,
    writers: [AtomicU64; 2],
    maps: [DirtyMap; 2],
    /// Time of the first write of the epoch, 0 if it has none; by parity.
    oldest_ms: [AtomicU64; 2],
    regions: Box<[AtomicU32]>,
    now_ms: AtomicU64,
}

fn parity(epoch: Epoch) -> usize {
    (epoch & 1) as usize
}

impl Tracker {
    /// A tracker whose open epoch is `first`.
    pub fn new(first: Epoch) -> Self {
        Self {
            open: AtomicU64::new(first),
            held: AtomicBool::new(false),
            writers: Default::default(),
            maps: Default::default(),
            oldest_ms: Default::default(),
            regions: (0..REGION_SLOTS).map(|_| AtomicU32::new(0)).collect(),
            now_ms: AtomicU64::new(1),
        }
    }

    /// Owner: forgets all marks and opens `first`. No write may be under way and none begin.
    pub fn restart(&self, first: Epoch) {
        assert!(self.is_quiet(), "a tracker restarts only while nobody writes");
        self.maps.iter().for_each(DirtyMap::clear_all);
        self.oldest_ms.iter().for_each(|oldest| oldest.store(0, SeqCst));
        self.open.store(first, SeqCst);
    }

    /// Tells the time, in milliseconds since any fixed point, that writes from now on are stamped with.
    pub fn set_now(&self, now_ms: u64) {
        self.now_ms.store(now_ms.max(1), SeqCst);
    }

    /// The open epoch.
    pub fn open_epoch(&self) -> Epoch {
        self.open.load(SeqCst)
    }

    /// Joins the open epoch and marks the blocks. Waits for a [hold](Self::hold) to end.
    pub fn begin_write(&self, run: Run) -> Begun {
        loop {
            match self.try_begin_write(run) {
                Some(begun) => return begun,
                None => std::hint::spin_loop(),
            }
        }
    }

    /// Joins the open epoch and marks the blocks; `None` while the epoch is [held](Self::hold).
    pub fn try_begin_write(&self, run: Run) -> Option<Begun> {
        let epoch = self.enter()?;
        for slot in slots(run) {
            self.regions[slot].fetch_add(1, SeqCst);
        }
        let oldest = &self.oldest_ms[parity(epoch)];
        if oldest.load(SeqCst) == 0 {
            let _ = oldest.compare_exchange(0, self.now_ms.load(SeqCst), SeqCst, SeqCst);
        }
        self.maps[parity(epoch)].set(run);
        let write = Write { epoch, run };
        Some(if self.maps[parity(epoch + 1)].intersects(run) { Begun::Frozen(write) } else { Begun::Clear(write) })
    }

    /// The write is on the disk, or failed: both leave its blocks marked.
    pub fn finish_write(&self, write: Write) {
        for slot in slots(write.run) {
            self.regions[slot].fetch_sub(1, SeqCst);
        }
        self.writers[parity(write.epoch)].fetch_sub(1, SeqCst);
    }

    /// Counts the caller into the open epoch: load, count, load again, move if it changed.
    fn enter(&self) -> Option<Epoch> {
        loop {
            let epoch = self.open.load(SeqCst);
            self.writers[parity(epoch)].fetch_add(1, SeqCst);
            let (held, open) = (self.held.load(SeqCst), self.open.load(SeqCst));
            if open == epoch && !held {
                return Some(epoch);
            }
            self.writers[parity(epoch)].fetch_sub(1, SeqCst);
            if held {
                return None;
            }
        }
    }

    /// Owner of a group's cut: no write joins an epoch from now on, until [`Self::release`].
    pub fn hold(&self) {
        self.held.store(true, SeqCst);
    }

    /// Ends a [`Self::hold`].
    pub fn release(&self) {
        self.held.store(false, SeqCst);
    }

    /// Owner: closes the open epoch to new writes and returns it.
    ///
    /// # Panics
    /// If the epoch before still has frozen blocks: the owner ships or thaws them first.
    pub fn cut(&self) -> Epoch {
        let epoch = self.open_epoch();
        assert!(self.maps[parity(epoch + 1)].is_empty(), "cut while the epoch before is frozen");
        self.oldest_ms[parity(epoch + 1)].store(0, SeqCst);
        self.open.store(epoch + 1, SeqCst);
        epoch
    }

    /// Whether every write of the epoch before the open one has finished.
    pub fn is_closed(&self) -> bool {
        self.writers[parity(self.open_epoch() + 1)].load(SeqCst) == 0
    }

    /// Whether no write is under way at all.
    pub fn is_quiet(&self) -> bool {
        self.writers.iter().all(|writers| writers.load(SeqCst) == 0)
    }

    /// The blocks of the epoch before the open one that are neither shipped nor kept.
    pub fn frozen(&self) -> &DirtyMap {
        &self.maps[parity(self.open_epoch() + 1)]
    }

    /// The blocks of the open epoch that are not shipped.
    pub fn open(&self) -> &DirtyMap {
        &self.maps[parity(self.open_epoch())]
    }

    /// Time of the first write of the open epoch.
    pub fn open_oldest_ms(&self) -> Option<u64> {
        nonzero(self.oldest_ms[parity(self.open_epoch())].load(SeqCst))
    }

    /// Time of the first write of the epoch before.
    pub fn frozen_oldest_ms(&self) -> Option<u64> {
        nonzero(self.oldest_ms[parity(self.open_epoch() + 1)].load(SeqCst))
    }

    /// Owner: adds blocks to the open epoch, changed since `oldest_ms` if that is known.
    pub fn mark(&self, blocks: &RoaringBitmap, oldest_ms: Option<u64>) {
        self.open().set_all(blocks);
        if let Some(time) = oldest_ms {
            let oldest = &self.oldest_ms[parity(self.open_epoch())];
            let earlier = |now: u64| (now == 0 || time < now).then_some(time.max(1));
            let _ = oldest.fetch_update(SeqCst, SeqCst, earlier);
        }
    }

    /// Owner: gives up the frozen epoch: nothing of it needs to be kept from now on. Its blocks were [marked](Self::mark) before.
    pub fn thaw(&self) {
        self.frozen().clear_all();
    }

    /// Owner: takes up to `max_blocks` blocks of the open epoch at or after `from` in order, but none with a write in flight.
    /// Returns the runs and where to go on; `None` there says that the end of the volume was reached.
    pub fn take_open(&self, from: u32, max_blocks: u32) -> (Vec<Run>, Option<u32>) {
        let map = self.open();
        let mut taken = RoaringBitmap::new();
        let mut at = Some(from);
        let mut looked_at = 0;
        while looked_at < max_blocks {
            let Some(block) = at.and_then(|at| map.next(at)) else {
                at = None;
                break;
            };
            looked_at += 1;
            at = block.checked_add(1);
            if map.clear(block) {
                if self.regions[slot(block)].load(SeqCst) == 0 {
                    taken.insert(block);
                } else {
                    map.set(Run { start: block, len: 1 });
                }
            }
        }
        (runs(&taken).collect(), at)
    }
}

fn nonzero(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

fn slot(block: u32) -> usize {
    (block / REGION_BLOCKS) as usize % REGION_SLOTS
}

/// The counters of a run's regions. A run wider than all of them touches some twice, symmetrically.
fn slots(run: Run) -> impl Iterator<Item = usize> {
    (run.start / REGION_BLOCKS..=(run.end() - 1) / REGION_BLOCKS).map(|region| region as usize % REGION_SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u32, len: u32) -> Run {
        Run::new(start, len).unwrap()
    }

    fn begin(tracker: &Tracker, start: u32, len: u32) -> Write {
        match tracker.begin_write(run(start, len)) {
            Begun::Clear(write) | Begun::Frozen(write) => write,
        }
    }

    /// Lesson: a cut under I/O is one atomic switch (ceph#52109).
    #[test]
    fn an_epoch_closes_when_its_last_write_finished() {
        let tracker = Tracker::new(7);
        let write = begin(&tracker, 0, 4);
        assert_eq!(tracker.cut(), 7);
        assert!(!tracker.is_closed());
        assert!(matches!(tracker.begin_write(run(3, 2)), Begun::Frozen(later) if later.epoch() == 8));
        assert!(matches!(tracker.begin_write(run(9, 1)), Begun::Clear(later) if later.epoch() == 8));
        tracker.finish_write(write);
        assert!(tracker.is_closed());
        assert_eq!(tracker.frozen().len(), 4);
        assert_eq!(tracker.open().len(), 3);
    }

    /// Lesson: a write races the resync of its block (windrbd#26).
    #[test]
    fn a_block_with_a_write_in_flight_is_not_taken() {
        let tracker = Tracker::new(1);
        let write = begin(&tracker, 10, 2);
        tracker.mark(&RoaringBitmap::from_iter([500]), None);
        assert_eq!(tracker.take_open(0, 100), (vec![run(500, 1)], None));
        assert_eq!(tracker.open().len(), 2);
        tracker.finish_write(write);
        assert_eq!(tracker.take_open(0, 1), (vec![run(10, 1)], Some(11)));
        let again = begin(&tracker, 10, 1);
        assert!(tracker.open().contains(10), "a write after the taking marks the block again");
        tracker.finish_write(again);
    }

    #[test]
    fn the_oldest_write_of_an_abandoned_epoch_stays_the_oldest() {
        let tracker = Tracker::new(1);
        tracker.set_now(50);
        tracker.finish_write(begin(&tracker, 1, 1));
        tracker.cut();
        tracker.set_now(60);
        tracker.finish_write(begin(&tracker, 2, 1));
        assert_eq!((tracker.frozen_oldest_ms(), tracker.open_oldest_ms()), (Some(50), Some(60)));
        tracker.mark(&tracker.frozen().snapshot(), tracker.frozen_oldest_ms());
        tracker.thaw();
        assert_eq!((tracker.frozen().len(), tracker.open().len(), tracker.open_oldest_ms()), (0, 2, Some(50)));
    }
}
