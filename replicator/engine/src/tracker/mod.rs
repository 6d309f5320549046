//! Which blocks changed in which epoch: the part of replication that the request path touches.
//!
//! A write calls [`Tracker::begin_write`] before it is submitted and [`Tracker::finish_write`] after it completed; both cost a few
//! atomic operations. Each standby of the volume has a *lane*: two maps of its own, and one thread, the lane's *owner* (its sender, or
//! nobody), which cuts epochs and drains them.
//!
//! ```text
//!            cut                   count of writers zero           every block taken
//!   open ──────────► closing ──────────────────────────► frozen ──────────────────► shipped
//!
//!   epochs   1   2   3   4   5   6   7      one sequence for all lanes: each cut closes the open epoch
//!   near     ────┘───┘       └───┘───┘      a lane's cut turns its own maps alone: what it freezes is
//!   far              └───────────┘          all that changed since its last cut, under the newest number
//! ```
//!
//! Invariants
//! - The open epoch, which lanes there are and which map of each is open are one atomic word: a write learns all of it at one instant.
//! - A block's bit is set in every lane's open map before its write is submitted, so a write of the next epoch that finds the bit in a
//!   closing or frozen map knows that old content must be kept first.
//! - At most one epoch is closing: the next cut, whoever makes it, waits until the writes of the one before have finished. Two counts of
//!   writers, used in turn by the epoch's parity, are enough; and so are two maps a lane, of which the frozen one is empty before its next
//!   cut.
//! - [`Tracker::take_open`] never takes a block with a write in flight: what the owner reads after it is the content of a finished write,
//!   and a write that starts later sets the bit again.
//! - Before a block leaves a lane's maps for its sender, its region is noted as *away*: who looks at the maps first and at the notes
//!   afterwards does not miss it.

mod dirty_map;
mod lanes;

pub use dirty_map::DirtyMap;
pub use lanes::{LaneId, MAX_LANES};

use crate::block::{Run, runs};
use lanes::{Lanes, Marks, Word};
use roaring::RoaringBitmap;
use std::sync::Arc;
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
    word: Word,
    run: Run,
}

impl Write {
    /// The epoch that the write belongs to.
    pub fn epoch(&self) -> Epoch {
        self.word.epoch()
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
    /// Blocks of a closing or frozen epoch lie in its way: once that epoch has closed, their content must be kept.
    Frozen(Write),
}

struct Shared {
    word: AtomicU64,
    /// Nobody joins an epoch while other volumes of the group are cut at the same instant.
    held: AtomicBool,
    /// By parity of the epoch.
    writers: [AtomicU64; 2],
    lanes: Lanes,
    regions: Box<[AtomicU32]>,
    now_ms: AtomicU64,
}

/// The volume's tracker, as one of its lanes sees it. See the module's documentation.
#[derive(Clone)]
pub struct Tracker {
    shared: Arc<Shared>,
    lane: LaneId,
}

fn parity(epoch: Epoch) -> usize {
    (epoch & 1) as usize
}

impl Tracker {
    /// A tracker whose open epoch is `first`, with its first lane.
    pub fn new(first: Epoch) -> Self {
        let shared = Shared {
            word: AtomicU64::new(Word::first(first).0),
            held: AtomicBool::new(false),
            writers: Default::default(),
            lanes: Lanes::new(first),
            regions: (0..REGION_SLOTS).map(|_| AtomicU32::new(0)).collect(),
            now_ms: AtomicU64::new(1),
        };
        Self { shared: Arc::new(shared), lane: LaneId::FIRST }
    }

    /// The same tracker, as another lane sees it. Nothing is marked there before [`Self::begin_lane`].
    pub fn lane(&self, lane: LaneId) -> Self {
        self.shared.lanes.make(lane);
        Self { shared: self.shared.clone(), lane }
    }

    /// Forgets all marks of all lanes, leaves the first lane alone, and opens `first`. No write may be under way and none begin.
    pub fn restart(&self, first: Epoch) {
        assert!(self.is_quiet(), "a tracker restarts only while nobody writes");
        self.shared.lanes.all().for_each(|(_, marks)| marks.begin(first));
        self.shared.word.store(Word::first(first).0, SeqCst);
    }

    /// From now on each write leaves its mark in this lane, too: an epoch is cut for it, which is returned. What was written by the time
    /// that this epoch [has closed](Self::has_closed) is the caller's to mark. The epoch before [is closed](Self::is_closed).
    pub fn begin_lane(&self) -> Epoch {
        let word = self.word();
        if word.has(self.lane) {
            // No write may be under way that saw the lane before.
            self.shared.word.store(word.without(self.lane).0, SeqCst);
        }
        self.marks().begin(word.epoch() + 1);
        self.shared.word.store(word.with(self.lane).next().0, SeqCst);
        word.epoch()
    }

    /// No write leaves a mark in this lane any more.
    pub fn end_lane(&self) {
        self.shared.word.store(self.word().without(self.lane).0, SeqCst);
    }

    /// Whether writes leave their mark in this lane.
    pub fn is_marked(&self) -> bool {
        self.word().has(self.lane)
    }

    /// Tells the time, in milliseconds since any fixed point, that writes from now on are stamped with.
    pub fn set_now(&self, now_ms: u64) {
        self.shared.now_ms.store(now_ms.max(1), SeqCst);
    }

    /// The open epoch.
    pub fn open_epoch(&self) -> Epoch {
        self.word().epoch()
    }

    /// The first epoch that this lane has not cut: what changed since then is in its open map.
    pub fn first_open(&self) -> Epoch {
        self.marks().first_open.load(SeqCst)
    }

    /// Joins the open epoch and marks the blocks in every lane. Waits for a [hold](Self::hold) to end.
    pub fn begin_write(&self, run: Run) -> Begun {
        loop {
            match self.try_begin_write(run) {
                Some(begun) => return begun,
                None => std::hint::spin_loop(),
            }
        }
    }

    /// Joins the open epoch and marks the blocks in every lane; `None` while the epoch is [held](Self::hold).
    pub fn try_begin_write(&self, run: Run) -> Option<Begun> {
        let word = self.enter()?;
        for slot in slots(run) {
            self.shared.regions[slot].fetch_add(1, SeqCst);
        }
        let mut over_frozen = false;
        for lane in word.lanes() {
            let (marks, open) = (self.shared.lanes.get(lane), word.open_map(lane));
            let oldest = &marks.oldest_ms[open];
            if oldest.load(SeqCst) == 0 {
                let _ = oldest.compare_exchange(0, self.shared.now_ms.load(SeqCst), SeqCst, SeqCst);
            }
            marks.maps[open].set(run);
            over_frozen |= marks.maps[1 - open].intersects(run);
        }
        let write = Write { word, run };
        Some(if over_frozen { Begun::Frozen(write) } else { Begun::Clear(write) })
    }

    /// The write is on the disk, or failed: both leave its blocks marked.
    pub fn finish_write(&self, write: Write) {
        for slot in slots(write.run) {
            self.shared.regions[slot].fetch_sub(1, SeqCst);
        }
        self.shared.writers[parity(write.epoch())].fetch_sub(1, SeqCst);
    }

    /// Counts the caller into the open epoch: load, count, load again, move if it changed.
    fn enter(&self) -> Option<Word> {
        loop {
            let word = self.word();
            let writers = &self.shared.writers[parity(word.epoch())];
            writers.fetch_add(1, SeqCst);
            let (held, now) = (self.shared.held.load(SeqCst), self.word());
            if now == word && !held {
                return Some(word);
            }
            writers.fetch_sub(1, SeqCst);
            if held {
                return None;
            }
        }
    }

    /// Owner of a group's cut: no write joins an epoch from now on, until [`Self::release`].
    pub fn hold(&self) {
        self.shared.held.store(true, SeqCst);
    }

    /// Ends a [`Self::hold`].
    pub fn release(&self) {
        self.shared.held.store(false, SeqCst);
    }

    /// Owner: closes the open epoch to new writes and returns it; what changed in this lane since its last cut is its content. One lane at
    /// a time, and once the epoch before [is closed](Self::is_closed).
    ///
    /// # Panics
    /// If the lane still has frozen blocks: its owner ships or thaws them first.
    pub fn cut(&self) -> Epoch {
        let (word, marks) = (self.word(), self.marks());
        assert!(self.frozen().is_empty(), "cut while the epoch before is frozen");
        marks.oldest_ms[1 - word.open_map(self.lane)].store(0, SeqCst);
        marks.first_open.store(word.epoch() + 1, SeqCst);
        self.shared.word.store(word.turned(self.lane).next().0, SeqCst);
        word.epoch()
    }

    /// Whether every write of the epoch before the open one has finished.
    pub fn is_closed(&self) -> bool {
        self.shared.writers[parity(self.open_epoch() + 1)].load(SeqCst) == 0
    }

    /// Whether every write of this epoch, which was cut, has finished.
    pub fn has_closed(&self, epoch: Epoch) -> bool {
        // The next one was not cut before.
        self.open_epoch() > epoch + 1 || self.is_closed()
    }

    /// Whether no write is under way at all.
    pub fn is_quiet(&self) -> bool {
        self.shared.writers.iter().all(|writers| writers.load(SeqCst) == 0)
    }

    /// Whether this lane was cut since the write began: then nothing is frozen that was in the write's way.
    pub fn has_turned(&self, write: &Write) -> bool {
        !write.word.has(self.lane) || write.word.open_map(self.lane) != self.word().open_map(self.lane)
    }

    /// Every lane that writes leave their mark in.
    pub fn lanes(&self) -> impl Iterator<Item = Self> + '_ {
        self.word().lanes().map(|lane| Self { shared: self.shared.clone(), lane })
    }

    /// The blocks of the lane's last cut that are neither shipped nor kept.
    pub fn frozen(&self) -> &DirtyMap {
        &self.marks().maps[1 - self.word().open_map(self.lane)]
    }

    /// The blocks that changed since the lane's last cut and are not shipped.
    pub fn open(&self) -> &DirtyMap {
        &self.marks().maps[self.word().open_map(self.lane)]
    }

    /// Time of the first write since the lane's last cut.
    pub fn open_oldest_ms(&self) -> Option<u64> {
        nonzero(self.marks().oldest_ms[self.word().open_map(self.lane)].load(SeqCst))
    }

    /// Time of the first write of what was cut last.
    pub fn frozen_oldest_ms(&self) -> Option<u64> {
        nonzero(self.marks().oldest_ms[1 - self.word().open_map(self.lane)].load(SeqCst))
    }

    /// Owner: adds blocks to the open epoch, changed since `oldest_ms` if that is known.
    pub fn mark(&self, blocks: &RoaringBitmap, oldest_ms: Option<u64>) {
        self.open().set_all(blocks);
        if let Some(time) = oldest_ms {
            let oldest = &self.marks().oldest_ms[self.word().open_map(self.lane)];
            let earlier = |now: u64| (now == 0 || time < now).then_some(time.max(1));
            let _ = oldest.fetch_update(SeqCst, SeqCst, earlier);
        }
    }

    /// Owner: gives up the frozen epoch: nothing of it needs to be kept from now on. Its blocks were [marked](Self::mark) before.
    pub fn thaw(&self) {
        self.frozen().clear_all();
    }

    /// Owner: what changed in the epoch that was cut and has closed. From now on anybody may take its blocks out of the map.
    pub fn freeze(&self) -> RoaringBitmap {
        let changed = self.frozen().snapshot();
        self.marks().note_away(runs(&changed));
        changed
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
            self.marks().note_away(std::iter::once(Run { start: block, len: 1 }));
            if map.clear(block) {
                if self.shared.regions[slot(block)].load(SeqCst) == 0 {
                    taken.insert(block);
                } else {
                    map.set(Run { start: block, len: 1 });
                }
            }
        }
        (runs(&taken).collect(), at)
    }

    /// Owner: its sender has these blocks, which are in neither map.
    pub fn note_away(&self, blocks: &RoaringBitmap) {
        self.marks().note_away(runs(blocks));
    }

    /// Owner: forgets of which regions its sender has nothing any more; `in_doubt` is what it has. Whoever relies on the answer of
    /// [`Self::is_clean`] keeps this from running meanwhile.
    pub fn settle_away(&self, in_doubt: &RoaringBitmap) {
        self.marks().settle_away(in_doubt);
    }

    /// Whether no lane has a block of `run` in its maps or away with its sender.
    pub fn is_clean(&self, run: Run) -> bool {
        let is_clean = |marks: &Marks| marks.maps.iter().all(|map| !map.intersects(run)) && !marks.is_away(run);
        self.word().lanes().all(|lane| is_clean(self.shared.lanes.get(lane)))
    }

    fn word(&self) -> Word {
        Word(self.shared.word.load(SeqCst))
    }

    fn marks(&self) -> &Marks {
        self.shared.lanes.get(self.lane)
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
