//! Beginning and ending replication, and what a primary does on demand.

use super::Daemon;
use super::handover::{DRAIN_DEADLINE, wrong_state};
use super::lease::Fencing;
use super::part::{Base, Part, PrimaryStart, orders, peer_site, volume_id};
use super::standbys::{SECOND_SITE, check_several, standby_named};
use super::volumes::{io_error, random_id};
use super::{settings, status};
use crate::admin::{Outcome, ProgressSink};
use crate::catalogue::{MadeBy, PeerRecord, RecordedRole, VolumeRecord};
use blockd_api::*;
use replicator::identity::SiteId;
use replicator::primary::{Replica, ReplicaError, memory};
use replicator::site_link::request::{self, Answer, Question, lineage_of, lineage_records, parse_id};
use replicator_engine::block::{BLOCK_BYTES, MAX_BLOCKS};
use replicator_engine::generation::Lineage;
use replicator_engine::sender::Phase;
use replicator_engine::tracker::LaneId;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How old a recovery point may become unless told otherwise.
const DEFAULT_RPO: Span = Span::from_seconds(5);
/// A peer has no more standbys made once there are so many volumes.
const MAX_VOLUMES: usize = 1000;
/// For a standby to be made.
const CREATE_DEADLINE: Duration = Duration::from_secs(30);
/// How often the last epoch is looked at until its writes are done.
const CLOSING_POLL: Duration = Duration::from_millis(2);
/// How often a condition that is waited for is looked at.
const WAIT_POLL: Duration = Duration::from_millis(100);

pub(super) fn replica_error(name: &VolumeName, error: &ReplicaError) -> ApiError {
    let code = match error {
        ReplicaError::Disconnected => ErrorCode::PeerUnreachable,
        ReplicaError::Stopped => ErrorCode::Interrupted,
        ReplicaError::Disk(_) => ErrorCode::Io,
    };
    ApiError::new(code, format!("{name}: {error}"))
}

impl Daemon {
    pub(super) async fn begin_replication(&self, name: &VolumeName, request: &Replicate) -> Outcome<VolumeStatus> {
        let fencing = Fencing::of(request)?;
        let site = self.sites.peer(&request.to)?;
        let (record, _operation) = self.begin(name).await?;
        let recorded = record.peer_at(&site.id.to_string()).filter(|_| record.role == RecordedRole::Primary).cloned();
        let recorded_already = recorded.is_some();
        let at_first = || PeerRecord::new(site.id.to_string(), request.to.clone(), DEFAULT_RPO.duration().as_millis() as u64);
        let peer = settings::asked(request, recorded.unwrap_or_else(at_first))?;
        let peer = PeerRecord { lease: self.lease_terms(&fencing, &peer)?, ..peer };
        if record.role == RecordedRole::Primary && !recorded_already {
            self.check_alone(&record, SECOND_SITE).await?;
        }
        self.check_settings_in_group(name, &peer).await?;
        let goes_on = match record.role {
            RecordedRole::Standalone => false,
            RecordedRole::Primary if record.fenced && !recorded_already => {
                return Err(wrong_state(format!("{name} is fenced here"), "`tern status` says why: another site may have been promoted"));
            }
            RecordedRole::Primary => recorded_already,
            _ => return Err(ApiError::new(ErrorCode::WrongState, format!("this site is not the primary of {name}"))),
        };
        check_several(&record, &peer)?;
        let lineage = match lineage_of(&record.lineage) {
            Some(lineage) => lineage,
            None => Lineage::first(random_id()?),
        };
        match self.ask_for_standby(&record, &lineage, &site.id, &request.to).await {
            // Settings can be changed while the other site is away.
            Err(error) if goes_on && error.code == ErrorCode::PeerUnreachable => {}
            asked => asked?,
        }
        if goes_on {
            self.end_automatic(&record, peer.lease.as_ref(), request.force).await?;
            return self.change_settings(name, peer).await;
        }
        match record.role {
            RecordedRole::Primary => self.add_standby(name, peer).await?,
            _ => self.start_replicating(name, peer, &lineage).await?,
        }
        self.settings_heard(name).await;
        self.volumes.lock().await.get(name).map(status::status)
    }

    /// Has a standby made at the other site, if there is none yet.
    async fn ask_for_standby(&self, record: &VolumeRecord, lineage: &Lineage, site: &SiteId, to: &SiteName) -> Outcome<()> {
        let question = Question::CreateStandby {
            name: record.name.to_string(),
            volume: record.id.clone(),
            size_bytes: record.size_bytes,
            lineage: lineage_records(lineage),
        };
        match self.sites.ask(site, to, &question, CREATE_DEADLINE).await? {
            Answer::Done => Ok(()),
            Answer::Refused { message, .. } => Err(ApiError::new(ErrorCode::WrongState, format!("{to}: {message}"))),
            other => Err(ApiError::new(ErrorCode::Internal, format!("{to} answered {other:?}"))),
        }
    }

    async fn start_replicating(&self, name: &VolumeName, peer: PeerRecord, lineage: &Lineage) -> Outcome<()> {
        let volume = {
            let mut volumes = self.volumes.lock().await;
            let open = volumes.get(name)?;
            let (volume, id) = (open.volume.clone(), volume_id(&open.record)?);
            memory::forget(&*volumes.catalogue, id).map_err(io_error)?;
            volumes.change(name, |record| {
                record.peer = Some(peer);
                record.role = RecordedRole::Primary;
                record.lineage = lineage_records(lineage);
            })?;
            volume.intake.start_logging();
            volume
        };
        // What was written before is not in the activity log: the standby must not get ahead of the disk with it.
        let durable = tokio::task::block_in_place(|| volume.image.sync_data()).map_err(io_error);
        let mut volumes = self.volumes.lock().await;
        let record = volumes.get(name)?.record.clone();
        let start = PrimaryStart { volume: &volume, record: &record, bases: vec![Base::default()], not_before_ms: 0 };
        let part = durable.and_then(|()| volumes.start_primary(start)).inspect_err(|_| volumes.restore(name))?;
        volumes.put_part(name, part);
        Ok(())
    }

    async fn change_settings(&self, name: &VolumeName, peer: PeerRecord) -> Outcome<VolumeStatus> {
        let volumes = self.volumes.lock().await;
        let old = volumes.get(name)?.record.peer_at(&peer.site).and_then(|peer| peer.lease.clone());
        drop(volumes);
        self.change_peer(name, &peer).await?;
        let mut volumes = self.volumes.lock().await;
        let mut part = volumes.take_part(name);
        let open = volumes.get(name)?;
        let mut kept = Ok(());
        if let Part::Primary(primary) = &mut part {
            if let Some(part) = primary.to(&peer.site) {
                part.replica.set_orders(orders(&peer));
                part.limit.set(peer.bandwidth.clone());
            }
            if old != peer.lease {
                kept = volumes.keep_lease(&open.volume, &open.record, primary, 0);
            }
        }
        volumes.put_part(name, part);
        kept?;
        drop(volumes);
        self.settings_heard(name).await;
        self.volumes.lock().await.get(name).map(status::status)
    }

    /// The primary of a paired site wants a standby here.
    pub(super) async fn create_standby(
        &self,
        from: SiteId,
        name: &str,
        volume: &str,
        size_bytes: u64,
        lineage: Option<Lineage>,
    ) -> Outcome<()> {
        let invalid = |what: &str| ApiError::new(ErrorCode::InvalidRequest, format!("the question has no proper {what}"));
        let name: VolumeName = name.parse().map_err(|_| invalid("name"))?;
        let lineage = lineage.ok_or_else(|| invalid("lineage"))?;
        parse_id(volume).ok_or_else(|| invalid("id"))?;
        if size_bytes == 0 || !size_bytes.is_multiple_of(BLOCK_BYTES as u64) || size_bytes / BLOCK_BYTES as u64 > MAX_BLOCKS {
            return Err(invalid("size"));
        }
        let peer = self.sites.peer_by_id(&from).ok_or_else(|| invalid("site"))?;
        let mut volumes = self.volumes.lock().await;
        if let Some(open) = volumes.open.get(&name) {
            let same = open.record.id == volume && open.record.role == RecordedRole::Standby;
            let ours = open.record.peer_at(&from.to_string()).is_some();
            return if same && ours {
                Ok(())
            } else {
                Err(ApiError::new(ErrorCode::AlreadyExists, format!("a volume {name} exists there already")))
            };
        }
        if volumes.records().any(|record| record.name == name || record.id == volume)
            || volumes.reserved.contains(&name)
            || volumes.groups.get(&name).is_some()
        {
            return Err(ApiError::new(ErrorCode::AlreadyExists, "the volume exists there, under another name or not opened"));
        }
        if volumes.records().count() >= MAX_VOLUMES {
            return Err(ApiError::new(ErrorCode::NoSpace, format!("there are {MAX_VOLUMES} volumes already")));
        }
        let backing = volumes.state_dir.image(volume);
        let mut record = VolumeRecord::new(name, volume.to_owned(), size_bytes, backing, MadeBy::Daemon);
        record.role = RecordedRole::Standby;
        let rpo_ms = DEFAULT_RPO.duration().as_millis() as u64;
        record.peer = Some(PeerRecord::new(from.to_string(), peer, rpo_ms));
        volumes.create_standby(record, lineage)
    }

    pub(super) async fn end_replication(&self, name: &VolumeName, request: &StopReplication) -> Outcome<VolumeStatus> {
        let (record, _operation) = self.begin(name).await?;
        if record.role != RecordedRole::Primary {
            return Err(ApiError::new(ErrorCode::WrongState, format!("{name} is not replicated from here")));
        }
        self.check_alone(&record, "stopped").await?;
        let peer = standby_named(&record, request.to.as_ref())?;
        if !record.others.is_empty() {
            self.remove_standby(&record, peer).await?;
            return self.volumes.lock().await.get(name).map(status::status);
        }
        self.end_automatic(&record, None, request.force).await?;
        self.promise_nothing(name, peer).await?;
        let part = self.volumes.lock().await.take_part(name);
        tokio::task::block_in_place(|| part.stop());
        let mut volumes = self.volumes.lock().await;
        let forgotten = memory::forget(&*volumes.catalogue, volume_id(&record)?).map_err(io_error);
        let recorded = forgotten.and_then(|()| {
            volumes.change(name, |record| {
                record.peer = None;
                record.role = RecordedRole::Standalone;
            })
        });
        recorded.inspect_err(|_| volumes.restore(name))?;
        let volume = volumes.get(name)?.volume.clone();
        drop(volumes);
        volume.intake.stop_logging();
        volume.intake.thaw_all();
        volume.intake.end_lanes_after(1);
        volume.intake.log().clear().map_err(io_error)?;
        // A later replication counts its own epochs: no write of an old one may end in them.
        let closed = async {
            let first = volume.intake.tracker();
            while !first.is_marked() && volume.intake.begin_lane(LaneId::FIRST).is_none() || !first.is_closed() {
                tokio::time::sleep(CLOSING_POLL).await;
            }
        };
        if tokio::time::timeout(DRAIN_DEADLINE, closed).await.is_err() {
            tracing::warn!(volume = %name, "a write does not complete: restart blockd before this volume is replicated again");
        }
        let (links, site, question) = (self.sites.links.clone(), peer_site(peer)?, Question::Detach { volume: record.id });
        tokio::spawn(async move { drop(request::ask(&links, &site, &question, CREATE_DEADLINE).await) });
        self.volumes.lock().await.get(name).map(status::status)
    }

    /// The replica of a volume whose primary is this site.
    pub(super) async fn replica(&self, name: &VolumeName) -> Outcome<Arc<Replica>> {
        match &self.volumes.lock().await.get(name)?.part {
            Part::Primary(primary) => Ok(primary.first().replica.clone()),
            _ => Err(ApiError::new(ErrorCode::WrongState, format!("{name} is not replicated from here"))
                .with_hint(format!("`tern replicate {name} --to SITE` begins that; at a standby, ask its primary"))),
        }
    }

    /// The replica at this site, or the first, and the volume's others.
    pub(super) async fn replicas(&self, name: &VolumeName, site: Option<&str>) -> Outcome<(Arc<Replica>, Vec<Arc<Replica>>)> {
        let first = self.replica(name).await?;
        let volumes = self.volumes.lock().await;
        let Part::Primary(primary) = &volumes.get(name)?.part else { return Ok((first, Vec::new())) };
        let nobody = || ApiError::new(ErrorCode::WrongState, format!("{name} is not replicated to the site that asks"));
        let chosen = site.map_or(Ok(first), |site| primary.to(site).map(|part| part.replica.clone()).ok_or_else(nobody))?;
        let others = primary.replicas.iter().map(|part| part.replica.clone()).filter(|other| !Arc::ptr_eq(other, &chosen));
        Ok((chosen.clone(), others.collect()))
    }

    pub(super) async fn wait_for(&self, name: &VolumeName, condition: Condition, progress: &ProgressSink) -> Outcome<VolumeStatus> {
        let mut poll = tokio::time::interval(WAIT_POLL);
        loop {
            poll.tick().await;
            let seen = status::status(self.volumes.lock().await.get(name)?);
            let holds = match condition {
                Condition::InSync => seen.state == State::InSync,
                Condition::Primary => matches!(seen.role, Role::Primary | Role::Standalone),
                Condition::Committed(epoch) => seen.epoch_committed >= epoch,
            };
            if holds {
                return Ok(seen);
            }
            if condition == Condition::InSync && seen.role == Role::Standalone {
                return Err(ApiError::new(ErrorCode::WrongState, format!("{name} is not replicated"))
                    .with_hint(format!("`tern replicate {name} --to SITE` begins that")));
            }
            let done = seen.size_bytes.saturating_sub(seen.dirty_blocks * BLOCK_BYTES as u64);
            progress.report(Progress::bytes(seen.state.as_str(), done, Some(seen.size_bytes)));
        }
    }

    /// Tells the epoch as soon as it is cut: what is written from then on is not in it. Of several standbys each gets an epoch of its own; those that
    /// are there are waited for, and the number is the lowest: all of them have that one, or one that contains it.
    pub(super) async fn cut_now(&self, name: &VolumeName, progress: ProgressSink) -> Outcome<Snapshot> {
        let began = Instant::now();
        let (first, others) = self.replicas(name, None).await?;
        let mut all = vec![first];
        all.extend(others);
        let is_there = |replica: &Arc<Replica>| replica.status().borrow().phase == Phase::Online;
        if all.iter().any(is_there) {
            all.retain(is_there);
        }
        let progress = Arc::new(progress);
        let mut cuts = JoinSet::new();
        for replica in all {
            let progress = progress.clone();
            let told = Box::new(move |epoch| progress.report(Progress { done: epoch, ..Progress::phase("cut") }));
            cuts.spawn(async move { replica.snapshot(told).await });
        }
        let epochs: Result<Vec<_>, _> = cuts.join_all().await.into_iter().collect();
        let epoch = epochs.map_err(|error| replica_error(name, &error))?.into_iter().min().expect("there is a replica");
        Ok(Snapshot { epoch, seconds: began.elapsed().as_secs_f64() })
    }

    pub(super) async fn compare(&self, name: &VolumeName, progress: ProgressSink) -> Outcome<Verification> {
        let block = BLOCK_BYTES as u64;
        let told = move |done: u64, total: u64| progress.report(Progress::bytes("verify", done * block, Some(total * block)));
        self.prove(name, Box::new(told), None).await
    }
}
