//! The change of primary, as the daemon does it: promotion, handover, being overtaken, coming back as a standby.

use crate::history::History;
use crate::primary::{self, Primary};
use crate::site::{Part, Role, Site};
use crate::standby::VOLUME;
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::catalogue::{Catalogue, Persist};
use replicator::disk::BlockDevice;
use replicator::intake::extent_blocks;
use replicator::primary::memory::{self, EpochNumbers};
use replicator::standby::Place;
use replicator_engine::block::{BlockNumber, block_count};
use replicator_engine::generation::{Id, Lineage, Relation};
use replicator_engine::sender::Known;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Base;
use roaring::RoaringBitmap;
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
        let (epoch, place) = standby.settle()?;
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
        let known = Known { replica: None, acked: epoch };
        memory::prepare_promotion(&catalogue, VOLUME, epoch, &[("SITE", known)], &RoaringBitmap::new(), &intake)?;
        self.change(|record| {
            (record.role, record.lineage, record.size_bytes) = (Role::Primary, lineage.clone(), place.size_bytes);
        })?;
        // If that fails, it goes before this site is a standby again.
        let _ = self.storage.forget_past();
        intake.start_logging();
        let started = Primary::start(&self.storage, lineage, self.rules, intake, Some(known), RoaringBitmap::new())?;
        self.part = Part::Primary(Box::new(started));
        Ok(())
    }

    /// Everything is at the standby: this site is one, too, from now on. The epoch that it handed over.
    pub fn step_down(&mut self, replica: Id) -> io::Result<Option<Epoch>> {
        let Part::Primary(primary) = std::mem::replace(&mut self.part, Part::Idle) else { return Ok(None) };
        let (changed, known) = primary.stop();
        let Some(known) = known.filter(|_| changed.is_empty()) else {
            self.start();
            return Ok(None);
        };
        self.storage.image.sync()?;
        self.become_standby(replica, known.acked, Base::Point, self.record.lineage.clone())?;
        Ok(Some(known.acked))
    }

    fn become_standby(&mut self, replica: Id, committed: Epoch, base: Base, lineage: Lineage) -> io::Result<()> {
        self.storage.files.remove_all()?;
        self.storage.forget_past()?;
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
        let Some(primary) = self.as_primary() else { return };
        primary.is_open = false;
        if self.change(|record| (record.role, record.successor) = (role, Some(theirs.clone()))).is_err() {
            return;
        }
        let Part::Primary(primary) = std::mem::replace(&mut self.part, Part::Idle) else { return };
        if !primary.is_quiet() {
            return primary.die(rng);
        }
        let (changed, _) = primary.stop();
        // If that cannot be written down, the activity log says it less exactly.
        let _ = self.storage.image.sync().and_then(|()| memory::store_changed(&*self.storage.catalogue, VOLUME, [("SITE", &changed)]));
    }

    /// Gives up what changed here alone, and becomes the standby of the site that overtook this one.
    pub fn follow(&mut self, rng: &mut StdRng) -> io::Result<()> {
        let (Role::Stale | Role::SplitBrain, Part::Idle, Some(theirs)) = (self.record.role, &self.part, self.record.successor.clone())
        else {
            return Ok(());
        };
        let catalogue = &*self.storage.catalogue;
        let mut changed = match memory::load_changed(catalogue, VOLUME)?.of("SITE").cloned() {
            Some(exact) => exact,
            None => primary::activity_log(&self.storage)?.hot().iter().flat_map(|extent| extent_blocks(extent).blocks()).collect(),
        };
        changed.remove_range(block_count(self.storage.image.size_bytes()) as BlockNumber..);
        self.storage.image.sync()?;
        let known = memory::load_known(catalogue, &primary::known_key())?;
        let mine = self.record.lineage.clone();
        let (committed, base, lineage) = match mine.relation(&theirs) {
            Relation::TheirsAhead(branch) if known.is_some_and(|known| known.acked <= branch) => (branch, Base::PointBut(changed), mine),
            _ => (0, Base::Unfinished, theirs),
        };
        memory::take_changed(catalogue, VOLUME)?;
        self.become_standby(Id(rng.random()), committed, base, lineage)
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
