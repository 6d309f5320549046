//! What happens: the dice, and the end of a run, when everything heals.

use crate::primary::Peer;
use crate::site::{AMPLE_BYTES, Crash, Part, Role, Site};
use crate::storage::View;
use crate::world::{World, any_rules, name};
use rand::RngExt;
use replicator_engine::acknowledgement::Promise;
use replicator_engine::sender::Cuts;

/// Turns after which a standby must have everything, once nothing fails.
const HEALING_TURNS: u32 = 20_000;

impl World {
    /// One random event.
    pub fn step(&mut self) {
        self.now_ms += self.rng.random_range(1..20);
        let dice = self.rng.random_range(0..1000);
        let Some(site) = self.any_primary() else { return self.operator_acts() };
        match dice {
            0..260 if !self.guest_rests => self.guest_begins(site),
            260..270 => self.guest_rests = !self.guest_rests,
            0..530 => self.guest_progresses(site),
            530..550 if self.guest_flushes => self.flush_guest(site),
            530..915 => self.move_data(site),
            915..920 => self.volume_grows(site),
            920..940 => self.extents_cool(site),
            940..943 => self.mode_changes(),
            943..945 if self.has_several => self.tell_everywhere(site),
            943..948 => self.cut_is_due(site),
            948..960 => {
                let site = self.any_site();
                self.check_copy(site);
            }
            // With several standbys more sites fail; each is to get somewhere between two faults.
            960..972 if self.has_several => self.move_data(site),
            960..985 => self.something_fails(),
            _ => self.operator_acts(),
        }
        if self.has_several {
            self.distance_changes();
            self.failover_follows();
            self.guest_takes_back();
        }
        self.check_sites();
    }

    fn volume_grows(&mut self, site: usize) {
        let (blocks, is_told) = (self.rng.random_range(1..100), self.rng.random_bool(0.5));
        self.sites[site].grow(blocks, is_told);
    }

    /// The operator changes the mode of the standby at some site, wherever the primary is.
    fn mode_changes(&mut self) {
        let (rules, of) = (any_rules(&mut self.rng), if self.has_several { self.any_site() } else { 0 });
        let peer = if self.has_several { Peer::At(of) } else { Peer::Any };
        self.note(|| {
            let to = if self.has_several { format!(" of {}", name(of)) } else { String::new() };
            format!("{:?}{to} is wanted, {:?} without a standby, {} ms at most", rules.wanted, rules.on_disconnect, rules.ack_timeout_ms)
        });
        // Mode `snapshot`, until the process ends.
        let asked = rules.wanted == Promise::Local && self.rng.random_bool(0.5);
        let cuts = if asked { Cuts::Asked } else { Cuts::InTime };
        for site in &mut self.sites {
            site.rules[of] = rules;
            let replicas = site.as_primary().into_iter().flat_map(|primary| &mut primary.replicas);
            replicas.filter(|replica| replica.peer == peer).for_each(|replica| replica.set_rules(rules, cuts));
        }
    }

    pub fn cut_is_due(&mut self, site: usize) {
        if let Some(primary) = self.sites[site].as_primary() {
            let at = self.rng.random_range(0..primary.replicas.len());
            primary.replicas[at].ask_for_cut();
        }
    }

    fn extents_cool(&mut self, site: usize) {
        if let Some(primary) = self.sites[site].as_primary() {
            primary.cool(self.rng.random_range(0..primary.replicas.len()));
        }
        // What cooled too early shows after a crash before the next flush.
        if self.rng.random_bool(0.1) {
            self.crash(site, Crash::Power);
        }
    }

    /// What people do: start what is down, promote, resync, make a copy anew.
    fn operator_acts(&mut self) {
        let site = self.any_site();
        let is_wanted = self.any_primary().is_none() || self.rng.random_bool(0.25);
        match (&self.sites[site].part, self.sites[site].record.role) {
            // With the power it may have lost, too, what tells that something is missing.
            (Part::Down, Role::Standby) if self.sites[site].is_flipped => self.replace_copy(site),
            (Part::Down, _) => {
                self.note(|| format!("{} starts", name(site)));
                self.sites[site].restart();
            }
            // Somebody must have what the others give up.
            (Part::Idle, Role::SplitBrain) if !self.is_served() => {
                let generation = self.id();
                let _ = self.sites[site].continue_after_split(generation);
            }
            (Part::Idle, _) if !self.is_served() => {}
            (Part::Idle, Role::Stale) => {
                self.note(|| format!("{} discards what it has alone", name(site)));
                let _ = self.sites[site].follow(&mut self.rng);
            }
            (Part::Idle, Role::SplitBrain) => {
                let _ = self.sites[site].follow(&mut self.rng);
            }
            (Part::Idle, Role::Parted) => self.add_standby(site),
            (Part::Standby(_), _) if self.sites[site].record.successor.is_some() && self.rng.random_bool(0.7) => {
                self.give_up_later_points(site);
            }
            (Part::Standby(_), _) if is_wanted => self.promote(site, None),
            (Part::Primary(_), _) if self.has_several && self.rng.random_bool(0.1) => self.remove_standby(site),
            (Part::Primary(_), _) if self.rng.random_bool(0.15) => self.hand_over(site),
            (Part::Primary(_), _) => self.make_anew(site),
            _ => {}
        }
    }

    pub fn promote(&mut self, site: usize, expected: Option<u64>) {
        self.end_sessions_to(site);
        self.check_copy(site);
        let generation = self.id();
        self.note(|| format!("{} is promoted", name(site)));
        let _ = self.sites[site].promote(generation, expected, &self.history);
    }

    /// A copy that went another way than the primary, and is a standby, can only be thrown away.
    fn make_anew(&mut self, primary: usize) {
        let Some(standby) = self.diverged[primary].take() else { return };
        if self.sites[primary].record.role != Role::Primary || self.sites[standby].as_standby().is_none() {
            return;
        }
        self.replace_copy(standby);
    }

    /// An empty copy takes the place of one, for whoever is primary.
    fn replace_copy(&mut self, standby: usize) {
        let Some(Site { record, rules, .. }) = self.sites.iter().find(|site| site.record.role == Role::Primary) else { return };
        let (size_bytes, lineage, rules) = (record.size_bytes, record.lineage.clone(), rules.clone());
        self.note(|| format!("{} is made anew", name(standby)));
        self.end_sessions_to(standby);
        let peers = self.sites[standby].record.peers.clone();
        self.sites[standby] = Site::standby(size_bytes, lineage, peers, rules, &mut self.rng, self.plant);
        self.sites[standby].quota_bytes = AMPLE_BYTES;
        self.sites[standby].start();
    }

    /// A fuse that blew takes its site with it; nothing outgrows its limits.
    pub fn check_sites(&mut self) {
        for site in 0..self.sites.len() {
            if self.sites[site].storage.faults.is_out() {
                self.crash(site, Crash::Power);
                self.sites[site].storage.faults.replace_fuse();
            }
            if let Some(standby) = self.sites[site].as_standby() {
                let (used, quota) = standby.journal_bytes();
                assert!(used <= quota, "the journal has {used} bytes of {quota}");
            }
            if let Some(primary) = self.sites[site].as_primary() {
                primary.check_limits();
            }
        }
    }

    /// No more faults and no more writes: one site is primary, and the others become equal to it.
    pub fn heal(&mut self) {
        self.network.mend();
        self.far = None;
        for site in 0..self.sites.len() {
            self.end_sessions_of(site);
            self.tally.faults += self.sites[site].storage.faults.injected();
            self.sites[site].storage.faults.mend();
            self.sites[site].quota_bytes = AMPLE_BYTES;
            self.crash(site, Crash::Process);
            self.sites[site].restart();
        }
        let primary = self.settle_roles();
        for site in (0..self.sites.len()).filter(|site| *site != primary) {
            if self.sites[site].record.role == Role::Parted {
                self.add_standby(site);
            } else if self.sites[site].is_flipped {
                self.replace_copy(site);
            }
        }
        for standby in (0..self.sites.len()).filter(|site| *site != primary) {
            self.catch_up(primary, standby);
        }
    }

    /// Those who were overtaken follow; the one that is left is primary.
    fn settle_roles(&mut self) -> usize {
        for _ in 0..20 {
            for site in 0..self.sites.len() {
                for other in 0..self.sites.len() {
                    self.connect(site, other);
                    self.end_session(site, other);
                }
            }
            let with = |world: &Self, role| (0..world.sites.len()).find(|site| world.sites[*site].record.role == role);
            match (with(self, Role::Primary), with(self, Role::SplitBrain)) {
                (Some(primary), _)
                    if (0..self.sites.len())
                        .all(|site| site == primary || matches!(self.sites[site].record.role, Role::Standby | Role::Parted)) =>
                {
                    return primary;
                }
                (Some(_), _) => {}
                (None, Some(split)) => {
                    let generation = self.id();
                    self.sites[split].continue_after_split(generation).expect("a disk without faults");
                }
                (None, None) => {
                    let ready = |site: &usize| matches!(&self.sites[*site].part, Part::Standby(standby) if standby.has_point());
                    let newest = |site: &usize| (!self.sites[*site].is_flipped, self.sites[*site].record.lineage.generations().len());
                    let best = (0..self.sites.len()).filter(ready).max_by_key(newest);
                    match best {
                        Some(standby) => self.promote(standby, None),
                        // Overtaken by one whose content is nowhere any more.
                        None => {
                            let stale = with(self, Role::Stale).expect("some site has a recovery point");
                            let generation = self.id();
                            self.sites[stale].continue_after_split(generation).expect("a disk without faults");
                        }
                    }
                }
            }
            let found = with(self, Role::Primary);
            for site in (0..self.sites.len()).filter(|site| found.is_some_and(|found| found != *site)) {
                self.sites[site].follow(&mut self.rng).expect("a disk without faults");
            }
        }
        panic!("nobody becomes primary: {:?}", self.sites.iter().map(|site| &site.record).collect::<Vec<_>>());
    }

    fn catch_up(&mut self, primary: usize, standby: usize) {
        self.end_sessions_of(primary);
        for _ in 0..HEALING_TURNS {
            self.now_ms += 10;
            if !self.sessions.contains_key(&(primary, standby)) {
                self.connect(primary, standby);
            }
            self.guest_progresses(primary);
            self.move_data_to(primary, standby);
            self.give_up_later_points(standby);
            // Overtaken by a copy that took on a later generation, and whose primary is no more.
            if self.sites[primary].record.role != Role::Primary {
                let generation = self.id();
                self.sites[primary].continue_after_split(generation).expect("a disk without faults");
            }
            self.make_anew(primary);
            if self.is_drained(primary, standby) && self.is_silent(primary, standby) {
                break;
            }
        }
        let is_drained = self.is_drained(primary, standby);
        assert!(is_drained, "{} has not everything of {} though nothing fails any more", name(standby), name(primary));
        self.end_session(primary, standby);
        self.check_copy(standby);
        let (copy, view) = (self.settled_view(standby), self.sites[primary].storage.image.view());
        let differ = copy.keys().chain(view.keys()).find(|block| copy.get(block) != view.get(block));
        assert!(differ.is_none(), "block {differ:?} of {} and {} differs once everything healed", name(standby), name(primary));
    }

    fn settled_view(&mut self, standby: usize) -> View {
        let settled = self.sites[standby].as_standby().map(|standby| standby.settle());
        settled.expect("it is a standby").expect("a disk without faults");
        self.sites[standby].storage.image.view()
    }
}
