//! The admin API's operations, carried out on the site's volumes.

use super::Daemon;
use super::volumes::OpenVolume;
use crate::admin::{Control, Outcome, ProgressSink};
use blockd_api::*;
use std::sync::Arc;

/// What this build cannot do yet.
fn not_yet<T>(what: &str) -> Outcome<T> {
    Err(ApiError::new(ErrorCode::NotSupported, format!("this version has no {what} yet"))
        .with_hint("it serves volumes; replication comes with a later one"))
}

fn info(open: &OpenVolume) -> VolumeInfo {
    let record = open.record.clone();
    VolumeInfo {
        name: record.name,
        size_bytes: record.size_bytes,
        backing: record.backing,
        exports: record.exports,
        role: Role::Standalone,
        allocated_bytes: open.volume.image.disk_usage_bytes().ok(),
    }
}

fn status(open: &OpenVolume) -> VolumeStatus {
    let attached = open.volume.clients.attached();
    let front_end = |word: &&str| word.parse().ok();
    VolumeStatus {
        name: open.record.name.clone(),
        size_bytes: open.record.size_bytes,
        role: Role::Standalone,
        state: State::Disconnected,
        promise_held: false,
        mode: Mode::Async,
        peer: None,
        generation: 0,
        epoch_open: open.volume.intake.tracker().open_epoch(),
        epoch_committed: 0,
        rpo_seconds: None,
        rpo_target_seconds: None,
        bandwidth_bits_per_second: None,
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
        attached: attached.iter().filter_map(front_end).collect(),
        last_error: None,
        replicas: Vec::new(),
    }
}

impl Daemon {
    async fn info_of(&self, name: &VolumeName) -> Outcome<VolumeInfo> {
        self.volumes.lock().await.get(name).map(info)
    }
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
        Ok(Status { site: self.site.clone(), id: self.id.clone(), volumes: chosen, journal: Usage::default(), spill })
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
        Ok(PeerList { peers: Vec::new() })
    }

    async fn invite_peer(&self, _request: InvitePeer) -> Outcome<Invite> {
        not_yet("pairing")
    }

    async fn join_peer(&self, _request: JoinPeer) -> Outcome<Peer> {
        not_yet("pairing")
    }

    async fn remove_peer(&self, _site: SiteName) -> Outcome<Done> {
        not_yet("pairing")
    }

    async fn replicate(&self, _volume: VolumeName, _request: Replicate) -> Outcome<VolumeStatus> {
        not_yet("replication")
    }

    async fn stop_replication(&self, _volume: VolumeName, _request: StopReplication) -> Outcome<VolumeStatus> {
        not_yet("replication")
    }

    async fn set_mode(&self, _volume: VolumeName, _request: SetMode) -> Outcome<VolumeStatus> {
        not_yet("replication")
    }

    async fn wait(&self, _volume: VolumeName, _condition: Condition, _progress: ProgressSink) -> Outcome<VolumeStatus> {
        not_yet("replication")
    }

    async fn snapshot(&self, _volume: VolumeName, _progress: ProgressSink) -> Outcome<Snapshot> {
        not_yet("replication")
    }

    async fn promote(&self, _volume: VolumeName, _request: Promote, _progress: ProgressSink) -> Outcome<Promotion> {
        not_yet("replication")
    }

    async fn demote(&self, _volume: VolumeName, _request: Demote, _progress: ProgressSink) -> Outcome<VolumeStatus> {
        not_yet("replication")
    }

    async fn resync(&self, _volume: VolumeName, _request: Resync, _progress: ProgressSink) -> Outcome<Resynced> {
        not_yet("replication")
    }

    async fn verify(&self, _volume: VolumeName, _progress: ProgressSink) -> Outcome<Verification> {
        not_yet("replication")
    }
}
