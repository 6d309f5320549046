//! Two real halves of replication on simulated disks and a simulated link, under a clock and a dice that one seed drives.
//!
//! The engine, the intake, the activity log, the codec, the journal and the fold are the daemon's own. The simulator crashes either side
//! and the link at any step, and holds what the standby shows against the model: always the primary's volume at a cut, never an epoch
//! less than was acknowledged, and equal once everything healed.
//!
//! `SEED=n cargo test -p sim one_seed -- --nocapture` replays one run.

mod disk;
mod primary;

use bytes::Bytes;
use disk::{SimCatalogue, SimFiles, SimImage};
use primary::{Primary, VOLUME};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use replicator::catalogue::Catalogue;
use replicator::disk::BlockDevice;
use replicator::standby::{Place, Standby};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Envelope;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Size of the simulated volume before it grows: two extents of the activity log, so that one can be hot and the other not.
const VOLUME_BLOCKS: u32 = 1100;
/// Events of a run.
const STEPS: u32 = 600;
const JOURNAL_QUOTA_BYTES: u64 = 64 << 20;

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Epochs that the standby committed.
    pub commits: u64,
    /// Crashes of the primary, of the standby, and broken links.
    pub faults: u64,
    /// Times that the standby's state was held against the cuts.
    pub checks: u64,
}

struct World {
    rng: StdRng,
    now_ms: u64,
    primary: Primary,
    standby: Standby<SimFiles>,
    files: SimFiles,
    image: Arc<SimImage>,
    catalogue: Arc<SimCatalogue>,
    connected: bool,
    to_standby: VecDeque<Bytes>,
    to_primary: VecDeque<Bytes>,
    acknowledged: Epoch,
    tally: Tally,
}

/// Runs one seed to its end; panics where a rule is broken.
pub fn run(seed: u64) -> Tally {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.heal();
    world.tally
}

fn open_standby(files: &SimFiles, image: &Arc<SimImage>, catalogue: &Arc<SimCatalogue>) -> Standby<SimFiles> {
    let place = Place::load(VOLUME, &**catalogue).expect("a readable place").expect("a place");
    let catalogue: Arc<dyn Catalogue> = catalogue.clone();
    Standby::open(place, files.clone(), JOURNAL_QUOTA_BYTES, image.clone(), catalogue).expect("a journal with every acknowledged epoch")
}

impl World {
    fn new(seed: u64) -> Self {
        let catalogue = Arc::new(SimCatalogue::default());
        let (image, files) = (SimImage::new(VOLUME_BLOCKS), SimFiles::default());
        let place = Place::blank(VOLUME, Id([8; 16]), Lineage::first(Id([2; 16])), image.size_bytes());
        place.store(&*catalogue, replicator::catalogue::Persist::Synced).expect("a writable catalogue");
        let standby = open_standby(&files, &image, &catalogue);
        let primary = Primary::start(SimImage::new(VOLUME_BLOCKS), Arc::default(), 1, None, BTreeMap::new());
        Self {
            rng: StdRng::seed_from_u64(seed),
            now_ms: 1,
            primary,
            standby,
            files,
            image,
            catalogue,
            connected: false,
            to_standby: VecDeque::new(),
            to_primary: VecDeque::new(),
            acknowledged: 0,
            tally: Tally::default(),
        }
    }

    fn step(&mut self) {
        self.now_ms += self.rng.random_range(1..20);
        match self.rng.random_range(0..1000) {
            0..300 => self.primary.begin_write(&mut self.rng),
            300..600 => self.primary.progress_writes(&mut self.rng),
            600..970 => self.move_data(),
            970..975 => self.primary.grow(&mut self.rng),
            975..983 => self.primary.cool(),
            983..988 => self.break_link(),
            988..993 => self.crash_standby(),
            993..997 => self.crash_primary(),
            _ => {
                self.crash_standby();
                self.crash_primary();
            }
        }
    }

    /// The sender works, and each direction of the link delivers a few frames.
    fn move_data(&mut self) {
        if !self.connected {
            self.connected = true;
            self.primary.connect(self.now_ms);
        }
        let steps = self.rng.random_range(1..6);
        let frames = self.primary.run(self.now_ms, steps);
        self.to_standby.extend(frames);
        for _ in 0..self.rng.random_range(0..6) {
            let Some(frame) = self.to_standby.pop_front() else { break };
            let answer = self.standby.handle_frame(frame).unwrap_or_else(|error| panic!("the primary keeps to the protocol: {error}"));
            let generation = self.standby.generation();
            self.to_primary.extend(answer.map(|message| Envelope { generation, message }.encode()));
        }
        if self.rng.random_bool(0.3) {
            self.standby.fold_one().expect("a writable image");
        }
        for _ in 0..self.rng.random_range(0..4) {
            let Some(frame) = self.to_primary.pop_front() else { break };
            let envelope = Envelope::decode(frame).expect("a whole message");
            self.primary.receive(envelope.message, self.now_ms);
        }
        if let Some(known) = self.primary.sender.known() {
            self.tally.commits += known.acked - self.acknowledged.min(known.acked);
            self.acknowledged = self.acknowledged.max(known.acked);
        }
    }

    fn break_link(&mut self) {
        self.tally.faults += 1;
        self.to_standby.clear();
        self.to_primary.clear();
        if self.connected {
            self.connected = false;
            self.primary.disconnect();
            self.standby.handle_disconnected();
        }
        // Whatever was under way, the closing epoch must be able to freeze without a link.
        self.primary.run(self.now_ms, 2);
    }

    fn crash_standby(&mut self) {
        self.break_link();
        self.files.crash(&mut self.rng);
        self.image.crash(&mut self.rng);
        // The record of a standby's size is the one that it was made with.
        self.image.reopen(VOLUME_BLOCKS);
        self.catalogue.crash(&mut self.rng);
        self.standby = open_standby(&self.files, &self.image, &self.catalogue);
        self.check_standby();
    }

    fn crash_primary(&mut self) {
        self.break_link();
        let (image, catalogue) = (self.primary.image.clone(), self.primary.catalogue.clone());
        image.crash(&mut self.rng);
        catalogue.crash(&mut self.rng);
        // The record of the last acknowledged epoch is written lazily: it may be any older one.
        let known = self.primary.sender.known().filter(|_| self.rng.random_bool(0.7));
        let cuts = std::mem::take(&mut self.primary.cuts);
        self.primary = Primary::start(image, catalogue, self.primary.next_epoch(), known, cuts);
    }

    /// What a promotion would show is the primary's volume at the committed cut.
    fn check_standby(&mut self) {
        let (epoch, _) = self.standby.settle().expect("a writable image");
        assert!(epoch >= self.acknowledged, "epoch {epoch} is shown, {} was acknowledged", self.acknowledged);
        if let Some((size_bytes, cut)) = self.primary.cuts.get(&epoch) {
            assert_eq!(self.standby.place().size_bytes, *size_bytes, "the size at the cut of epoch {epoch}");
            assert!(*cut == self.image.content(), "the standby does not show the cut of epoch {epoch}");
            self.tally.checks += 1;
        } else {
            assert_eq!(epoch, 0, "the standby shows an epoch that was never cut");
        }
        self.standby = open_standby(&self.files, &self.image, &self.catalogue);
    }

    /// No more faults and no more writes: both sides become equal.
    fn heal(&mut self) {
        self.primary.tell_size();
        for _ in 0..20_000 {
            self.now_ms += 10;
            self.primary.progress_writes(&mut self.rng);
            self.move_data();
            let told = self.standby.place().size_bytes == self.primary.image.size_bytes();
            if told && self.primary.is_drained() && self.to_primary.is_empty() {
                break;
            }
        }
        assert!(self.primary.is_drained(), "everything is acknowledged once nothing fails");
        self.break_link();
        self.check_standby();
        assert_eq!(self.standby.place().size_bytes, self.primary.image.size_bytes(), "the standby has grown, too");
        assert!(self.image.content() == self.primary.image.content(), "both sides are equal once everything healed");
    }
}
