//! Making a group, changing its members, and ending it. Where its members are primary; where they are standbys that follows.

use super::super::Daemon;
use super::super::handover::wrong_state;
use super::super::part::Part;
use super::super::volumes::random_id;
use super::status::status_of;
use super::telling::Told;
use super::{GroupRecord, MAX_GROUPS, no_group};
use crate::admin::Outcome;
use crate::catalogue::{PeerRecord, RecordedRole, VolumeRecord};
use blockd_api::*;
use replicator_engine::group::MAX_MEMBERS;
use std::collections::BTreeSet;

impl Daemon {
    pub(in crate::daemon) async fn make_group(&self, request: CreateGroup) -> Outcome<GroupStatus> {
        let mut told = self.group_operation.lock().await;
        let CreateGroup { name, volumes } = request;
        {
            let mut here = self.volumes.lock().await;
            if here.groups.get(&name).is_some() {
                return Err(ApiError::new(ErrorCode::AlreadyExists, format!("a group {name} exists already")));
            }
            if here.groups.all().count() >= MAX_GROUPS {
                return Err(ApiError::new(ErrorCode::NoSpace, format!("there are {MAX_GROUPS} groups already")));
            }
            // Groups and volumes are named by the same words of a command line.
            here.reserve(&name)?;
        }
        let made = self.configure(&name, &volumes, &mut told).await;
        self.volumes.lock().await.release(&name);
        made
    }

    pub(in crate::daemon) async fn change_members(&self, name: VolumeName, request: ChangeGroup) -> Outcome<GroupStatus> {
        let mut told = self.group_operation.lock().await;
        let mut volumes: Vec<VolumeName> = {
            let here = self.volumes.lock().await;
            let group = here.groups.get(&name).ok_or_else(|| no_group(&name))?;
            here.members(&group.record)?.into_iter().map(|open| open.record.name.clone()).collect()
        };
        if let Some(stranger) = request.remove.iter().find(|volume| !volumes.contains(volume)) {
            return Err(ApiError::new(ErrorCode::NotFound, format!("{stranger} is not in group {name}")));
        }
        volumes.retain(|volume| !request.remove.contains(volume));
        volumes.extend(request.add);
        self.configure(&name, &volumes, &mut told).await
    }

    /// The other site is told first: one that has heard of a group that there is not forgets it when it is told again.
    async fn configure(&self, name: &VolumeName, volumes: &[VolumeName], told: &mut Told) -> Outcome<GroupStatus> {
        let record = self.wanted(name, volumes).await?;
        self.tell_with(&record, told).await?;
        let mut here = self.volumes.lock().await;
        // One may have been replicated to a second site since it was asked.
        here.members(&record)?.into_iter().try_for_each(|open| check_one_standby(&open.record))?;
        here.put_group(record)?;
        let group = here.groups.get(name).ok_or_else(|| no_group(name))?;
        Ok(status_of(&here, group))
    }

    /// What is recorded, if the volumes can be a group.
    async fn wanted(&self, name: &VolumeName, volumes: &[VolumeName]) -> Outcome<GroupRecord> {
        if volumes.len() < 2 || volumes.len() > MAX_MEMBERS || volumes.iter().collect::<BTreeSet<_>>().len() < volumes.len() {
            let error = ApiError::new(ErrorCode::InvalidRequest, format!("group {name} would have {} volumes", volumes.len()));
            return Err(error.with_hint(format!("name 2 to {MAX_MEMBERS} different ones; `tern group delete` ends a group")));
        }
        let here = self.volumes.lock().await;
        let mut peers: Vec<PeerRecord> = Vec::new();
        let mut members = Vec::new();
        for volume in volumes {
            let record = &here.get(volume)?.record;
            let Some(peer) = record.peer.clone().filter(|_| record.role == RecordedRole::Primary && !record.fenced) else {
                let hint = "make the group where its volumes are primary, once they are replicated";
                return Err(wrong_state(format!("{volume} is not replicated from here"), hint));
            };
            if let Some((other, _)) = here.groups.place_of(&record.id).filter(|(other, _)| other.record.name != *name) {
                return Err(wrong_state(
                    format!("{volume} is a member of group {} already", other.record.name),
                    "a volume is in one group",
                ));
            }
            check_one_standby(record)?;
            check_member(volume, &peer, peers.first())?;
            peers.push(peer);
            members.push(record.id.clone());
        }
        let first = &peers[0];
        let (site, peer) = (first.site.clone(), first.name.clone());
        Ok(GroupRecord { name: name.clone(), id: random_id()?.to_string(), members, site, peer, promoting: None })
    }

    pub(in crate::daemon) async fn end_group(&self, name: &VolumeName) -> Outcome<Done> {
        let _one_at_a_time = self.group_operation.lock().await;
        let mut here = self.volumes.lock().await;
        let group = here.groups.get(name).ok_or_else(|| no_group(name))?.record.clone();
        let is_standby = |id: &String| here.by_id(id).is_some_and(|open| open.record.role == RecordedRole::Standby);
        let reaches = group.site.parse().is_ok_and(|site| self.sites.links.get(&site).is_some());
        // One that has begun to be promoted is told of no end of it: here it may end.
        if group.members.iter().all(is_standby) && reaches && group.promoting.is_none() {
            let hint = format!("`tern group delete {name}` there");
            return Err(wrong_state(format!("the members of {name} are primary at {}, which can be reached", group.peer), &hint));
        }
        here.remove_group(name)?;
        // A promotion that was not ended had them stand still.
        for open in group.members.iter().filter_map(|id| here.by_id(id)) {
            if let Part::Standby(standby) = &open.part {
                standby.resume();
            }
        }
        self.regrouped.notify_one();
        Ok(Done {})
    }
}

/// Which cuts of a group belong together is said by the commits at one standby.
fn check_one_standby(record: &VolumeRecord) -> Outcome<()> {
    if record.others.is_empty() {
        return Ok(());
    }
    let message = format!("{} is replicated to more than one site: a group has one standby site", record.name);
    Err(wrong_state(message, "`tern replicate --stop --to SITE` ends replication to the others"))
}

/// Whether a volume may be in a group beside another.
fn check_member(volume: &VolumeName, peer: &PeerRecord, first: Option<&PeerRecord>) -> Outcome<()> {
    if peer.lease.as_ref().is_some_and(|terms| terms.auto_promote_ms.is_some()) {
        let hint = "`tern replicate --auto-promote` for volumes that need no group";
        return Err(wrong_state(format!("{volume} is promoted without the operator, and alone: in a group it may not be"), hint));
    }
    let Some(first) = first else { return Ok(()) };
    if first.site != peer.site {
        return Err(wrong_state(
            format!("{volume} is replicated to {}, others to {}", peer.name, first.name),
            "a group has one standby site",
        ));
    }
    check_modes(volume, peer, first)
}

/// Cuts by the clock and cuts as the RPO has it do not go together.
fn check_modes(volume: &VolumeName, peer: &PeerRecord, first: &PeerRecord) -> Outcome<()> {
    if (peer.mode == Mode::Snapshot) != (first.mode == Mode::Snapshot) {
        let hint = "in a group either all volumes have mode snapshot or none: change it before the group is made";
        return Err(wrong_state(format!("{volume} would be cut at other times than the rest of its group"), hint));
    }
    Ok(())
}

impl Daemon {
    /// A member's settings are about to be these.
    pub(in crate::daemon) async fn check_settings_in_group(&self, name: &VolumeName, wanted: &PeerRecord) -> Outcome<()> {
        let here = self.volumes.lock().await;
        let id = here.get(name)?.record.id.clone();
        let Some((group, _)) = here.groups.place_of(&id) else { return Ok(()) };
        let other = group.record.members.iter().filter(|member| **member != id).find_map(|member| here.by_id(member)?.record.peer.as_ref());
        check_member(name, wanted, other)
    }
}
