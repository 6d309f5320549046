//! The admin API's operations, carried out on the site's volumes.

use super::Daemon;
use super::status::{info, status};
use super::volumes::Volumes;
use crate::admin::{Control, Outcome, ProgressSink};
use crate::catalogue::VolumeRecord;
use blockd_api::*;
use std::sync::Arc;
use tokio::sync::Mutex;

impl Daemon {
    async fn info_of(&self, name: &VolumeName) -> Outcome<VolumeInfo> {
        self.volumes.lock().await.get(name).map(info)
    }

    /// What is recorded of a volume, and the lock of whoever changes its part.
    pub(super) async fn record(&self, name: &VolumeName) -> Outcome<(VolumeRecord, Arc<Mutex<()>>)> {
        self.volumes.lock().await.get(name).map(|open| (open.record.clone(), open.operation.clone()))
    }
}

fn journal_bytes(volumes: &Volumes) -> u64 {
    volumes
        .all()
        .map(|open| if let super::part::Part::Standby(standby) = &open.part { standby.status().borrow().journal_bytes } else { 0 })
        .sum()
}

impl Control for Daemon {
    async fn status(&self, volume: Option<VolumeName>) -> Outcome<Status> {
        let volumes = self.volumes.lock().await;
        let chosen = match volume {
            Some(name) => vec![status(volumes.get(&name)?)],
            None => volumes.all().map(status).collect(),
        };
        let spill = Usage {
            used_bytes: volumes.all().map(|open| open.volume.intake.kept().used_bytes().1).sum(),
            quota_bytes: volumes.spill_quota_bytes,
        };
        let journal = Usage { used_bytes: journal_bytes(&volumes), quota_bytes: volumes.journal_quota_bytes };
        Ok(Status { site: self.site.clone(), id: self.id.clone(), volumes: chosen, journal, spill })
    }

    async fn create_volume(&self, request: CreateVolume, progress: ProgressSink) -> Outcome<VolumeInfo> {
        let volumes = Arc::clone(&self.volumes);
        let name = request.name.clone();
        let created = tokio::task::spawn_blocking(move || volumes.blocking_lock().create(&request, &|step| progress.report(step))).await;
        created.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))??;
        self.info_of(&name).await
    }

    async fn list_volumes(&self) -> Outcome<VolumeList> {
        Ok(VolumeList { volumes: self.volumes.lock().await.all().map(info).collect() })
    }

    async fn show_volume(&self, volume: VolumeName) -> Outcome<VolumeInfo> {
        self.info_of(&volume).await
    }

    async fn delete_volume(&self, volume: VolumeName, request: DeleteVolume) -> Outcome<Done> {
        let mut volumes = self.volumes.lock().await;
        let open = volumes.get(&volume)?;
        if !request.yes {
            let held = open.volume.image.disk_usage_bytes().unwrap_or(open.record.size_bytes);
            let error = ApiError::new(ErrorCode::WouldLoseData, format!("deleting {volume} loses {}", human_bytes(held)));
            return Err(error.with_hint("--yes accepts that"));
        }
        volumes.delete(&volume).await?;
        Ok(Done {})
    }

    async fn resize_volume(&self, volume: VolumeName, request: ResizeVolume) -> Outcome<VolumeInfo> {
        self.volumes.lock().await.resize(&volume, request.size_bytes)?;
        self.info_of(&volume).await
    }

    async fn export_volume(&self, volume: VolumeName, export: Export) -> Outcome<VolumeInfo> {
        self.volumes.lock().await.export(&volume, export).await?;
        self.info_of(&volume).await
    }

    async fn unexport_volume(&self, volume: VolumeName, request: Unexport) -> Outcome<VolumeInfo> {
        self.volumes.lock().await.unexport(&volume, request.export).await?;
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
        let uses = |record: &VolumeRecord| record.peer.as_ref().is_some_and(|of| of.site == peer.id.to_string());
        if let Some(open) = self.volumes.lock().await.all().find(|open| uses(&open.record)) {
            let error = ApiError::new(ErrorCode::WrongState, format!("{} is shared with {site}", open.record.name));
            return Err(error.with_hint("end its replication, or delete the standby, first"));
        }
        self.sites.remove(peer.id).await.map(|()| Done {})
    }

    async fn replicate(&self, volume: VolumeName, request: Replicate) -> Outcome<VolumeStatus> {
        self.begin_replication(&volume, &request).await
    }

    async fn stop_replication(&self, volume: VolumeName, _request: StopReplication) -> Outcome<VolumeStatus> {
        self.end_replication(&volume).await
    }

    async fn set_mode(&self, volume: VolumeName, request: SetMode) -> Outcome<VolumeStatus> {
        if request.mode == Mode::Async {
            return self.volumes.lock().await.get(&volume).map(status);
        }
        Err(ApiError::new(ErrorCode::NotSupported, format!("this version does not have mode {}", request.mode)))
    }

    async fn wait(&self, volume: VolumeName, condition: Condition, progress: ProgressSink) -> Outcome<VolumeStatus> {
        self.wait_for(&volume, condition, &progress).await
    }

    async fn snapshot(&self, volume: VolumeName, _progress: ProgressSink) -> Outcome<Snapshot> {
        self.cut_now(&volume).await
    }

    async fn promote(&self, volume: VolumeName, request: Promote, progress: ProgressSink) -> Outcome<Promotion> {
        self.take_over(&volume, request.force, &progress).await
    }

    async fn demote(&self, volume: VolumeName, request: Demote, _progress: ProgressSink) -> Outcome<VolumeStatus> {
        self.give_up(&volume, request.force).await
    }

    async fn resync(&self, volume: VolumeName, request: Resync, _progress: ProgressSink) -> Outcome<Resynced> {
        self.discard_and_follow(&volume, &request).await
    }

    async fn verify(&self, volume: VolumeName, progress: ProgressSink) -> Outcome<Verification> {
        self.compare(&volume, progress).await
    }
}
