//! The primary's side: the real intake, what it has for each of its standbys, and a guest that writes.

mod acknowledging;
mod cuts;
mod guest;
mod replica;

pub use acknowledging::recorded as recorded_promise;
pub use guest::Scene;
pub use replica::{Base, Peer, Replica, known_key};

use crate::plant::Plant;
use crate::standby::VOLUME;
use crate::storage::Storage;
use acknowledging::Telling;
use cuts::Cuts;
use guest::Content;
use replicator::disk::BlockDevice;
use replicator::intake::{ActivityLog, Intake, KeptLimits, LastCut, Parked, extent_blocks};
use replicator::primary::memory::{self, EpochNumbers};
use replicator_engine::acknowledgement::{Promise, Rules};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, block_count};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::sender::Known;
use replicator_engine::tracker::{Epoch, LaneId, Write};
use replicator_engine::wire::Message;
use roaring::RoaringBitmap;
use std::io;
use std::sync::Arc;

const ACTIVITY_KEY: &[u8] = b"al/";
/// Old content that is kept for a standby: little, and no spill. Overflow is part of the simulation.
const KEPT_BYTES: u64 = 8 * BLOCK_BYTES as u64;

/// Why a primary ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The standby will not have it.
    Refused,
    /// The standby breaks the protocol, in this way.
    Protocol(&'static str),
    /// Its own disk failed.
    Disk,
}

/// What a standby lacks, and what it acknowledged.
pub struct Remains {
    pub peer: Peer,
    pub changed: RoaringBitmap,
    pub known: Option<Known>,
}

/// See the module's documentation.
pub struct Primary {
    storage: Storage,
    lineage: Lineage,
    intake: Arc<Intake>,
    epochs: EpochNumbers,
    /// One a standby.
    pub replicas: Vec<Replica>,
    cuts: Cuts,
    parked: Vec<(Parked, Content)>,
    in_flight: Vec<(Write, Content)>,
    telling: Telling,
    /// The newest epoch with a write that was done without an error.
    newest_write: Epoch,
    /// Whether the guest's requests are taken.
    pub is_open: bool,
}

/// The activity log as it is stored.
pub fn activity_log(storage: &Storage) -> io::Result<ActivityLog> {
    ActivityLog::open(storage.catalogue.clone(), ACTIVITY_KEY.to_vec())
}

/// The blocks of its hot extents.
pub fn hot_blocks(log: &ActivityLog, size_bytes: u64) -> RoaringBitmap {
    let mut blocks: RoaringBitmap = log.hot().iter().flat_map(|extent| extent_blocks(extent).blocks()).collect();
    blocks.remove_range(block_count(size_bytes) as BlockNumber..);
    blocks
}

/// An intake that nobody writes through yet.
pub fn intake(storage: &Storage) -> io::Result<Intake> {
    let first = EpochNumbers::first_unused(&*storage.catalogue, VOLUME)?;
    let limits = KeptLimits { memory_bytes: KEPT_BYTES, spill_bytes: 0, spill_dir: "/".into() };
    Ok(Intake::new(first, storage.image.clone(), activity_log(storage)?, limits))
}

impl Primary {
    /// Goes on as primary: after a clean stop with what the standbys lack, after a crash with what may differ.
    pub fn resume(storage: &Storage, lineage: Lineage, peers: &[(Peer, Rules)]) -> io::Result<Self> {
        let intake = intake(storage)?;
        intake.start_logging();
        let stopped = memory::take_changed(&*storage.catalogue, VOLUME)?;
        let hot = hot_blocks(intake.log(), storage.image.size_bytes());
        let base = |peer: Peer| -> io::Result<Base> {
            let (known, exact) = (memory::load_known(&*storage.catalogue, &known_key(peer))?, stopped.of(&peer.key()));
            Ok(Base { known, marked: exact.unwrap_or(&hot).clone(), compare: exact.is_none(), ..Base::default() })
        };
        let peers = peers.iter().map(|(peer, rules)| Ok((*peer, *rules, base(*peer)?))).collect::<io::Result<_>>()?;
        Self::start(storage, lineage, intake, peers)
    }

    /// Starts.
    pub fn start(storage: &Storage, lineage: Lineage, intake: Intake, peers: Vec<(Peer, Rules, Base)>) -> io::Result<Self> {
        let mut primary = Self {
            epochs: EpochNumbers::open(storage.catalogue.clone(), VOLUME, intake.tracker().open_epoch())?,
            cuts: Cuts::new(storage.image.view()),
            lineage,
            replicas: Vec::new(),
            parked: Vec::new(),
            in_flight: Vec::new(),
            telling: Telling::new(),
            newest_write: 0,
            is_open: true,
            intake: Arc::new(intake),
            storage: storage.clone(),
        };
        // All of them before the first of them cuts.
        let lanes = || LaneId::all().take(peers.len());
        for lane in lanes().filter(|lane| !primary.intake.tracker_of(*lane).is_marked()).collect::<Vec<_>>() {
            primary.begin_lane(lane)?;
        }
        for (lane, (peer, rules, base)) in lanes().zip(peers) {
            primary.replicate(lane, peer, rules, base)?;
        }
        Ok(primary)
    }

    /// The epoch after which writes are marked in this lane, once it has closed; `None` while another one is closing.
    pub fn begin_lane(&mut self, lane: LaneId) -> io::Result<Option<Epoch>> {
        self.epochs.cover(self.intake.tracker().open_epoch() + 1)?;
        Ok(self.intake.begin_lane(lane))
    }

    /// Begins to replicate in a lane in which writes are marked.
    pub fn replicate(&mut self, lane: LaneId, peer: Peer, rules: Rules, base: Base) -> io::Result<()> {
        let replica = Replica::start(&self.storage, self.lineage.clone(), rules, &self.intake, (peer, lane), base)?;
        self.replicas.push(replica);
        Ok(())
    }

    /// A lane that no standby has.
    pub fn free_lane(&self) -> Option<LaneId> {
        LaneId::all().find(|lane| self.replicas.iter().all(|replica| replica.lane != *lane))
    }

    /// Whether all writes of an epoch that was cut are done.
    pub fn has_closed(&self, epoch: Epoch) -> bool {
        self.intake.tracker().has_closed(epoch)
    }

    /// No write is marked in this lane any more, and nothing is promised of its standby.
    pub fn end_lane(&mut self, lane: LaneId) {
        if let Some(ended) = self.replicas.extract_if(.., |replica| replica.lane == lane).next() {
            self.cuts.forget(ended.tracker.first_open() - 1);
        }
        self.intake.end_lane(lane);
    }

    /// Until what this returns is dropped, no other standby gets an epoch that comes after those of this one; with it, the first of those.
    pub fn be_last(&self, site: usize) -> Option<(LastCut, Epoch)> {
        let last = LastCut::reserve(self.intake.clone(), self.lane_of(site)?);
        Some((last, self.intake.tracker().open_epoch()))
    }

    /// The lane of a standby.
    pub fn lane_of(&self, site: usize) -> Option<LaneId> {
        self.to(site).map(|replica| replica.lane)
    }

    /// What it has for the standby at this site.
    pub fn to(&self, site: usize) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.peer.is_at(site))
    }

    /// The same, to change it.
    pub fn to_mut(&mut self, site: usize) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|replica| replica.peer.is_at(site))
    }

    /// Of the primary.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Tells all senders how large the volume is.
    pub fn tell_size(&mut self) {
        let size_bytes = self.storage.image.size_bytes();
        self.replicas.iter_mut().for_each(|replica| replica.tell_size(size_bytes));
    }

    /// Stops; says what the standbys lack.
    pub fn stop(self) -> Vec<Remains> {
        let remains = |replica: &Replica| Remains { peer: replica.peer, changed: replica.lacks(), known: replica.known() };
        self.replicas.iter().map(remains).collect()
    }

    /// The guest's requests are not taken any more, and nobody lets go those that wait.
    pub fn shut(&mut self) {
        self.is_open = false;
        self.intake.held().close_all();
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.intake.held().look(LaneId::FIRST).requests
    }

    /// Whether the guest's writes are all done.
    pub fn is_done(&self) -> bool {
        self.parked.is_empty() && self.in_flight.is_empty()
    }

    /// The same, and it was told so.
    pub fn is_quiet(&self) -> bool {
        self.is_done() && self.waiting() == 0
    }

    /// Whether this copy, which is attached, acknowledged everything.
    pub fn is_drained_to(&self, site: usize, replica: Option<Id>) -> bool {
        self.is_quiet() && self.to(site).is_some_and(|to| to.is_drained_to(replica))
    }

    /// The promise in force for each standby.
    pub fn promises(&self) -> Vec<Promise> {
        self.replicas.iter().map(|replica| replica.policy.in_force()).collect()
    }

    /// The epoch that every standby has, if there are several.
    pub fn everywhere(&self) -> Option<Epoch> {
        let acked = self.replicas.iter().map(|replica| replica.known().map_or(0, |known| known.acked));
        acked.min().filter(|_| self.replicas.len() > 1)
    }

    /// A stream to a standby is there.
    pub fn connect(&mut self, site: usize, now_ms: u64) {
        let (size_bytes, plant) = (self.storage.image.size_bytes(), self.storage.faults.plant());
        if let Some(replica) = self.to_mut(site) {
            replica.connect(size_bytes, now_ms, plant);
        }
    }

    /// A message came from a standby. `Err` says that the stream ends.
    pub fn receive(&mut self, site: usize, message: Message, now_ms: u64) -> Result<(), Ended> {
        let storage = self.storage.clone();
        self.to_mut(site).map_or(Ok(()), |replica| replica.receive(&storage, message, now_ms))
    }

    /// Lets extents cool whose content is at every standby, and gives back memory, as the thread of one does now and then.
    pub fn cool(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        replica.rest();
        if !replica.is_online() {
            return;
        }
        let is_durable = self.storage.faults.plant() == Some(Plant::CoolBeforeFlush) || self.storage.image.sync().is_ok();
        if is_durable {
            let _ = self.intake.cool(replica.lane, &replica.sender.unacknowledged());
        }
    }

    /// Nothing outgrows its limits.
    pub fn check_limits(&self) {
        for replica in &self.replicas {
            let (used, limit) = (self.intake.kept(replica.lane).used_bytes(), KEPT_BYTES);
            assert!(used.0 <= limit && used.1 == 0, "{used:?} bytes of old content are kept, the limit is {limit}");
        }
    }
}
