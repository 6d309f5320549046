//! Several standbys of one volume: what they are told, one more, one less.

use crate::primary::{Base, Peer};
use crate::site::{AMPLE_BYTES, Crash, Part, Role, Site};
use crate::standby::VOLUME;
use crate::world::{World, name, others_of};
use rand::RngExt;
use replicator::primary::memory;
use replicator_engine::tracker::LaneId;
use replicator_engine::wire;

/// Turns in which a copy gets something that nobody else has, while it is in the middle of a resync.
const BREAKING_TURNS: u32 = 40;
/// Turns in which a copy follows a new primary.
const FOLLOWING_TURNS: u32 = 40;
/// Turns within which the writes of an epoch are done.
const CLOSING_TURNS: u32 = 200;

impl World {
    /// A primary tells the standbys that are attached which epoch every one of them has.
    pub fn tell_everywhere(&mut self, site: usize) {
        let Some(primary) = self.sites[site].as_primary() else { return };
        let Some(everywhere) = primary.everywhere() else { return };
        for to in 0..self.sites.len() {
            let is_online = self.sites[site].as_primary().and_then(|primary| primary.to(to)).is_some_and(|replica| replica.is_online());
            if is_online
                && self.network.connects(site, to)
                && let Some(standby) = self.sites[to].as_standby()
            {
                standby.everywhere(everywhere);
            }
        }
    }

    /// One standby falls behind the others, or catches up.
    pub fn distance_changes(&mut self) {
        if self.rng.random_bool(0.01) {
            let site = self.any_site();
            self.far = Some(site).filter(|_| self.rng.random_bool(0.7));
        }
    }

    /// Failovers come one upon the other.
    pub fn failover_follows(&mut self) {
        if self.is_broken_off() || !self.rng.random_bool(0.012) {
            return;
        }
        let ready: Vec<usize> = (0..self.sites.len()).filter(|site| self.has_point(*site)).collect();
        if !ready.is_empty() {
            let site = ready[self.rng.random_range(0..ready.len())];
            self.promote(site, None);
        }
    }

    /// Sometimes the next one comes while a copy is in the middle of its resync, and the copy follows the second primary.
    fn is_broken_off(&mut self) -> bool {
        let sites = 0..self.sites.len();
        let Some((primary, copy)) = sites.clone().find_map(|site| Some((self.resyncs_from(site)?, site))) else { return false };
        let lineage = self.sites[primary].record.lineage.clone();
        let follows = |site: &mut Site| site.as_standby().is_some_and(|standby| standby.has_point() && *standby.lineage() == lineage);
        let Some(second) = sites.into_iter().find(|site| follows(&mut self.sites[*site])) else { return false };
        if self.rng.random_bool(0.5) {
            self.break_off(primary, copy);
            self.promote(second, None);
            self.follow_up(second, copy);
        }
        true
    }

    /// A copy hears of the new primary before the old one is back.
    pub fn follow_up(&mut self, primary: usize, copy: usize) {
        for _ in 0..FOLLOWING_TURNS {
            self.now_ms += 5;
            self.move_data_to(primary, copy);
        }
    }

    fn has_point(&mut self, site: usize) -> bool {
        self.sites[site].as_standby().is_some_and(|standby| standby.has_point())
    }

    /// The primary that sends what this site's copy lacks beside what it has.
    fn resyncs_from(&mut self, site: usize) -> Option<usize> {
        let base = self.sites[site].as_standby().and_then(|standby| standby.place()).map(|place| &place.base);
        let is_midway = matches!(base, Some(wire::Base::PointBut(_)));
        let attached = || self.sessions.iter().find(|((_, to), session)| *to == site && session.is_attached);
        if is_midway { attached().map(|((primary, _), _)| *primary) } else { None }
    }

    /// What a guest writes goes to this copy, until some of it is there that nobody else has; then its primary dies.
    fn break_off(&mut self, primary: usize, copy: usize) {
        let base = self.sites[copy].as_standby().and_then(|standby| standby.place()).map(|place| place.base.clone());
        let Some(wire::Base::PointBut(lacks)) = base else { return };
        let before = self.sites[copy].storage.image.view();
        for _ in 0..BREAKING_TURNS {
            self.now_ms += 5;
            self.guest_begins(primary);
            self.guest_progresses(primary);
            self.move_frame_to(primary, copy);
            if self.resyncs_from(copy) != Some(primary) {
                return;
            }
            let now = self.sites[copy].storage.image.view();
            if now.iter().any(|(block, content)| !lacks.contains(*block) && before.get(block) != Some(content)) {
                break;
            }
        }
        self.crash(primary, Crash::Process);
    }

    /// The operator gives up the recovery points of a standby that the new primary does not have.
    pub fn give_up_later_points(&mut self, site: usize) {
        if let (Role::Standby, Some(theirs)) = (self.sites[site].record.role, self.sites[site].record.successor.clone()) {
            let _ = self.sites[site].change(|record| record.successor = None);
            self.go_over(site, &theirs);
        }
    }

    /// A volume is not replicated to one of several sites any more.
    pub fn remove_standby(&mut self, primary: usize) {
        let Some(part) = self.sites[primary].as_primary().filter(|primary| primary.replicas.len() > 1) else { return };
        let Peer::At(site) = part.replicas[self.rng.random_range(0..part.replicas.len())].peer else { return };
        if self.sites[site].as_standby().is_none() || !self.forget_peer(primary, site) {
            return;
        }
        self.note(|| format!("{} does not replicate to {} any more", name(primary), name(site)));
        self.end_session(primary, site);
        if let Some(part) = self.sites[primary].as_primary()
            && let Some(lane) = part.lane_of(site)
        {
            part.end_lane(lane);
        }
        let _ = memory::forget_site(&*self.sites[primary].storage.catalogue, VOLUME, &Peer::At(site).key());
        (0..self.sites.len()).filter(|other| *other != site).for_each(|other| _ = self.forget_peer(other, site));
        self.end_sessions_to(site);
        let parted = &mut self.sites[site];
        (parted.record.role, parted.part) = (Role::Parted, Part::Idle);
    }

    fn forget_peer(&mut self, site: usize, peer: usize) -> bool {
        self.sites[site].change(|record| record.peers.retain(|known| *known != Peer::At(peer))).is_ok()
    }

    /// A volume is replicated to one more site.
    pub fn add_standby(&mut self, site: usize) {
        let Some(primary) = self.any_primary() else { return };
        let Some(lane) = self.begin_lane(primary) else { return };
        let peer = Peer::At(site);
        let key = peer.key();
        let forgotten = memory::forget_site(&*self.sites[primary].storage.catalogue, VOLUME, &key).is_ok();
        if !forgotten || self.sites[primary].change(|record| record.peers.push(peer)).is_err() {
            return self.sites[primary].as_primary().into_iter().for_each(|primary| primary.end_lane(lane));
        }
        self.note(|| format!("{} replicates to {}, too", name(primary), name(site)));
        let rules = self.sites[primary].rules_of(peer);
        let begun = self.sites[primary].as_primary().map(|primary| primary.replicate(lane, peer, rules, Base::default()));
        if !matches!(begun, Some(Ok(()))) {
            self.sites[primary].as_primary().into_iter().for_each(|primary| primary.end_lane(lane));
            let _ = self.forget_peer(primary, site);
            return;
        }
        for other in (0..self.sites.len()).filter(|other| *other != site && *other != primary) {
            let peers = &mut self.sites[other].record.peers;
            if !peers.contains(&peer) {
                peers.push(peer);
            }
        }
        let Site { record, rules, .. } = &self.sites[primary];
        let (size_bytes, lineage, rules) = (record.size_bytes, record.lineage.clone(), rules.clone());
        let peers = others_of(site, self.sites.len());
        self.sites[site] = Site::standby(size_bytes, lineage, peers, rules, &mut self.rng, self.plant);
        self.sites[site].quota_bytes = AMPLE_BYTES;
        self.sites[site].start();
    }

    /// A lane in which every write from now on leaves its mark.
    fn begin_lane(&mut self, primary: usize) -> Option<LaneId> {
        let lane = self.sites[primary].as_primary()?.free_lane()?;
        let mut began = None;
        for _ in 0..CLOSING_TURNS {
            let part = self.sites[primary].as_primary()?;
            match began {
                None => began = part.begin_lane(lane).ok()?,
                Some(epoch) if part.has_closed(epoch) => return Some(lane),
                Some(_) => {}
            }
            self.now_ms += 1;
            self.guest_progresses(primary);
        }
        self.sites[primary].as_primary()?.end_lane(lane);
        None
    }
}
