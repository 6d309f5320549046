//! A standby's own marks of a volume, and the one word that says which there are.

use super::{DirtyMap, Epoch};
use crate::block::{Run, runs};
use roaring::RoaringBitmap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Most standbys of a volume.
pub const MAX_LANES: usize = 4;

/// Blocks of a region that is noted as away: 4 MiB of volume.
const AWAY_BLOCKS: u32 = 1024;

/// Which of a volume's standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneId(u8);

impl LaneId {
    /// The one that is always there.
    pub const FIRST: Self = Self(0);

    /// All that there can be.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..MAX_LANES as u8).map(Self)
    }

    /// Its place in a list of all.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// From the lowest bit: which map of each lane is open, which lanes there are, the open epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(pub u64);

const EPOCH_SHIFT: usize = 2 * MAX_LANES;

impl Word {
    pub fn first(epoch: Epoch) -> Self {
        Self(epoch << EPOCH_SHIFT).with(LaneId::FIRST)
    }

    pub fn epoch(self) -> Epoch {
        self.0 >> EPOCH_SHIFT
    }

    pub fn has(self, lane: LaneId) -> bool {
        self.0 >> (MAX_LANES + lane.index()) & 1 == 1
    }

    pub fn lanes(self) -> impl Iterator<Item = LaneId> {
        LaneId::all().filter(move |lane| self.has(*lane))
    }

    pub fn open_map(self, lane: LaneId) -> usize {
        (self.0 >> lane.index() & 1) as usize
    }

    pub fn with(self, lane: LaneId) -> Self {
        Self(self.0 | 1 << (MAX_LANES + lane.index()))
    }

    pub fn without(self, lane: LaneId) -> Self {
        Self(self.0 & !(1 << (MAX_LANES + lane.index())))
    }

    pub fn turned(self, lane: LaneId) -> Self {
        Self(self.0 ^ 1 << lane.index())
    }

    pub fn next(self) -> Self {
        Self(self.0 + (1 << EPOCH_SHIFT))
    }
}

/// What changed, as one standby has to know it.
#[derive(Default)]
pub(super) struct Marks {
    pub maps: [DirtyMap; 2],
    /// Time of the first write of each map, 0 if it has none.
    pub oldest_ms: [AtomicU64; 2],
    /// The first epoch of the open map.
    pub first_open: AtomicU64,
    /// Regions of which the sender may have blocks that are in neither map.
    away: DirtyMap,
}

impl Marks {
    /// Forgets everything; what changes from `first` on is in the open map.
    pub fn begin(&self, first: Epoch) {
        self.maps.iter().for_each(DirtyMap::clear_all);
        self.oldest_ms.iter().for_each(|oldest| oldest.store(0, SeqCst));
        self.away.clear_all();
        self.first_open.store(first, SeqCst);
    }

    pub fn note_away(&self, blocks: impl Iterator<Item = Run>) {
        blocks.for_each(|run| self.away.set(regions(run)));
    }

    pub fn settle_away(&self, in_doubt: &RoaringBitmap) {
        let mut still = RoaringBitmap::new();
        runs(in_doubt).map(regions).for_each(|run| _ = still.insert_range(run.blocks()));
        for region in self.away.snapshot() - still {
            self.away.clear(region);
        }
    }

    pub fn is_away(&self, run: Run) -> bool {
        self.away.intersects(regions(run))
    }
}

fn regions(run: Run) -> Run {
    let first = run.start / AWAY_BLOCKS;
    Run { start: first, len: (run.end() - 1) / AWAY_BLOCKS - first + 1 }
}

/// A volume with one standby pays for one lane.
pub(super) struct Lanes([OnceLock<Box<Marks>>; MAX_LANES]);

impl Lanes {
    pub fn new(first: Epoch) -> Self {
        let lanes = Self(Default::default());
        lanes.make(LaneId::FIRST);
        lanes.get(LaneId::FIRST).begin(first);
        lanes
    }

    pub fn make(&self, lane: LaneId) {
        self.0[lane.index()].get_or_init(Box::default);
    }

    pub fn get(&self, lane: LaneId) -> &Marks {
        self.0[lane.index()].get().expect("a lane is made before anybody has its number")
    }

    pub fn all(&self) -> impl Iterator<Item = (LaneId, &Marks)> {
        LaneId::all().filter_map(|lane| Some((lane, &**self.0[lane.index()].get()?)))
    }
}
