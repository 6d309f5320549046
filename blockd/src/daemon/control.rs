//! The admin API's operations, carried out on the site's volumes.

use super::Daemon;
use super::create;
use super::forecast;
use super::groups::statuses;
use super::part::Part;
use super::proof;
use super::status::{info, status, unopened_info, unopened_status};
use super::trial::not_on_trial;
use super::volumes::{Unopened, Volumes};
use crate::admin::{Control, Outcome, ProgressSink};
use crate::catalogue::{RecordedRole, VolumeRecord};
use crate::volume::GateState;
use blockd_api::*;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;

/// For another operation on the same volume to end.
pub(super) const BUSY_DEADLINE: Duration = Duration::from_secs(5);

impl Daemon {
    async fn info_of(&self, name: &VolumeName) -> Outcome<VolumeInfo> {
        self.volumes.lock().await.get(name).map(info)
    }

    /// Makes sure that nobody else changes the volume's part, and looks at what is recorded then.
    pub(super) async fn begin(&self, name: &VolumeName) -> Outcome<(VolumeRecord, OwnedMutexGuard<()>)> {
        let operation = self.volumes.lock().await.get(name)?.operation.clone();
        let busy = |_| {
            ApiError::new(ErrorCode::Busy, format!("another operation on {name} is under way"))
                .with_hint("wait until it is done, then try again")
        };
        let held = tokio::time::timeout(BUSY_DEADLINE, operation.lock_owned()).await.map_err(busy)?;
        Ok((self.volumes.lock().await.get(name)?.record.clone(), held))
    }

    /// Deletes a volume that could not be opened.
    async fn delete_unopened(&self, name: &VolumeName) -> Outcome<bool> {
        let mut volumes = self.volumes.lock().await;
        let Some(unopened) = volumes.unopened.get(name) else { return Ok(false) };
        volumes.forget(&unopened.record)?;
        volumes.unopened.remove(name);
        Ok(true)
    }
}

fn journal_bytes(volumes: &Volumes) -> u64 {
    volumes.all().map(|open| if let Part::Standby(standby) = &open.part { standby.status().borrow().journal_bytes } else { 0 }).sum()
}

impl Control for Daemon {
    async fn status(&self, volume: Option<VolumeName>) -> Outcome<Status> {
        let asked = self.ask_parted(volume.as_ref()).await;
        let volumes = self.volumes.lock().await;
        let groups = statuses(&volumes, volume.as_ref());
        let of_group = volume.as_ref().and_then(|name| volumes.groups.get(name));
        let mut chosen = match volume {
            _ if of_group.is_some() => {
                of_group.map_or(Ok(Vec::new()), |group| volumes.members(&group.record))?.into_iter().map(status).collect()
            }
            Some(name) => match volumes.unopened.get(&name) {
                Some(unopened) => vec![unopened_status(unopened)],
                None => vec![status(volumes.get(&name)?)],
            },
            None => volumes.all().map(status).chain(volumes.unopened.values().map(unopened_status)).collect(),
        };
        for volume in &mut chosen {
            volume.diverged = asked.get(&volume.name).copied();
            if let Ok(open) = volumes.get(&volume.name) {
                proof::add_verified(volume, &*volumes.catalogue, &open.record.id);
                forecast::add_to(volume, &*volumes.catalogue, open);
            }
        }
        // Each volume has its own.
        let count = volumes.open.len().max(1) as u64;
        let spill = Usage {
            used_bytes: volumes.all().map(|open| open.volume.intake.kept_bytes().1).sum(),
            quota_bytes: volumes.spill_quota_bytes.saturating_mul(count),
        };
        let journal_quota = volumes.journal_quota_bytes.saturating_mul(count);
        let journal = Usage { used_bytes: journal_bytes(&volumes), quota_bytes: journal_quota };
        Ok(Status { site: self.site.clone(), id: self.id.clone(), volumes: chosen, groups, journal, spill })
    }

    async fn forecast(&self, volume: Option<VolumeName>, to: Option<SiteName>) -> Outcome<ForecastList> {
        self.forecasts(volume.as_ref(), to.as_ref()).await
    }

    async fn handovers(&self, volume: Option<VolumeName>) -> Outcome<HandoverList> {
        self.list_handovers(volume.as_ref()).await
    }

    async fn create_volume(&self, request: CreateVolume, progress: ProgressSink) -> Outcome<VolumeInfo> {
        self.check_holds_data()?;
        let volumes = Arc::clone(&self.volumes);
        let name = request.name.clone();
        let stopped = self.stopped.clone();
        let told = move |step| {
            progress.report(step);
            if stopped.has_changed().is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let created = tokio::task::spawn_blocking(move || create::create(&volumes, &request, &told)).await;
        created.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))??;
        self.info_of(&name).await
    }

    async fn list_volumes(&self) -> Outcome<VolumeList> {
        let volumes = self.volumes.lock().await;
        Ok(VolumeList { volumes: volumes.all().map(info).chain(volumes.unopened.values().map(unopened_info)).collect() })
    }

    async fn show_volume(&self, volume: VolumeName) -> Outcome<VolumeInfo> {
        self.info_of(&volume).await
    }

    async fn delete_volume(&self, volume: VolumeName, request: DeleteVolume) -> Outcome<Done> {
        if request.yes && self.delete_unopened(&volume).await? {
            return Ok(Done {});
        }
        let (record, _operation) = self.begin(&volume).await?;
        not_on_trial(&record)?;
        if record.role == RecordedRole::Primary {
            let error = ApiError::new(ErrorCode::WrongState, format!("{volume} is being replicated"));
            return Err(error.with_hint(format!("`tern replicate {volume} --stop` ends that")));
        }
        let (disk, front_ends) = {
            let volumes = self.volumes.lock().await;
            (volumes.get(&volume)?.volume.clone(), volumes.front_ends.clone())
        };
        if !request.yes {
            let held = disk.image.disk_usage_bytes().unwrap_or(record.size_bytes);
            let error = ApiError::new(ErrorCode::WouldLoseData, format!("deleting {volume} loses {}", human_bytes(held)));
            return Err(error.with_hint("--yes accepts that"));
        }
        self.check_alone(&record, "deleted").await?;
        self.end_any_drill(&volume).await;
        disk.gate.set(GateState::Shut);
        front_ends.end_all(&volume).await;
        let part = self.volumes.lock().await.take_part(&volume);
        if let Part::Standby(standby) = part {
            tokio::task::block_in_place(|| standby.stop());
        }
        drop(disk);
        let mut volumes = self.volumes.lock().await;
        volumes.open.remove(&volume);
        volumes.forget(&record).inspect_err(|error| drop(volumes.unopened.insert(volume, Unopened { record, error: error.clone() })))?;
        Ok(Done {})
    }

    async fn resize_volume(&self, volume: VolumeName, request: ResizeVolume) -> Outcome<VolumeInfo> {
        let (record, _operation) = self.begin(&volume).await?;
        not_on_trial(&record)?;
        self.volumes.lock().await.resize(&volume, request.size_bytes)?;
        self.info_of(&volume).await
    }

    async fn export_volume(&self, volume: VolumeName, export: Export) -> Outcome<VolumeInfo> {
        let (_, _operation) = self.begin(&volume).await?;
        self.volumes.lock().await.export(&volume, export).await?;
        self.info_of(&volume).await
    }

    async fn unexport_volume(&self, volume: VolumeName, request: Unexport) -> Outcome<VolumeInfo> {
        self.end_exports(&volume, request.export).await?;
        self.info_of(&volume).await
    }

    async fn list_peers(&self) -> Outcome<PeerList> {
        Ok(self.sites.list())
    }

    async fn invite_peer(&self, request: InvitePeer) -> Outcome<Invite> {
        self.sites.invite(request.address, request.ttl).await
    }

    async fn join_peer(&self, request: JoinPeer) -> Outcome<Peer> {
        self.sites.join(&request.token, request.address).await
    }

    async fn remove_peer(&self, site: SiteName) -> Outcome<Done> {
        let peer = self.sites.peer(&site)?;
        let uses = |record: &&VolumeRecord| record.peer_at(&peer.id.to_string()).is_some();
        if let Some(record) = self.volumes.lock().await.records().find(uses) {
            let error = ApiError::new(ErrorCode::WrongState, format!("{} is shared with {site}", record.name));
            return Err(error.with_hint("end its replication, or delete the standby, first"));
        }
        self.sites.remove(peer.id).await.map(|()| Done {})
    }

    async fn create_group(&self, request: CreateGroup) -> Outcome<GroupStatus> {
        self.make_group(request).await
    }

    async fn change_group(&self, group: VolumeName, request: ChangeGroup) -> Outcome<GroupStatus> {
        self.change_members(group, request).await
    }

    async fn delete_group(&self, group: VolumeName) -> Outcome<Done> {
        self.end_group(&group).await
    }

    async fn list_groups(&self, group: Option<VolumeName>) -> Outcome<GroupList> {
        Ok(GroupList { groups: statuses(&*self.volumes.lock().await, group.as_ref()) })
    }

    async fn replicate(&self, volume: VolumeName, request: Replicate) -> Outcome<VolumeStatus> {
        self.begin_replication(&volume, &request).await
    }

    async fn stop_replication(&self, volume: VolumeName, request: StopReplication) -> Outcome<VolumeStatus> {
        self.end_replication(&volume, &request).await
    }

    async fn set_mode(&self, volume: VolumeName, request: SetMode) -> Outcome<VolumeStatus> {
        self.change_mode(&volume, &request).await
    }

    async fn wait(&self, volume: VolumeName, condition: Condition, progress: ProgressSink) -> Outcome<Waited> {
        match self.group_named(&volume).await {
            Some(group) => self.wait_for_group(&group.name, condition, &progress).await.map(Waited::Group),
            None => self.wait_for(&volume, condition, &progress).await.map(|now| Waited::Volume(Box::new(now))),
        }
    }

    async fn snapshot(&self, volume: VolumeName, progress: ProgressSink) -> Outcome<Snapshot> {
        match self.group_named(&volume).await {
            Some(group) => self.cut_group(&group, progress).await,
            None => self.cut_now(&volume, progress).await,
        }
    }

    async fn promote(&self, volume: VolumeName, request: Promote, progress: ProgressSink) -> Outcome<Promotion> {
        match self.group_named(&volume).await {
            Some(group) => self.promote_group(&group, &request, &progress).await,
            None => self.take_over(&volume, &request, &progress).await,
        }
    }

    async fn commit(&self, volume: VolumeName) -> Outcome<Promotion> {
        self.commit_trial(&volume).await
    }

    async fn rollback(&self, volume: VolumeName, request: TakeBack, progress: ProgressSink) -> Outcome<VolumeStatus> {
        self.take_trial_back(&volume, request.force, &progress).await
    }

    async fn points(&self, volume: VolumeName) -> Outcome<PointList> {
        match self.group_named(&volume).await {
            Some(group) => self.list_group_points(&group).await,
            None => self.list_points(&volume).await,
        }
    }

    async fn begin_drill(&self, volume: VolumeName, request: BeginDrill) -> Outcome<Drill> {
        match self.group_named(&volume).await {
            Some(group) => self.begin_group_drill(&group, request).await,
            None => Self::begin_drill(self, &volume, request).await,
        }
    }

    async fn end_drill(&self, volume: VolumeName) -> Outcome<Drill> {
        match self.group_named(&volume).await {
            Some(group) => self.end_group_drill(&group).await,
            None => Self::end_drill(self, &volume).await,
        }
    }

    async fn drills(&self, volume: VolumeName) -> Outcome<DrillList> {
        match self.group_named(&volume).await {
            Some(group) => self.list_group_drills(&group).await,
            None => self.list_drills(&volume).await,
        }
    }

    async fn demote(&self, volume: VolumeName, request: Demote, _progress: ProgressSink) -> Outcome<VolumeStatus> {
        self.give_up(&volume, request.force).await
    }

    async fn resync(&self, volume: VolumeName, request: Resync, _progress: ProgressSink) -> Outcome<Resynced> {
        self.discard_and_follow(&volume, &request).await
    }

    async fn scrub(&self, volume: VolumeName, progress: ProgressSink) -> Outcome<ScrubStatus> {
        self.scrub_now(&volume, &progress).await
    }

    async fn verify(&self, volume: VolumeName, progress: ProgressSink) -> Outcome<Verification> {
        self.compare(&volume, progress).await
    }
}
