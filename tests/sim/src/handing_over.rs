//! A planned change of primary: nothing is lost, and no other standby has an epoch that the new primary has not.

use crate::plant::Plant;
use crate::world::{World, name};
use rand::RngExt;
use replicator_engine::generation::Lineage;
use replicator_engine::tracker::Epoch;

/// Turns within which everything must be at the standby.
const DRAINING_TURNS: u32 = 300;

impl World {
    /// To a standby that has a stream.
    pub fn hand_over(&mut self, site: usize) {
        let streams: Vec<usize> = (0..self.sites.len()).filter(|to| self.sessions.contains_key(&(site, *to))).collect();
        if streams.is_empty() {
            return;
        }
        let to = streams[self.rng.random_range(0..streams.len())];
        if let Some(primary) = self.sites[site].as_primary() {
            primary.is_open = false;
            primary.tell_size();
        }
        let is_drained = self.drain(site, to, 0) && self.make_last(site, to);
        let Some(primary) = self.sites[site].as_primary() else { return };
        primary.is_open = true;
        if !is_drained {
            return;
        }
        let replica = self.id();
        self.note(|| format!("{} hands over to {}", name(site), name(to)));
        let lineage = self.sites[site].record.lineage.clone();
        match self.sites[site].step_down(to, replica) {
            Ok(Some(epoch)) => {
                self.check_others(to, &lineage, epoch);
                self.promote(to, Some(epoch));
            }
            Ok(None) => {}
            Err(_) => self.sites[site].start(),
        }
    }

    /// The last epoch is for the one that takes over. The sessions have ended then.
    fn make_last(&mut self, site: usize, to: usize) -> bool {
        let is_planted = self.plant == Some(Plant::CutAfterLast);
        let last = self.sites[site].as_primary().and_then(|primary| primary.be_last(to));
        let Some((last, epoch)) = last else { return false };
        let last = Some(last).filter(|_| !is_planted);
        self.sites[site].as_primary().and_then(|primary| primary.to_mut(to)).into_iter().for_each(|replica| replica.ask_for_cut());
        let is_drained = self.drain(site, to, epoch);
        if is_drained {
            self.end_sessions_of(site);
        }
        drop(last);
        is_drained
    }

    /// Whether the standby gets everything, and this epoch, in time.
    fn drain(&mut self, site: usize, to: usize, epoch: Epoch) -> bool {
        for _ in 0..DRAINING_TURNS {
            self.now_ms += 10;
            self.guest_progresses(site);
            self.cut_is_due(site);
            self.move_data(site);
            self.check_sites();
            let acked = self.sites[site].as_primary().and_then(|primary| primary.to(to)?.known()).map_or(0, |known| known.acked);
            if acked >= epoch && self.is_drained(site, to) && self.is_silent(site, to) {
                return true;
            }
        }
        false
    }

    fn check_others(&mut self, to: usize, lineage: &Lineage, epoch: Epoch) {
        for other in (0..self.sites.len()).filter(|other| *other != to) {
            let place = self.sites[other].as_standby().and_then(|standby| standby.place());
            let has = place.filter(|place| place.lineage == *lineage).map_or(0, |place| place.committed);
            assert!(has <= epoch, "{} has epoch {has}, but {epoch} is handed over to {}", name(other), name(to));
        }
    }
}
