//! How groups are, computed each time somebody asks.

use super::super::status::{seconds, status};
use super::super::volumes::{OpenVolume, Volumes};
use super::OpenGroup;
use blockd_api::{GroupStatus, Role, State, VolumeName, VolumeStatus};
use replicator::clock::unix_ms;
use replicator::primary::group::CutterStatus;

/// From the worst to the best.
const WORST_FIRST: [State; 12] = [
    State::Error,
    State::SplitBrain,
    State::Fenced,
    State::Suspended,
    State::Disconnected,
    State::InitialSync,
    State::Degraded,
    State::NotConverging,
    State::Promoting,
    State::Trial,
    State::CatchingUp,
    State::InSync,
];

/// All groups, or the one with this name.
pub(in crate::daemon) fn statuses(here: &Volumes, name: Option<&VolumeName>) -> Vec<GroupStatus> {
    let asked = |group: &&OpenGroup| name.is_none_or(|name| *name == group.record.name);
    here.groups.all().filter(asked).map(|group| status_of(here, group)).collect()
}

pub(super) fn status_of(here: &Volumes, group: &OpenGroup) -> GroupStatus {
    let members: Vec<&OpenVolume> = group.record.members.iter().filter_map(|id| here.by_id(id)).collect();
    let seen: Vec<VolumeStatus> = members.iter().map(|open| status(open)).collect();
    let is_whole = seen.len() == group.record.members.len();
    let role = seen.first().map(|first| first.role).filter(|role| is_whole && seen.iter().all(|of| of.role == *role));
    let cutter = group.cutter.status().borrow().clone();
    let (point, point_unix_ms) = match role {
        Some(Role::Primary) => cutter.complete.as_ref().map(|cut| (cut.number, cut.unix_ms)).unzip(),
        _ => group.board.complete().unzip(),
    };
    let reason = reason(group, &seen, role, &cutter);
    let worst = seen.iter().map(|of| of.state).min_by_key(|state| WORST_FIRST.iter().position(|of| of == state));
    let state = match worst {
        _ if !is_whole => State::Error,
        Some(State::InSync) if reason.is_some() => State::CatchingUp,
        Some(worst) => worst,
        None => State::Error,
    };
    GroupStatus {
        name: group.record.name.clone(),
        volumes: seen.iter().map(|of| of.name.clone()).collect(),
        role,
        state,
        promise_held: is_whole && reason.is_none() && seen.iter().all(|of| of.promise_held),
        peer: group.record.peer.clone(),
        point,
        point_age_seconds: point_unix_ms.map(|unix| seconds(unix_ms().saturating_sub(unix))),
        reason,
        cuts: cutter.cuts,
        cuts_given_up: cutter.given_up,
        longest_hold_seconds: cutter.longest_hold.as_secs_f64(),
    }
}

/// What keeps the group from a newer recovery point.
fn reason(group: &OpenGroup, seen: &[VolumeStatus], role: Option<Role>, cutter: &CutterStatus) -> Option<String> {
    let name = &group.record.name;
    if seen.len() < group.record.members.len() {
        return Some("a member is not here, or could not be opened".into());
    }
    if group.record.promoting.is_some() {
        return Some(format!("a promotion has begun and not ended: `tern promote {name}` goes on with it"));
    }
    let Some(role) = role else {
        let parts: Vec<String> = seen.iter().map(|of| format!("{} is {}", of.name, of.role)).collect();
        let how = format!("`tern promote {name}` goes on, where they are to be primary");
        return Some(format!("this site's part is not the same in all: {}: {how}", parts.join(", ")));
    };
    if role == Role::Primary {
        let lagging: Vec<String> =
            cutter.lagging.iter().filter_map(|member| seen.get(*member)).map(|of| format!("{} is {}", of.name, of.state)).collect();
        if !lagging.is_empty() {
            return Some(format!("the others are cut without it: {}", lagging.join(", ")));
        }
        return cutter.complete.is_none().then(|| "no cut of all is at the standby yet".into());
    }
    (role == Role::Standby && group.board.complete().is_none()).then(|| "there is no cut that all members have".into())
}
