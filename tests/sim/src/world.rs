//! Sites, the network between them and time: one random event after the other, and the rules after each.

use crate::history::History;
use crate::network::{Network, Session};
use crate::past;
use crate::plant::Plant;
use crate::primary::{Ended, Scene};
use crate::site::{AMPLE_BYTES, Crash, Part, Role, Site};
use crate::standby;
use crate::{Tally, VOLUME_BLOCKS};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use replicator::disk::BlockDevice;
use replicator_engine::acknowledgement::{OnDisconnect, Promise, Rules};
use replicator_engine::block::BLOCK_BYTES;
use replicator_engine::generation::{Id, Lineage, Relation};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Base, Envelope, Message, Refusal, Refused};
use std::io;

/// See the module's documentation.
pub struct World {
    pub rng: StdRng,
    pub now_ms: u64,
    /// What clocks that tell the time of day are ahead of it.
    pub day_ms: u64,
    pub sites: Vec<Site>,
    /// The stream of each site that is primary.
    pub sessions: Vec<Option<Session>>,
    /// The standby that went another way than each primary.
    pub diverged: Vec<Option<usize>>,
    pub network: Network,
    pub history: History,
    pub tally: Tally,
    pub plant: Option<Plant>,
    is_traced: bool,
    next_stamp: u64,
    /// The guest writes nothing for a while.
    pub guest_rests: bool,
    /// Whether it flushes now and then.
    pub guest_flushes: bool,
}

impl World {
    /// Two or three sites, the first of them primary.
    pub fn new(seed: u64, plant: Option<Plant>, is_traced: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (size_bytes, lineage) = (u64::from(VOLUME_BLOCKS) * BLOCK_BYTES as u64, Lineage::first(Id(rng.random())));
        // With a third site, an old primary meets standbys that follow another one.
        let count = if rng.random_bool(0.25) { 2 } else { 3 };
        let rules = any_rules(&mut rng);
        let mut sites = vec![Site::primary(size_bytes, lineage.clone(), rules, &mut rng, plant)];
        sites.extend((1..count).map(|_| Site::standby(size_bytes, lineage.clone(), rules, &mut rng, plant)));
        sites.iter_mut().for_each(Site::start);
        let sessions = sites.iter().map(|_| None).collect();
        let diverged = vec![None; sites.len()];
        let (history, network, tally) = Default::default();
        let guest_flushes = rng.random_bool(0.7);
        Self {
            rng,
            now_ms: 1,
            day_ms: 0,
            sites,
            sessions,
            diverged,
            network,
            history,
            tally,
            plant,
            is_traced,
            next_stamp: 1,
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

    /// The sender of a primary works, and each direction of its stream delivers a few frames.
    pub fn move_data(&mut self, site: usize) {
        if self.sessions[site].is_none() {
            self.connect(site, None);
        }
        let steps = self.rng.random_range(1..6);
        let Some(primary) = self.sites[site].as_primary() else { return };
        let (mut frames, before) = (Vec::new(), primary.promise());
        let done = primary.run(
            &mut Scene { site, now_ms: self.now_ms, unix_ms: self.now_ms + self.day_ms, history: &mut self.history },
            steps,
            &mut frames,
        );
        let after = primary.promise();
        if before.0 != after.0 {
            self.note(|| format!("{} puts {:?} in force, {} requests wait", name(site), after.0, after.1));
        }
        if let Some(session) = &mut self.sessions[site] {
            let due_ms = session.due_ms(self.now_ms);
            frames.into_iter().for_each(|frame| session.down.send(due_ms, frame));
        }
        if done.is_err() {
            self.note(|| format!("{} cannot read its disk", name(site)));
            return self.end_session(site);
        }
        self.deliver_down(site);
        if self.rng.random_bool(0.5) {
            self.fold(site);
        }
        self.deliver_up(site);
    }

    fn fold(&mut self, site: usize) {
        let Some(to) = self.sessions[site].as_ref().map(|session| session.standby) else { return };
        let unix_ms = self.now_ms + self.day_ms;
        if let Some(standby) = self.sites[to].as_standby() {
            let _ = standby.fold(unix_ms);
        }
    }

    fn deliver_down(&mut self, site: usize) {
        for _ in 0..self.rng.random_range(0..6) {
            let Some(session) = &mut self.sessions[site] else { return };
            let to = session.standby;
            if !self.network.passes(site, to) || self.sites[to].storage.faults.stalls() {
                return;
            }
            let Some(frame) = session.down.receive(self.now_ms) else { return };
            let Some(standby) = self.sites[to].as_standby().filter(|_| !session.is_refused) else { continue };
            let frame = session.wiretap.pass(self.plant, frame, standby.lineage());
            let due_ms = session.due_ms(self.now_ms);
            match standby.handle_frame(frame) {
                Ok(answer) => answer.into_iter().for_each(|answer| session.up.send(due_ms, answer)),
                Err(refused) => {
                    let is_fault = session.is_tampered || refused.reason != Refusal::Protocol;
                    assert!(is_fault, "{} refuses what keeps to the protocol: {}", name(to), refused.text);
                    session.is_refused = true;
                    let text = refused.text.clone();
                    session.up.send(due_ms, standby.refusal(refused));
                    self.note(|| format!("{} refuses {}: {text}", name(to), name(site)));
                }
            }
        }
    }

    fn deliver_up(&mut self, site: usize) {
        for _ in 0..self.rng.random_range(0..4) {
            let Some(session) = self.sessions[site].as_mut().filter(|session| self.network.passes(session.standby, site)) else { return };
            let Some(frame) = session.up.receive(self.now_ms) else { return };
            let message = Envelope::decode(frame).expect("a whole message").message;
            self.receive(site, message);
        }
    }

    fn receive(&mut self, site: usize, message: Message) {
        if let Message::Refused(Refused { reason: Refusal::Diverged | Refusal::SplitBrain, .. }) = message {
            self.diverged[site] = self.sessions[site].as_ref().map(|session| session.standby);
        }
        let is_tampered = self.sessions[site].as_ref().is_some_and(|session| session.is_tampered);
        let Some(primary) = self.sites[site].as_primary() else { return };
        let taken = primary.receive(message, self.now_ms);
        if let Some((replica, acked)) = primary.known().and_then(|known| Some((known.replica?, known.acked))) {
            self.tally.commits += u64::from(self.history.committed(replica, acked));
        }
        if let Err(why) = taken {
            assert!(is_tampered || !matches!(why, Ended::Protocol(_)), "{} gets what breaks the protocol: {why:?}", name(site));
            self.end_session(site);
            self.turned_away(site);
        }
    }

    /// A primary was refused: perhaps another one has overtaken it.
    fn turned_away(&mut self, site: usize) {
        let Some(primary) = self.sites[site].as_primary().filter(|primary| primary.is_superseded()) else { return };
        let theirs = primary.refused().expect("refused, if it was overtaken").lineage.clone();
        self.note(|| format!("{} is overtaken", name(site)));
        self.sites[site].overtaken(&theirs, &mut self.rng);
    }

    /// A primary opens a stream to a site that it can reach.
    pub fn connect(&mut self, site: usize, wanted: Option<usize>) {
        let to = wanted.unwrap_or_else(|| {
            let usual = (site + 1) % self.sites.len();
            if self.rng.random_bool(0.75) { usual } else { (site + 2) % self.sites.len() }
        });
        if to == site || !self.network.connects(site, to) || matches!(self.sites[to].part, Part::Down) {
            return;
        }
        let now_ms = self.now_ms;
        let Some(primary) = self.sites[site].as_primary() else { return };
        let theirs = primary.lineage().clone();
        primary.connect(now_ms);
        if let Part::Standby(_) = self.sites[to].part {
            // Whoever comes last is listened to.
            self.end_sessions_to(to);
            self.note(|| format!("{} connects to {}", name(site), name(to)));
            self.sessions[site] = Some(Session::new(to, &mut self.rng));
        } else {
            self.turn_away(site, to, &theirs);
        }
    }

    /// A site that is no standby refuses a primary; one of the two has overtaken the other, perhaps.
    fn turn_away(&mut self, site: usize, to: usize, theirs: &Lineage) {
        let mine = self.sites[to].record.lineage.clone();
        let relation = mine.relation(theirs);
        if matches!(relation, Relation::Split | Relation::TheirsAhead(_)) {
            self.end_session(to);
            self.sites[to].overtaken(theirs, &mut self.rng);
        }
        let reason = match relation {
            Relation::MineAhead(_) => Refusal::Stale,
            Relation::Split => Refusal::SplitBrain,
            _ => Refusal::NotStandby,
        };
        self.note(|| format!("{} turns {} away: {reason:?}", name(to), name(site)));
        self.receive(site, Message::Refused(Refused { reason, text: String::new(), lineage: mine }));
    }

    /// The stream of a primary breaks; of what is on its way to the standby, some still gets there.
    pub fn end_session(&mut self, site: usize) {
        if let Some(session) = &self.sessions[site] {
            let to = session.standby;
            if self.rng.random_bool(0.5) {
                self.now_ms += 50;
                self.deliver_down(site);
            }
            self.sessions[site] = None;
            if let Some(standby) = self.sites[to].as_standby() {
                standby.disconnect();
            }
        }
        if let Some(primary) = self.sites[site].as_primary() {
            primary.disconnect();
        }
    }

    /// No primary has a stream to this site any more.
    pub fn end_sessions_to(&mut self, standby: usize) {
        for primary in 0..self.sites.len() {
            if self.sessions[primary].as_ref().is_some_and(|session| session.standby == standby) {
                self.end_session(primary);
            }
        }
    }

    /// Whether the standby has everything of the primary, and answered that.
    pub fn is_drained(&mut self, primary: usize, standby: usize) -> bool {
        let size_bytes = self.sites[primary].storage.image.size_bytes();
        let place = self.sites[standby].as_standby().and_then(|standby| standby.place());
        let replica = place.filter(|place| place.size_bytes == size_bytes).map(|place| place.replica);
        self.sites[primary].as_primary().is_some_and(|primary| primary.is_drained_to(replica))
    }

    /// Whether nothing is on its way between a primary and its standby.
    pub fn is_silent(&self, primary: usize) -> bool {
        self.sessions[primary].as_ref().is_some_and(|session| session.down.is_empty() && session.up.is_empty())
    }

    /// Whether a site is primary, or will be once it is started.
    pub fn is_served(&self) -> bool {
        self.sites.iter().any(|site| site.record.role == Role::Primary)
    }

    /// A site dies.
    pub fn crash(&mut self, site: usize, crash: Crash) {
        self.end_session(site);
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
            if let Some((_, promise)) = site.promised().filter(|(to, promise)| *to == replica && *promise > Promise::Local) {
                self.history.check_promise(site.record.lineage.current().id, promise, shown);
                self.tally.promises += 1;
            }
        }
    }
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
