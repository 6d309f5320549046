//! One site: what it has recorded of the volume, what is stored, and what runs.

use crate::plant::Plant;
use crate::primary::{Peer, Primary, known_key, recorded_promise};
use crate::standby::{StandbyPart, VOLUME};
use crate::storage::{Access, Storage};
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::catalogue::Persist;
use replicator::disk::BlockDevice;
use replicator::journal::JournalError;
use replicator::primary::memory;
use replicator::standby::Place;
use replicator_engine::acknowledgement::{Promise, Rules};
use replicator_engine::generation::{Id, Lineage};
use std::io;

/// A journal in which everything finds room.
pub const AMPLE_BYTES: u64 = 64 << 20;

/// What the site is recorded to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Primary,
    Standby,
    /// Another site was promoted.
    Stale,
    /// So was another, and neither continues the other.
    SplitBrain,
    /// The volume is not replicated to this site any more.
    Parted,
}

/// What survives of a site's part, written with a sync and as a whole.
#[derive(Clone, Debug)]
pub struct Record {
    pub role: Role,
    pub lineage: Lineage,
    pub size_bytes: u64,
    /// Of the site that overtook this one, or that was promoted without what this standby promised to keep.
    pub successor: Option<Lineage>,
    /// Whom it replicates to, or would as a primary.
    pub peers: Vec<Peer>,
}

/// What runs.
pub enum Part {
    /// Nothing: the site is down.
    Down,
    /// The daemon, but it has no part in the volume.
    Idle,
    Primary(Box<Primary>),
    Standby(Box<StandbyPart>),
}

/// What a crash takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process: what was written is there.
    Process,
    /// Power: what was not synced may not be.
    Power,
}

/// See the module's documentation.
pub struct Site {
    pub storage: Storage,
    pub record: Record,
    pub part: Part,
    pub quota_bytes: u64,
    /// What the operator wants of the standby at each site.
    pub rules: Vec<Rules>,
    /// A bit has flipped under this copy: it may fail, and be older than it was, but shows nothing else.
    pub is_flipped: bool,
}

impl Site {
    /// A primary with an empty volume.
    pub fn primary(size_bytes: u64, lineage: Lineage, peers: Vec<Peer>, rules: Vec<Rules>, rng: &mut StdRng, plant: Option<Plant>) -> Self {
        let record = Record { role: Role::Primary, lineage, size_bytes, successor: None, peers };
        Self { storage: Storage::new(size_bytes, rng, plant), record, part: Part::Down, quota_bytes: AMPLE_BYTES, rules, is_flipped: false }
    }

    /// An empty standby, made for a primary with this lineage.
    pub fn standby(size_bytes: u64, lineage: Lineage, peers: Vec<Peer>, rules: Vec<Rules>, rng: &mut StdRng, plant: Option<Plant>) -> Self {
        let storage = Storage::new(size_bytes, rng, plant);
        let place = Place::blank(VOLUME, Id(rng.random()), lineage.clone(), size_bytes);
        place.store(&*storage.catalogue, Persist::Synced).expect("a writable catalogue");
        let record = Record { role: Role::Standby, lineage, size_bytes, successor: None, peers };
        let quota_bytes = if rng.random_bool(0.3) { 256 << 10 } else { AMPLE_BYTES };
        Self { storage, record, part: Part::Down, quota_bytes, rules, is_flipped: false }
    }

    /// Starts what is recorded; after a fault of the disk the site is down.
    pub fn start(&mut self) {
        let started = match self.record.role {
            Role::Primary => {
                let peers: Vec<_> = self.record.peers.iter().map(|peer| (*peer, self.rules_of(*peer))).collect();
                Primary::resume(&self.storage, self.record.lineage.clone(), &peers).map(|primary| Part::Primary(Box::new(primary)))
            }
            Role::Standby => match self.start_standby() {
                Ok(standby) => Ok(Part::Standby(Box::new(standby))),
                Err(JournalError::Io(error)) => Err(error),
                Err(error) => {
                    assert!(self.is_flipped, "{error}");
                    Err(io::Error::other(error))
                }
            },
            Role::Stale | Role::SplitBrain | Role::Parted => Ok(Part::Idle),
        };
        self.part = started.unwrap_or(Part::Down);
    }

    fn start_standby(&self) -> Result<StandbyPart, JournalError> {
        let (has_others, rival) = (self.record.peers.len() > 1, self.record.successor.clone());
        StandbyPart::start(self.storage.clone(), self.quota_bytes, has_others, rival)
    }

    /// The daemon begins again.
    pub fn restart(&mut self) {
        self.storage.faults.replace_fuse();
        self.storage.image.reopen(self.record.size_bytes);
        self.start();
    }

    /// The process or the machine dies.
    pub fn crash(&mut self, crash: Crash, rng: &mut StdRng) {
        if let Part::Primary(primary) = std::mem::replace(&mut self.part, Part::Down) {
            primary.die(rng);
        }
        if crash == Crash::Power {
            self.storage.lose_power(rng);
        }
    }

    /// Changes what is recorded.
    pub fn change(&mut self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        self.storage.faults.meet(Access::Sync)?;
        change(&mut self.record);
        Ok(())
    }

    /// What the operator wants of a standby.
    pub fn rules_of(&self, peer: Peer) -> Rules {
        self.rules[if let Peer::At(site) = peer { site } else { 0 }]
    }

    /// What this site has recorded to hold, as a primary, and for which copies.
    pub fn promised(&self) -> Vec<(Id, Promise)> {
        if self.record.role != Role::Primary {
            return Vec::new();
        }
        let catalogue = self.storage.catalogue.unfailing();
        let known = |peer: Peer| memory::load_known(&catalogue, &known_key(peer)).expect("what was stored").and_then(|known| known.replica);
        let promise = |peer: Peer| recorded_promise(&catalogue, peer).expect("what was stored");
        self.record.peers.iter().filter_map(|peer| Some((known(*peer)?, promise(*peer)))).collect()
    }

    /// The volume grows, if it is served here.
    pub fn grow(&mut self, blocks: u64, is_told: bool) {
        let size_bytes = self.storage.image.size_bytes() + blocks * 4096;
        let Part::Primary(primary) = &mut self.part else { return };
        // The guest sees it once it is recorded.
        if self.storage.faults.meet(Access::Sync).is_ok() {
            self.record.size_bytes = size_bytes;
            self.storage.image.reopen(size_bytes);
            if is_told {
                primary.tell_size();
            }
        }
    }

    pub fn as_primary(&mut self) -> Option<&mut Primary> {
        if let Part::Primary(primary) = &mut self.part { Some(primary) } else { None }
    }

    pub fn as_standby(&mut self) -> Option<&mut StandbyPart> {
        if let Part::Standby(standby) = &mut self.part { Some(standby) } else { None }
    }
}
