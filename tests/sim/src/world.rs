//! Sites, the network between them and time: one random event after the other, and the rules after each.

use crate::history::History;
use crate::network::{Network, Session};
use crate::past;
use crate::plant::Plant;
use crate::primary::{Peer, Scene};
use crate::site::{AMPLE_BYTES, Crash, Part, Role, Site};
use crate::standby;
use crate::{Tally, VOLUME_BLOCKS};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use replicator_engine::acknowledgement::{OnDisconnect, Promise, Rules};
use replicator_engine::block::BLOCK_BYTES;
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Base;
use std::collections::BTreeMap;
use std::io;

/// See the module's documentation.
pub struct World {
    pub rng: StdRng,
    pub now_ms: u64,
    /// What clocks that tell the time of day are ahead of it.
    pub day_ms: u64,
    pub sites: Vec<Site>,
    /// Whether the volume may have several standbys; without that, a primary replicates to one site at a time.
    pub has_several: bool,
    /// The streams from primaries to standbys.
    pub sessions: BTreeMap<(usize, usize), Session>,
    /// The standby that went another way than each primary.
    pub diverged: Vec<Option<usize>>,
    pub network: Network,
    pub history: History,
    pub tally: Tally,
    pub plant: Option<Plant>,
    is_traced: bool,
    next_stamp: u64,
    /// The standby at this site is far away: nothing gets there for a while.
    pub far: Option<usize>,
    /// The guest writes nothing for a while.
    pub guest_rests: bool,
    /// Whether it flushes now and then.
    pub guest_flushes: bool,
}

impl World {
    /// Some sites, the first of them primary; the volume has one standby, or several.
    pub fn new(seed: u64, plant: Option<Plant>, is_traced: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (size_bytes, lineage) = (u64::from(VOLUME_BLOCKS) * BLOCK_BYTES as u64, Lineage::first(Id(rng.random())));
        let has_several = rng.random_bool(0.35);
        let count = match rng.random_range(0..4) {
            0 if has_several => 4,
            // With a third site, an old primary meets standbys that follow another one.
            0 => 2,
            _ => 3,
        };
        let rules = if has_several { (0..count).map(|_| any_rules(&mut rng)).collect() } else { vec![any_rules(&mut rng); count] };
        let peers = |site: usize| if has_several { others_of(site, count) } else { vec![Peer::Any] };
        let mut sites = vec![Site::primary(size_bytes, lineage.clone(), peers(0), rules.clone(), &mut rng, plant)];
        sites.extend((1..count).map(|site| Site::standby(size_bytes, lineage.clone(), peers(site), rules.clone(), &mut rng, plant)));
        sites.iter_mut().for_each(Site::start);
        let diverged = vec![None; sites.len()];
        let (history, network, tally, sessions) = Default::default();
        let guest_flushes = rng.random_bool(0.7);
        Self {
            rng,
            now_ms: 1,
            day_ms: 0,
            sites,
            has_several,
            sessions,
            diverged,
            network,
            history,
            tally,
            plant,
            is_traced,
            next_stamp: 1,
            far: None,
            guest_rests: false,
            guest_flushes,
        }
    }

    /// One line of the trace.
    pub fn note(&self, line: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:>7} ms  {}", self.now_ms, line());
        }
    }

    /// Something goes wrong now.
    pub fn fault(&mut self, line: impl FnOnce() -> String) {
        self.tally.faults += 1;
        self.note(line);
    }

    pub fn id(&mut self) -> Id {
        Id(self.rng.random())
    }

    pub fn any_site(&mut self) -> usize {
        self.rng.random_range(0..self.sites.len())
    }

    /// A site that is primary, if there is one.
    pub fn any_primary(&mut self) -> Option<usize> {
        let primaries: Vec<usize> = (0..self.sites.len()).filter(|site| matches!(self.sites[*site].part, Part::Primary(_))).collect();
        if primaries.is_empty() { None } else { Some(primaries[self.rng.random_range(0..primaries.len())]) }
    }

    /// The guest goes on, and data moves: the usual.
    pub fn guest_begins(&mut self, site: usize) {
        if let Some(primary) = self.sites[site].as_primary() {
            primary.begin_write(&mut self.rng, &mut self.next_stamp);
        }
    }

    /// So many stamps that no sector has; the first of them.
    pub fn stamps(&mut self, count: usize) -> u64 {
        self.next_stamp += count as u64;
        self.next_stamp - count as u64
    }

    pub fn guest_progresses(&mut self, site: usize) {
        if self.sites[site].storage.faults.stalls() {
            return;
        }
        let mut scene = Scene { site, now_ms: self.now_ms, unix_ms: self.now_ms + self.day_ms, history: &mut self.history };
        if let Some(primary) = self.sites[site].as_primary() {
            primary.progress_writes(&mut scene, &mut self.rng);
        }
    }

    pub fn flush_guest(&mut self, site: usize) {
        let mut scene = Scene { site, now_ms: self.now_ms, unix_ms: self.now_ms + self.day_ms, history: &mut self.history };
        if let Some(primary) = self.sites[site].as_primary() {
            primary.flush(&mut scene);
        }
    }

    /// Whether a site is primary, or will be once it is started.
    pub fn is_served(&self) -> bool {
        self.sites.iter().any(|site| site.record.role == Role::Primary)
    }

    /// A site dies.
    pub fn crash(&mut self, site: usize, crash: Crash) {
        self.end_sessions_of(site);
        self.end_sessions_to(site);
        self.fault(|| format!("{} loses its {}", name(site), if crash == Crash::Power { "power" } else { "process" }));
        self.sites[site].crash(crash, &mut self.rng);
    }

    /// What the copy of a site would show if it lost its power now.
    pub fn check_copy(&mut self, site: usize) {
        if self.sites[site].record.role != Role::Standby {
            return;
        }
        let is_flipped = self.sites[site].is_flipped;
        if is_flipped && matches!(self.sites[site].part, Part::Down) {
            return;
        }
        let storage = self.sites[site].storage.fork(&mut self.rng);
        if !is_flipped && self.rng.random_bool(0.8) {
            storage.lose_power(&mut self.rng);
        }
        storage.image.reopen(self.sites[site].record.size_bytes);
        let shown = standby::open(&storage, AMPLE_BYTES).map_err(io::Error::other).and_then(|mut copy| {
            let point = if copy.place().base == Base::Point { Some(copy.settle()?) } else { None };
            Ok((point, copy.place().clone(), copy))
        });
        let (point, place, mut copy) = match shown {
            Ok(shown) => shown,
            // It says so, and shows nothing.
            Err(_) if is_flipped => return,
            Err(error) => panic!("{}: {error}", name(site)),
        };
        if let Some((epoch, lineage)) = &point {
            storage.image.go_back_to(place.size_bytes).expect("a disk without faults");
            self.history.check(lineage, *epoch, place.size_bytes, &storage.image.view());
            self.tally.checks += 1;
            if self.rng.random_bool(0.25) {
                past::check(&mut copy, &self.history, &mut self.rng);
            }
        }
        if is_flipped {
            return;
        }
        if let Some((epoch, _)) = &point {
            self.history.check_age(place.replica, *epoch);
        }
        self.check_promises(place.replica, point.map_or(0, |(epoch, _)| epoch));
    }

    /// What primaries promise that have this copy for their standby.
    fn check_promises(&mut self, replica: Id, shown: Epoch) {
        for site in &self.sites {
            for (_, promise) in site.promised().into_iter().filter(|(to, promise)| *to == replica && *promise > Promise::Local) {
                self.history.check_promise(site.record.lineage.current().id, promise, shown);
                self.tally.promises += 1;
            }
        }
    }
}

/// Every other site, as a standby.
pub fn others_of(site: usize, count: usize) -> Vec<Peer> {
    (0..count).filter(|other| *other != site).map(Peer::At).collect()
}

/// What an operator may want.
pub fn any_rules(rng: &mut StdRng) -> Rules {
    let wanted = [Promise::Local, Promise::Barrier, Promise::Sync][rng.random_range(0..3)];
    let on_disconnect = [OnDisconnect::Continue, OnDisconnect::Degrade, OnDisconnect::Suspend][rng.random_range(0..3)];
    Rules { wanted, on_disconnect, ack_timeout_ms: [100, 400, 2000][rng.random_range(0..3)] }
}

/// How the trace names a site.
pub fn name(site: usize) -> char {
    char::from(b'A' + site as u8)
}
