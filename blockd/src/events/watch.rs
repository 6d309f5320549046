//! Edges of a volume's states. What comes and goes counts once it has stayed for a while, either way.

use super::Kind;
use super::promises::Promises;
use blockd_api::{LastVerify, Role, State, VolumeName, VolumeStatus};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// For so long a state has to last before it is told that it began, or ended.
const LASTING: Duration = Duration::from_secs(5);
/// A disk that is dying loses something each second: what it loses within that time is told together.
const QUIET: Duration = Duration::from_secs(600);

/// What is known of every volume.
#[derive(Debug, Default)]
pub struct Watch {
    volumes: BTreeMap<VolumeName, Seen>,
    /// What is found from now on has happened since.
    has_looked: bool,
}

#[derive(Debug)]
struct Seen {
    promises: Promises,
    split: Level,
    full: Level,
    fenced: bool,
    role: Role,
    generation: u64,
    verified: Option<LastVerify>,
    found: u64,
    /// When it was told that more was found.
    found_told: Option<Instant>,
}

/// A state that comes and goes.
#[derive(Debug, Default)]
pub(super) struct Level {
    pub told: bool,
    /// Since when it is otherwise than told.
    since: Option<Instant>,
}

impl Level {
    /// It holds or not; says whether that is to be told now.
    pub fn see(&mut self, holds: bool, lasting: Duration, now: Instant) -> bool {
        if holds == self.told {
            self.since = None;
            return false;
        }
        let lasts = now.duration_since(*self.since.get_or_insert(now)) >= lasting;
        if lasts {
            (self.told, self.since) = (holds, None);
        }
        lasts
    }
}

impl Watch {
    /// Looks at all volumes; returns what happened to which, and in words.
    pub fn see(&mut self, volumes: &[VolumeStatus], now: Instant) -> Vec<(Kind, VolumeName, String)> {
        self.volumes.retain(|name, _| volumes.iter().any(|volume| volume.name == *name));
        let mut happened = Vec::new();
        for volume in volumes {
            let first = || if self.has_looked { Seen::made(volume) } else { Seen::first(volume) };
            let seen = self.volumes.entry(volume.name.clone()).or_insert_with(first);
            happened.extend(seen.see(volume, now).into_iter().map(|(kind, words)| (kind, volume.name.clone(), words)));
        }
        self.has_looked = true;
        happened
    }
}

impl Seen {
    /// What was found before the daemon began is not told again; a state that lasts is.
    fn first(volume: &VolumeStatus) -> Self {
        Self {
            promises: Promises::default(),
            split: Level::default(),
            full: Level::default(),
            fenced: false,
            role: volume.role,
            generation: volume.generation,
            verified: volume.verified.clone(),
            found_told: None,
            found: volume.scrub.as_ref().map_or(0, |scrub| scrub.found_blocks),
        }
    }

    /// It was made since the last look.
    fn made(volume: &VolumeStatus) -> Self {
        Self { verified: None, found: 0, ..Self::first(volume) }
    }

    fn see(&mut self, volume: &VolumeStatus, now: Instant) -> Vec<(Kind, String)> {
        let mut happened = self.promises.see(volume, LASTING, now);
        if self.split.see(volume.state == State::SplitBrain, Duration::ZERO, now) {
            let words = ["both sites were primary at once", "one of the two sites follows the other"];
            happened.push(if self.split.told { (Kind::SplitBrain, words[0].into()) } else { (Kind::SplitEnded, words[1].into()) });
        }
        if self.full.see(volume.role == Role::Standby && volume.state == State::Suspended, LASTING, now) {
            let why = || volume.last_error.clone().unwrap_or_default();
            happened.push(if self.full.told { (Kind::StandbyFull, why()) } else { (Kind::StandbyHasRoom, "there is room again".into()) });
        }
        let is_fenced = volume.state == State::Fenced;
        if is_fenced && !std::mem::replace(&mut self.fenced, is_fenced) {
            happened.push((Kind::Fenced, volume.last_error.clone().unwrap_or_default()));
        }
        self.fenced = is_fenced;
        let was_other = !matches!(self.role, Role::Primary | Role::Standalone) || volume.generation > self.generation;
        if volume.role == Role::Primary && was_other && self.generation > 0 {
            happened.push((Kind::Promoted, format!("primary here, in generation {}", volume.generation)));
        }
        (self.role, self.generation) = (volume.role, volume.generation);
        happened.extend([self.lost(volume, now), self.differs(volume)].into_iter().flatten().map(|words| (Kind::ProofFailed, words)));
        happened
    }

    fn lost(&mut self, volume: &VolumeStatus, now: Instant) -> Option<String> {
        let found = volume.scrub.as_ref().map_or(0, |scrub| scrub.found_blocks);
        if found <= self.found {
            self.found = found;
            return None;
        }
        if self.found_told.is_some_and(|told| now.duration_since(told) < QUIET) {
            return None;
        }
        let more = found - std::mem::replace(&mut self.found, found);
        self.found_told = Some(now);
        Some(format!("this site's disk has lost {more} blocks of the standby's image: the primary sends them again"))
    }

    fn differs(&mut self, volume: &VolumeStatus) -> Option<String> {
        if volume.verified == self.verified {
            return None;
        }
        self.verified.clone_from(&volume.verified);
        match self.verified.as_ref()? {
            LastVerify { error: Some(why), .. } => Some(format!("the two sites could not be compared: {why}")),
            LastVerify { blocks_different: different @ 1.., .. } => Some(format!("the two sites differ in {different} blocks")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(json: serde_json::Value) -> VolumeStatus {
        let mut whole = serde_json::json!({"name": "vm1", "size_bytes": 4096, "role": "primary", "state": "in-sync",
            "promise_held": true, "mode": "async", "peer": "oregon", "generation": 3, "epoch_open": 8, "epoch_committed": 7,
            "rpo_seconds": 0.4, "backlog_bytes": 1, "dirty_blocks": 2, "changed_bytes": 3, "wire_bytes_sent": 4, "wire_bytes_received": 5,
            "zero_blocks": 6, "duplicate_blocks": 7, "delta_blocks": 8, "full_blocks": 9, "evacuation_seconds": 1.2, "attached": [],
            "last_error": null, "replicas": []});
        json.as_object().unwrap().iter().for_each(|(key, value)| whole[key] = value.clone());
        serde_json::from_value(whole).unwrap()
    }

    /// What is told of these states, each a second after the one before.
    fn told(states: impl IntoIterator<Item = serde_json::Value>) -> Vec<Kind> {
        let (mut watch, mut now, mut told) = (Watch::default(), Instant::now(), Vec::new());
        for state in states {
            told.extend(watch.see(&[volume(state)], now).into_iter().map(|(kind, ..)| kind));
            now += Duration::from_secs(1);
        }
        told
    }

    fn times(state: serde_json::Value, times: usize) -> Vec<serde_json::Value> {
        vec![state; times]
    }

    #[test]
    fn an_rpo_that_is_broken_for_a_while_is_told_once_and_its_end_too() {
        let (held, broken) = (serde_json::json!({}), serde_json::json!({"promise_held": false}));
        let flutter: Vec<_> = (0..20).flat_map(|_| [times(held.clone(), 1), times(broken.clone(), 4)].concat()).collect();
        assert_eq!(told(flutter), []);
        let once = [times(broken.clone(), 60), times(held.clone(), 3), times(broken, 9), times(held, 9)].concat();
        assert_eq!(told(once), [Kind::RpoBroken, Kind::RpoKept]);
        assert_eq!(told(times(serde_json::json!({"promise_held": false, "state": "initial-sync"}), 60)), [], "nothing was promised yet");
    }

    #[test]
    fn a_promise_that_is_broken_at_one_standby_hides_none_at_another() {
        let of = |site: &str, state: &str, held: bool| {
            serde_json::json!({"site": site, "mode": "async", "state": state, "promise_held": held, "epoch_committed": 7,
                "rpo_seconds": 9.0, "backlog_bytes": 1})
        };
        let seen = |far: bool, near: bool| serde_json::json!({"promise_held": far && near, "replicas": [of("milan", "disconnected", far), of("oregon", "disconnected", near)]});
        let states = [times(seen(false, true), 9), times(seen(false, false), 9), times(seen(false, true), 9), times(seen(true, true), 9)];
        assert_eq!(told(states.concat()), [Kind::RpoBroken, Kind::RpoBroken, Kind::RpoKept, Kind::RpoKept]);
        let first_sync = serde_json::json!({"state": "initial-sync",
            "replicas": [of("milan", "initial-sync", false), of("oregon", "disconnected", false)]});
        assert_eq!(told(times(first_sync, 9)), [Kind::RpoBroken], "the far one has promised nothing yet, the near one has");
    }

    #[test]
    fn a_split_a_fence_and_a_promotion_are_told_at_once() {
        let standby = serde_json::json!({"role": "standby"});
        let promoted = serde_json::json!({"generation": 4});
        assert_eq!(told([standby, promoted.clone(), promoted]), [Kind::Promoted]);
        let split = serde_json::json!({"role": "stale", "state": "split-brain"});
        let stale = serde_json::json!({"role": "stale", "state": "fenced"});
        assert_eq!(
            told([serde_json::json!({}), split.clone(), split, stale.clone(), stale]),
            [Kind::SplitBrain, Kind::SplitEnded, Kind::Fenced]
        );
        assert_eq!(told(times(serde_json::json!({}), 9)), [], "a start is no promotion");
        let broken = times(serde_json::json!({"promise_held": false}), 9);
        let fenced = times(serde_json::json!({"role": "stale", "state": "fenced", "promise_held": false}), 9);
        assert_eq!(told([broken, fenced].concat()), [Kind::RpoBroken, Kind::Fenced], "who is fenced does not keep its promise again");
    }

    #[test]
    fn each_failed_proof_is_told_once_and_none_from_before_the_start() {
        let verified = |epoch: u64, different: u64| {
            serde_json::json!({"verified": {"time": "2027-01-15T08:00:00Z", "blocks_compared": 9, "blocks_different": different,
                "at_epoch": epoch, "error": null}})
        };
        let states = [verified(1, 3), verified(1, 3), verified(2, 3), verified(2, 3), verified(3, 0), verified(4, 1)];
        assert_eq!(told(states), [Kind::ProofFailed, Kind::ProofFailed]);
        let scrub = |found: u64| {
            serde_json::json!({"role": "standby", "scrub": {"running": false, "last": null, "damaged_blocks": 0,
                "first_damaged_block": null, "found_blocks": found, "repaired_blocks": 0, "unknown_blocks": 0, "error": null}})
        };
        assert_eq!(told([scrub(2), scrub(2), scrub(3), scrub(3)]), [Kind::ProofFailed]);
        assert_eq!(told((0..1500).map(scrub)), [Kind::ProofFailed; 3], "a disk that dies drowns nothing else");
    }
}
