//! What goes wrong: power, processes, disks, clocks, bits and the network.

use crate::site::{Crash, Part, Role, Site};
use crate::world::{World, name};
use rand::RngExt;
use replicator::catalogue::Persist;

impl World {
    /// One fault, of whatever kind.
    pub fn something_fails(&mut self) {
        let site = self.any_site();
        match self.rng.random_range(0..17) {
            0 | 1 => self.crash(site, Crash::Power),
            2 => self.crash(site, Crash::Process),
            3..9 => self.disk_fails(site),
            9 => self.bit_flips(site),
            10 => self.clocks_jump(),
            11 | 12 => self.direction_is_cut(site),
            13 | 14 => {
                self.fault(|| format!("a stream of {} breaks", name(site)));
                if let Some(to) = self.any_stream_of(site) {
                    self.end_session(site, to);
                }
            }
            _ => self.frame_is_damaged(site),
        }
    }

    fn any_stream_of(&mut self, site: usize) -> Option<usize> {
        let streams: Vec<usize> = (0..self.sites.len()).filter(|to| self.sessions.contains_key(&(site, *to))).collect();
        if streams.is_empty() { None } else { Some(streams[self.rng.random_range(0..streams.len())]) }
    }

    fn disk_fails(&mut self, site: usize) {
        let faults = self.sites[site].storage.faults.clone();
        match self.rng.random_range(0..6) {
            0 | 1 => {
                let operations = self.rng.random_range(1..40);
                self.fault(|| format!("{} will lose its power after {operations} writes", name(site)));
                faults.light_fuse(operations);
            }
            2 => {
                let per_thousand = [0, 0, 30, 300][self.rng.random_range(0..4)];
                self.fault(|| format!("of {}'s operations {per_thousand} in 1000 fail", name(site)));
                faults.set_errors(per_thousand);
            }
            3 => {
                let is_full = faults.toggle_full();
                self.fault(|| format!("{}'s disk is {}", name(site), if is_full { "full" } else { "not full any more" }));
            }
            4 => {
                let is_slow = faults.toggle_slow();
                self.fault(|| format!("{}'s disk is {}", name(site), if is_slow { "slow" } else { "not slow any more" }));
            }
            _ => {
                self.fault(|| format!("{}'s next sync fails", name(site)));
                faults.fail_next_sync();
            }
        }
    }

    /// In the journal of a standby, while somebody else has the content. The catalogue knows what is committed: a loss of power that took that,
    /// and a bit beside it, are one fault too many.
    fn bit_flips(&mut self, site: usize) {
        let is_copy = self.sites[site].record.role == Role::Standby && self.is_served();
        let Site { storage, part: Part::Standby(standby), is_flipped, .. } = &mut self.sites[site] else { return };
        let is_known = standby.place().is_some_and(|place| place.store(&*storage.catalogue, Persist::Synced).is_ok());
        if is_copy && is_known && storage.files.flip_bit(&mut self.rng) {
            *is_flipped = true;
            self.fault(|| format!("a bit of {}'s journal flips", name(site)));
        }
    }

    /// All of them, ahead; those that tell the time of day, either way.
    fn clocks_jump(&mut self) {
        let ahead_ms = self.rng.random_range(1_000..3_600_000);
        self.fault(|| format!("clocks jump by {ahead_ms} ms"));
        self.now_ms += ahead_ms;
        self.day_ms = self.rng.random_range(0..1 << 40);
    }

    fn direction_is_cut(&mut self, site: usize) {
        let other = (site + 1 + self.rng.random_range(0..self.sites.len() - 1)) % self.sites.len();
        let passes = self.network.toggle(site, other);
        self.fault(|| format!("{} to {}: {}", name(site), name(other), if passes { "mended" } else { "cut" }));
    }

    fn frame_is_damaged(&mut self, site: usize) {
        if let Some(to) = self.any_stream_of(site)
            && let Some(session) = self.sessions.get_mut(&(site, to))
            && session.down.tamper(&mut self.rng)
        {
            session.is_tampered = true;
            self.fault(|| format!("a frame of {} is lost or damaged", name(site)));
        }
    }
}
