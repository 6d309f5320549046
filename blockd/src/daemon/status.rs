//! Status documents, computed from counts each time somebody asks.

use super::going_back;
use super::lease::status as lease;
use super::old;
use super::part::{Part, PrimaryPart, ReplicaPart, rules};
use super::proof;
use super::rivals;
use super::settings::schedule_of;
use super::trial;
use super::volumes::{OpenVolume, Unopened};
use crate::catalogue::{PeerRecord, RecordedRole, VolumeRecord};
use crate::volume::GateState;
use blockd_api::*;
use replicator::clock::unix_ms;
use replicator::counters::read;
use replicator::primary::{PrimaryStatus, PromiseStatus};
use replicator::site_link::request::lineage_of;
use replicator::standby::StandbyStatus;
use replicator_engine::acknowledgement::{Promise, Standing};
use replicator_engine::block::BLOCK_BYTES;
use replicator_engine::sender::Phase;
use replicator_engine::wire::Refusal;
use std::cmp::Ordering;

/// Changes count as faster than the link once the recovery point is older than this many times the target.
const NOT_CONVERGING_RPOS: u64 = 10;

/// A recovery point that is older, while content arrives, says that the primary gets ahead. The two sites' clocks may differ by much of it.
const LONGEST_EPOCH_MS: u64 = 30_000;

pub(super) fn info(open: &OpenVolume) -> VolumeInfo {
    let allocated_bytes = open.volume.image.disk_usage_bytes().ok();
    VolumeInfo { size_bytes: open.volume.size_bytes(), allocated_bytes, ..recorded_info(&open.record) }
}

pub(super) fn unopened_info(unopened: &Unopened) -> VolumeInfo {
    recorded_info(&unopened.record)
}

fn recorded_info(record: &VolumeRecord) -> VolumeInfo {
    VolumeInfo {
        name: record.name.clone(),
        size_bytes: record.size_bytes,
        backing: record.backing.clone(),
        exports: record.exports.clone(),
        role: role(record),
        allocated_bytes: None,
    }
}

fn role(record: &VolumeRecord) -> Role {
    match record.role {
        // To its clients it is.
        RecordedRole::Standby if record.trial.is_some() => Role::Primary,
        RecordedRole::Standalone => Role::Standalone,
        RecordedRole::Primary => Role::Primary,
        RecordedRole::Standby => Role::Standby,
        RecordedRole::Stale | RecordedRole::SplitBrain => Role::Stale,
    }
}

pub(super) fn unopened_status(unopened: &Unopened) -> VolumeStatus {
    let last_error = Some(format!("it could not be opened: {}", unopened.error));
    VolumeStatus { state: State::Error, last_error, ..recorded_status(&unopened.record) }
}

fn recorded_status(record: &VolumeRecord) -> VolumeStatus {
    let peer = record.peer.as_ref();
    VolumeStatus {
        name: record.name.clone(),
        size_bytes: record.size_bytes,
        role: role(record),
        state: State::Disconnected,
        promise_held: false,
        mode: peer.map_or(Mode::Async, |peer| peer.mode),
        peer: peer.map(|peer| peer.name.clone()),
        generation: lineage_of(&record.lineage).map_or(0, |lineage| lineage.current().counter),
        epoch_open: 0,
        epoch_committed: 0,
        rpo_seconds: None,
        rpo_target_seconds: None,
        point_age_seconds: None,
        schedule: peer.filter(|peer| peer.mode == Mode::Snapshot).and_then(|peer| peer.schedule.clone()),
        next_cut: None,
        bandwidth: peer.and_then(limit_set),
        bandwidth_bits_per_second: peer.and_then(|peer| peer.bandwidth.at(unix_ms()).limit).map(Rate::bits_per_second),
        backlog_bytes: 0,
        dirty_blocks: 0,
        changed_bytes: 0,
        wire_bytes_sent: 0,
        wire_bytes_received: 0,
        zero_blocks: 0,
        duplicate_blocks: 0,
        delta_blocks: 0,
        full_blocks: 0,
        evacuation_seconds: None,
        attached: Vec::new(),
        last_error: None,
        replicas: Vec::new(),
        lease: None,
        points: 0,
        undo_bytes: 0,
        kept_bytes: 0,
        scrub: None,
        verified: None,
        diverged: None,
        going_back: None,
        trial: record.trial.as_ref().and_then(trial::status),
    }
}

pub(super) fn status(open: &OpenVolume) -> VolumeStatus {
    let attached = open.volume.clients.attached();
    let counters = &open.volume.counters;
    let peer = open.record.peer.as_ref();
    let mut status = VolumeStatus {
        size_bytes: open.volume.size_bytes(),
        epoch_open: open.volume.intake.tracker().open_epoch(),
        changed_bytes: read(&counters.changed_bytes),
        wire_bytes_sent: read(&counters.wire_bytes_sent),
        wire_bytes_received: read(&counters.wire_bytes_received),
        zero_blocks: read(&counters.zero_blocks),
        duplicate_blocks: read(&counters.duplicate_blocks),
        delta_blocks: read(&counters.delta_blocks),
        full_blocks: read(&counters.full_blocks),
        attached: attached.iter().filter_map(|word| word.parse().ok()).collect(),
        ..recorded_status(&open.record)
    };
    match (&open.part, peer) {
        (Part::Primary(primary), Some(peer)) => {
            status = of_replicas(status, primary, &open.record);
            lease::of_primary(&mut status, open, primary, peer);
        }
        (Part::Standby(standby), _) => {
            let seen = standby.status();
            of_standby(&mut status, &seen.borrow());
            rivals::of_standby(&mut status, &open.record);
            lease::of_standby(&mut status, open);
            unless_alive(&mut status, seen.has_changed().is_ok());
        }
        _ if open.record.trial.is_some() => {
            status.state = State::Trial;
            status.generation = open.record.trial.as_ref().map_or(0, trial::generation);
            status.epoch_committed = status.trial.map_or(0, |trial| trial.point);
        }
        _ if open.record.role == RecordedRole::SplitBrain => {
            status.state = State::SplitBrain;
            status.last_error =
                Some("both sites were primary at once: `tern resync --discard-local` at one, `tern promote --force` at the other".into());
        }
        _ if open.record.role == RecordedRole::Stale => {
            status.state = State::Fenced;
            status.last_error =
                Some("another site was promoted meanwhile: `tern resync --discard-local` makes this one its standby".into());
        }
        _ => {}
    }
    let failed = || open.volume.image.failure().map(|why| format!("the disk fails requests, and the client is told so: {why}"));
    // Before what comes of it.
    status.last_error = going_back::failure(&open.record, &open.volume).or(status.last_error).or_else(failed);
    status.going_back = going_back::progress(&open.volume);
    if open.record.role == RecordedRole::Primary && open.volume.gate.state() == GateState::Fenced {
        status.state = State::Fenced;
        let for_good =
            "fenced: the other site was promoted by force, or was about to be; if it was not, `tern promote --force` here goes on";
        let for_now = "fenced: the other site is promoted on trial; this one goes on by itself if that is taken back";
        status.last_error = Some(if open.record.fenced_for.is_some() { for_now } else { for_good }.into());
    }
    status
}

/// What a thread said last is no state once it is gone.
fn unless_alive(status: &mut VolumeStatus, alive: bool) {
    if !alive {
        status.state = State::Error;
        status.promise_held = false;
        status.last_error = Some("replication has failed here and stands still: restart blockd".into());
    }
}

/// Each standby, and beside that what describes the one that is furthest behind its promise.
fn of_replicas(status: VolumeStatus, primary: &PrimaryPart, record: &VolumeRecord) -> VolumeStatus {
    let of_one = |part: &ReplicaPart| {
        let peer = record.peer_at(&part.site)?;
        let (seen, mut status) = (part.replica.status(), status.clone());
        of_primary(&mut status, &seen.borrow(), peer);
        status.bandwidth_bits_per_second = part.limit.in_force();
        unless_alive(&mut status, seen.has_changed().is_ok());
        Some(status)
    };
    let all: Vec<VolumeStatus> = primary.replicas.iter().filter_map(of_one).collect();
    let replicas = all.iter().map(of_replica).collect();
    // The first of equals.
    let worst = all.into_iter().rev().max_by(|a, b| distance(a).partial_cmp(&distance(b)).unwrap_or(Ordering::Equal));
    VolumeStatus { replicas, ..worst.unwrap_or(status) }
}

/// How far a standby is behind its promise: whether that is broken, whether it is not in sync, its RPO by what was asked for, its backlog.
fn distance(status: &VolumeStatus) -> (bool, bool, f64, u64) {
    let rpo = status.rpo_seconds.map_or(f64::INFINITY, |rpo| rpo / status.rpo_target_seconds.unwrap_or(1.0).max(0.001));
    (!status.promise_held, status.state != State::InSync, rpo, status.backlog_bytes)
}

/// What the operator set, if that is a limit.
fn limit_set(peer: &PeerRecord) -> Option<Bandwidth> {
    Some(peer.bandwidth.clone()).filter(|bandwidth| !bandwidth.is_unlimited())
}

fn of_replica(status: &VolumeStatus) -> ReplicaStatus {
    ReplicaStatus {
        site: status.peer.clone().expect("a replica is somewhere"),
        mode: status.mode,
        state: status.state,
        promise_held: status.promise_held,
        epoch_committed: status.epoch_committed,
        rpo_seconds: status.rpo_seconds,
        backlog_bytes: status.backlog_bytes,
        evacuation_seconds: None,
    }
}

fn of_primary(status: &mut VolumeStatus, seen: &PrimaryStatus, peer: &PeerRecord) {
    (status.peer, status.mode) = (Some(peer.name.clone()), peer.mode);
    status.schedule = peer.schedule.clone().filter(|_| peer.mode == Mode::Snapshot);
    status.bandwidth = limit_set(peer);
    status.state = primary_state(seen, peer);
    let block = BLOCK_BYTES as u64;
    status.promise_held = is_promise_held(seen, peer);
    status.epoch_open = seen.open_epoch;
    status.epoch_committed = seen.committed();
    status.rpo_seconds = seen.rpo_ms.map(seconds);
    status.rpo_target_seconds = (peer.mode != Mode::Snapshot).then(|| seconds(peer.rpo_ms));
    status.point_age_seconds = seen.point_unix_ms.map(age_seconds);
    status.next_cut = seen.next_cut_unix_ms.and_then(|ms| UtcTime::from_unix_seconds(i64::try_from(ms / 1000).ok()?));
    status.backlog_bytes = seen.backlog.unsent_blocks * block;
    status.dirty_blocks = seen.backlog.in_doubt_blocks;
    let refused = seen.refused.as_ref().map(|refused| refused.text.clone());
    status.last_error = seen.error.clone().or(refused).or_else(|| match status.state {
        State::Degraded => {
            Some(format!("the standby does not keep up: acknowledged here alone, not as mode {} promises, until it does", status.mode))
        }
        State::Suspended => Some(format!("clients wait for the standby; requests that were begun: {}", seen.promise.waiting)),
        _ => None,
    });
}

pub(super) fn is_in_time(seen: &PrimaryStatus, peer: &PeerRecord) -> bool {
    if peer.mode == Mode::Snapshot {
        return seen.known.is_some() && seen.dues.are_kept();
    }
    seen.rpo_ms.is_some_and(|age| age <= peer.rpo_ms)
}

/// Whether a disaster now would cost no more than the mode says.
fn is_promise_held(seen: &PrimaryStatus, peer: &PeerRecord) -> bool {
    let PromiseStatus { wanted, standing, .. } = seen.promise;
    let kept = wanted == rules(peer).wanted && matches!(standing, Standing::Held | Standing::Suspended);
    if rules(peer).wanted == Promise::Local { is_in_time(seen, peer) } else { kept }
}

/// Whether changes come faster than the link carries them.
fn is_falling_behind(seen: &PrimaryStatus, peer: &PeerRecord) -> bool {
    match peer.mode {
        Mode::Snapshot => !seen.dues.are_kept(),
        _ => seen.rpo_ms.is_some_and(|age| age > peer.rpo_ms * NOT_CONVERGING_RPOS),
    }
}

fn primary_state(seen: &PrimaryStatus, peer: &PeerRecord) -> State {
    let refusal = seen.refused.as_ref().map(|refused| refused.reason);
    let held = rules(peer).wanted == Promise::Local || is_promise_held(seen, peer);
    match (refusal, &seen.phase) {
        _ if seen.error.is_some() => State::Error,
        (Some(Refusal::SplitBrain), _) => State::SplitBrain,
        (None | Some(Refusal::Storage | Refusal::NotStandby), _) if seen.promise.standing == Standing::Suspended => State::Suspended,
        (None | Some(Refusal::Storage | Refusal::NotStandby), _) if seen.promise.standing == Standing::Degraded => State::Degraded,
        (Some(Refusal::Storage), _) => State::Suspended,
        (Some(Refusal::NotStandby), _) => State::Disconnected,
        (Some(_), _) => State::Error,
        (None, Phase::Online) if seen.known.is_none() => State::InitialSync,
        (None, Phase::Online) if seen.is_in_sync() && is_in_time(seen, peer) && held => State::InSync,
        (None, Phase::Online) if is_falling_behind(seen, peer) => State::NotConverging,
        (None, Phase::Online) => State::CatchingUp,
        (None, Phase::Offline | Phase::Attaching | Phase::Refused(_)) => State::Disconnected,
    }
}

fn of_standby(status: &mut VolumeStatus, seen: &StandbyStatus) {
    status.state = match seen {
        StandbyStatus { error: Some(_), full: true, .. } => State::Suspended,
        StandbyStatus { error: Some(_), .. } => State::Error,
        StandbyStatus { attached: false, .. } => State::Disconnected,
        StandbyStatus { has_point: false, .. } => State::InitialSync,
        StandbyStatus { caught_up: false, .. } if !is_between_cuts(status, seen) => State::CatchingUp,
        // Content is on its way, and the epoch that it belongs to does not come.
        StandbyStatus { staged: true, cut_unix_ms: Some(cut), .. } if unix_ms().saturating_sub(*cut) > LONGEST_EPOCH_MS => {
            State::CatchingUp
        }
        _ => State::InSync,
    };
    status.generation = seen.lineage.as_ref().map_or(0, |lineage| lineage.current().counter);
    status.epoch_committed = if seen.has_point { seen.committed } else { 0 };
    status.epoch_open = 0;
    status.point_age_seconds = seen.cut_unix_ms.filter(|_| seen.has_point).map(age_seconds);
    status.last_error = seen.error.clone().or_else(|| seen.points_lost.clone());
    status.points = seen.points as u64;
    status.undo_bytes = seen.undo_bytes;
    proof::of_standby(status, seen);
    old::of_standby(status, seen.kept_old.as_ref());
}

/// Whether a primary that has just attached owes nothing: in mode `snapshot`, until the next cut is due.
fn is_between_cuts(status: &VolumeStatus, seen: &StandbyStatus) -> bool {
    let next_unix_ms = |schedule: &String| schedule_of(schedule).ok()?.after(seen.cut_unix_ms?);
    let is_ahead = |schedule| next_unix_ms(schedule).is_some_and(|next| next > unix_ms());
    status.mode == Mode::Snapshot && status.schedule.as_ref().is_none_or(is_ahead)
}

fn age_seconds(of_unix_ms: u64) -> f64 {
    seconds(unix_ms().saturating_sub(of_unix_ms))
}

pub(super) fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}
