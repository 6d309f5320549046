//! The change of primary, as the daemon does it: promotion, handover, being overtaken, following another one.

use crate::history::History;
use crate::plant::Plant;
use crate::primary::{self, Base, Peer, Primary, Remains};
use crate::site::{Part, Role, Site};
use crate::standby::{Settled, VOLUME};
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::catalogue::{Catalogue, Persist};
use replicator::disk::BlockDevice;
use replicator::following::{self, Stand};
use replicator::primary::memory::{self, EpochNumbers};
use replicator::standby::Place;
use replicator_engine::block::{BlockNumber, block_count};
use replicator_engine::generation::{Id, Lineage, Relation};
use replicator_engine::history::History as Changes;
use replicator_engine::sender::Known;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire;
use std::io;
use std::sync::Arc;

impl Site {
    /// Continues the last recovery point as primary. `expected` is the one that was handed over.
    pub fn promote(&mut self, generation: Id, expected: Option<Epoch>, history: &History) -> io::Result<()> {
        let Part::Standby(standby) = &mut self.part else { return Ok(()) };
        if !standby.has_point() {
            return Ok(());
        }
        let promoted = self.settle_and_become(generation, expected, history);
        if promoted.is_err() {
            self.start();
        }
        promoted
    }

    fn settle_and_become(&mut self, generation: Id, expected: Option<Epoch>, history: &History) -> io::Result<()> {
        let Part::Standby(standby) = &mut self.part else { return Ok(()) };
        let Settled { epoch, place, history: changes, .. } = standby.settle()?;
        assert!(expected.is_none_or(|expected| expected == epoch), "handed over at {expected:?}, but the copy stands at {epoch}");
        self.part = Part::Idle;
        let storage = &self.storage;
        storage.image.go_back_to(place.size_bytes)?;
        history.check(&place.lineage, epoch, place.size_bytes, &storage.image.view());
        if !self.is_flipped {
            history.check_age(place.replica, epoch);
        }
        let lineage = place.lineage.promoted(generation, epoch);
        let intake = primary::intake(storage)?;
        let catalogue: Arc<dyn Catalogue> = storage.catalogue.clone();
        // Where a standby stands is known once it attaches, and what it lacks then. Until it has that, the activity log has it, too.
        let is_second = lineage.generations().len() > 2;
        let is_planted = storage.faults.plant() == Some(Plant::ForgetHistory) && is_second;
        let owed = if is_planted { Changes::new(changes.floor()) } else { changes };
        let known = Known { replica: None, acked: owed.floor() };
        let keys: Vec<_> = self.record.peers.iter().map(|peer| peer.key()).collect();
        let sites: Vec<_> = keys.iter().map(|key| (key.as_str(), known)).collect();
        memory::prepare_promotion(&catalogue, VOLUME, epoch, &sites, &owed.blocks(), &intake)?;
        self.change(|record| {
            (record.role, record.lineage, record.size_bytes) = (Role::Primary, lineage.clone(), place.size_bytes);
            record.successor = None;
        })?;
        // If that fails, it goes before this site is a standby again.
        let _ = self.storage.forget_past();
        intake.start_logging();
        let base = || Base { known: Some(known), owed: owed.clone(), ..Base::default() };
        let peers = self.record.peers.iter().map(|peer| (*peer, self.rules_of(*peer), base())).collect();
        self.part = Part::Primary(Box::new(Primary::start(&self.storage, lineage, intake, peers)?));
        Ok(())
    }

    /// Everything is at the standby at site `to`: this site is one, too, from now on. The epoch that it handed over.
    pub fn step_down(&mut self, to: usize, replica: Id) -> io::Result<Option<Epoch>> {
        let Part::Primary(primary) = std::mem::replace(&mut self.part, Part::Idle) else { return Ok(None) };
        let remains = primary.stop().into_iter().find(|remains| remains.peer.is_at(to));
        let Some(known) = remains.filter(|remains| remains.changed.is_empty()).and_then(|remains| remains.known) else {
            self.start();
            return Ok(None);
        };
        self.storage.image.sync()?;
        let stand = Stand { committed: known.acked, base: wire::Base::Point, lineage: self.record.lineage.clone() };
        self.become_standby(replica, stand)?;
        Ok(Some(known.acked))
    }

    fn become_standby(&mut self, replica: Id, stand: Stand) -> io::Result<()> {
        self.storage.files.remove_all()?;
        self.storage.forget_past()?;
        let Stand { committed, base, lineage } = stand;
        let size_bytes = self.storage.image.size_bytes();
        let place = Place { volume: VOLUME, replica, lineage, size_bytes, committed, folded: committed, base };
        memory::forget_promises(&*self.storage.catalogue, VOLUME)?;
        place.store(&*self.storage.catalogue, Persist::Synced)?;
        self.change(|record| (record.role, record.successor) = (Role::Standby, None))?;
        self.start();
        Ok(())
    }

    /// Another site has a later generation, or a rival one: nothing is acknowledged here from now on.
    pub fn overtaken(&mut self, theirs: &Lineage, rng: &mut StdRng) {
        let role = match self.record.lineage.relation(theirs) {
            Relation::TheirsAhead(_) => Role::Stale,
            Relation::Split => Role::SplitBrain,
            _ => return,
        };
        if self.as_primary().is_none() {
            return;
        }
        if self.change(|record| (record.role, record.successor) = (role, Some(theirs.clone()))).is_err() {
            return;
        }
        let Part::Primary(primary) = std::mem::replace(&mut self.part, Part::Idle) else { return };
        if !primary.is_quiet() {
            return primary.die(rng);
        }
        // If that cannot be written down, the activity log says it less exactly.
        let _ = self.remember_changed(&primary.stop());
    }

    fn remember_changed(&self, remains: &[Remains]) -> io::Result<()> {
        let catalogue = &*self.storage.catalogue;
        self.storage.image.sync()?;
        for Remains { peer, known, .. } in remains {
            memory::store_known(catalogue, &primary::known_key(*peer), *known, Persist::Eventually)?;
        }
        let keys: Vec<_> = remains.iter().map(|remains| remains.peer.key()).collect();
        memory::store_changed(catalogue, VOLUME, keys.iter().map(String::as_str).zip(remains.iter().map(|remains| &remains.changed)))
    }

    /// Gives up what changed here alone, and becomes the standby of the site that overtook this one.
    pub fn follow(&mut self, rng: &mut StdRng) -> io::Result<()> {
        let (Role::Stale | Role::SplitBrain, Part::Idle, Some(theirs)) = (self.record.role, &self.part, self.record.successor.clone())
        else {
            return Ok(());
        };
        let (catalogue, mine) = (&*self.storage.catalogue, self.record.lineage.clone());
        let mut known = Vec::new();
        for peer in &self.record.peers {
            known.push((*peer, memory::load_known(catalogue, &primary::known_key(*peer))?));
        }
        let stopped = memory::load_changed(catalogue, VOLUME)?;
        let stand = match following::closest(&mine, &theirs, known) {
            Some((peer, branch)) => {
                let size_bytes = self.storage.image.size_bytes();
                let hot = || Ok(primary::hot_blocks(&primary::activity_log(&self.storage)?, size_bytes));
                let mut changed = stopped.of(&Peer::key(peer)).cloned().map_or_else(hot, io::Result::Ok)?;
                changed.remove_range(block_count(size_bytes) as BlockNumber..);
                Stand { committed: branch, base: wire::Base::PointBut(changed), lineage: mine }
            }
            None => Stand { committed: 0, base: wire::Base::Unfinished, lineage: theirs },
        };
        self.storage.image.sync()?;
        memory::take_changed(catalogue, VOLUME)?;
        self.become_standby(Id(rng.random()), stand)
    }

    /// A standby that has epochs beyond the branch of a new primary gives them up, and follows it.
    pub fn go_over(&mut self, theirs: &Lineage, rng: &mut StdRng) -> io::Result<()> {
        let done = self.settle_and_go_over(theirs, rng);
        if done.is_err() {
            self.start();
        }
        done
    }

    fn settle_and_go_over(&mut self, theirs: &Lineage, rng: &mut StdRng) -> io::Result<()> {
        let Part::Standby(standby) = &mut self.part else { return Ok(()) };
        let Settled { place, damaged, history, .. } = standby.settle()?;
        let Some(stand) = following::as_standby(&place.lineage, &place.base, &history, &damaged, theirs) else { return Ok(()) };
        self.become_standby(Id(rng.random()), stand)
    }

    /// Both sites were primary: this one stays it, in a generation of its own.
    pub fn continue_after_split(&mut self, generation: Id) -> io::Result<()> {
        let epoch = EpochNumbers::first_unused(&*self.storage.catalogue, VOLUME)?;
        let lineage = self.record.lineage.promoted(generation, epoch);
        self.change(|record| (record.role, record.lineage, record.successor) = (Role::Primary, lineage, None))?;
        self.start();
        Ok(())
    }
}
