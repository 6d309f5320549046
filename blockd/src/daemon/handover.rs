//! The primary steps down: because its standby asks for it, or its own operator.

use super::forecast::Begun;
use super::going_back::check_whole;
use super::part::volume_id;
use super::status;
use super::trial::not_on_trial;
use super::volumes::{Volumes, if_there, io_error, random_id};
use super::{Daemon, old};
use crate::admin::Outcome;
use crate::catalogue::{Granted, RecordedRole, VolumeRecord};
use crate::volume::{GateState, Volume};
use blockd_api::*;
use replicator::catalogue::{Catalogue, Persist};
use replicator::intake::LastCut;
use replicator::primary::{Remains, Replica, memory};
use replicator::site_link::forecast::HandedOver;
use replicator::site_link::request::{Answer, lineage_of, parse_id};
use replicator::standby::{Lost, Place};
use replicator::undo::Point;
use replicator_engine::generation::Lineage;
use replicator_engine::sender::Phase;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Base;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// For a stream to the standby that has just ended to come back: it does at once if its link gave way to another.
const REATTACH_DEADLINE: Duration = Duration::from_secs(3);
/// For requests that are inside the gate.
pub(super) const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// For what is not at the standby yet to arrive there while clients go on.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(60);
/// For the other standbys to have it, too.
pub(super) const OTHERS_DEADLINE: Duration = Duration::from_secs(5);
/// For the last epoch to arrive.
const LAST_EPOCH_DEADLINE: Duration = Duration::from_secs(30);
/// For the answer to a handover: longer than the five before.
pub(super) const HANDOVER_DEADLINE: Duration = Duration::from_secs(115);

pub(super) fn wrong_state(message: String, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::WrongState, message).with_hint(hint)
}

impl Daemon {
    pub(super) async fn give_up(&self, name: &VolumeName, force: bool) -> Outcome<VolumeStatus> {
        let (record, _operation) = self.begin(name).await?;
        self.check_alone(&record, "demoted").await?;
        not_on_trial(&record)?;
        self.step_down(record, force, None).await?;
        self.volumes.lock().await.get(name).map(status::status)
    }

    /// A standby wants to be primary.
    pub(super) async fn hand_over(&self, from: &str, volume: &str, generation: String, force: bool) -> Outcome<Answer> {
        let unknown = || ApiError::new(ErrorCode::NotFound, "the volume is not replicated between these sites");
        let asked =
            parse_id(&generation).ok_or_else(|| ApiError::new(ErrorCode::InvalidRequest, "the question has no proper generation"))?;
        let generation = asked.to_string();
        let name = self.volumes.lock().await.by_id(volume).map(|open| open.record.name.clone()).ok_or_else(unknown)?;
        let (record, _operation) = self.begin(&name).await?;
        if record.peer_at(from).is_none() {
            return Err(unknown());
        }
        match record.role {
            RecordedRole::Primary if record.fenced => {
                Err(wrong_state(format!("{name} is fenced there already, for a promotion by force"), "--force goes on with that"))
            }
            RecordedRole::Primary => {
                self.check_clients_of_group(&record, force).await?;
                let (epoch, handed) = self.step_down(record, force, Some((from, generation))).await?;
                Ok(Answer::Granted { epoch, handed: Some(handed) })
            }
            RecordedRole::Standby => {
                not_on_trial(&record)?;
                if let Some(granted) = record.granted.filter(|granted| granted.generation == generation) {
                    let handed = self.handed_at(&record.id, granted.epoch).await;
                    return Ok(Answer::Granted { epoch: granted.epoch, handed });
                }
                if let Some(primary) = record.peer.as_ref().filter(|peer| peer.site != from) {
                    let message = format!("{name} has another primary, {}, as far as that site knows", primary.name);
                    return Err(wrong_state(message, "--force promotes without it"));
                }
                // Who asks takes over: a handover that this site asked for itself is void from now on.
                let committed = {
                    let mut volumes = self.volumes.lock().await;
                    volumes.change(&record.name, |record| (record.wanted_generation, record.granted) = (None, None))?;
                    status::status(volumes.get(&record.name)?).epoch_committed
                };
                Ok(Answer::NotPrimary { committed, handed: self.handed_at(&record.id, committed).await })
            }
            RecordedRole::Standalone => Err(unknown()),
            RecordedRole::Stale | RecordedRole::SplitBrain => {
                Err(ApiError::new(ErrorCode::WrongState, "that site is stale: `tern resync --discard-local` there first"))
            }
        }
    }

    /// The other site goes back to an older recovery point, or is on trial: what is acknowledged here from now on would be lost, or be beside
    /// what is acknowledged there.
    pub(super) async fn stand_still(&self, from: &str, volume: &str, trial: Option<String>) -> Outcome<Answer> {
        let unknown = || ApiError::new(ErrorCode::NotFound, "the volume is not replicated between these sites");
        if trial.as_deref().is_some_and(|trial| parse_id(trial).is_none()) {
            return Err(ApiError::new(ErrorCode::InvalidRequest, "the question has no proper generation"));
        }
        let name = self.volumes.lock().await.by_id(volume).map(|open| open.record.name.clone()).ok_or_else(unknown)?;
        let (record, _operation) = self.begin(&name).await?;
        if record.peer_at(from).is_none() {
            return Err(unknown());
        }
        if record.granted.is_some() {
            // Who goes on without this site gives nothing back to it.
            self.volumes.lock().await.change(&name, |record| record.granted = None)?;
        }
        if record.role == RecordedRole::Primary {
            let volume = self.volumes.lock().await.get(&name)?.volume.clone();
            if trial.is_none() || record.fenced_for != trial {
                let why = if trial.is_some() { "it is on trial" } else { "it goes back to an older recovery point" };
                self.fence(&name, &volume, why, trial).await;
            }
        }
        Ok(Answer::Done)
    }

    /// Stops being primary: everything is at the standby, and recorded, on return. Clients go on until little is left.
    async fn step_down(&self, record: VolumeRecord, force: bool, successor: Option<(&str, String)>) -> Outcome<(Epoch, HandedOver)> {
        let name = &record.name;
        if record.role != RecordedRole::Primary {
            return Err(ApiError::new(ErrorCode::WrongState, format!("{name} is not a replicated primary here")));
        }
        let (replica, others) = self.replicas(name, successor.as_ref().map(|(site, _)| *site)).await?;
        let volume = self.volumes.lock().await.get(name)?.volume.clone();
        // Who asks by force takes over without us, if need be: then nothing may be acknowledged here any more.
        let yields = force && successor.is_some();
        if let Err(error) = check_whole(&record, &volume) {
            if yields && error.code != ErrorCode::Busy {
                self.fence(name, &volume, &error.message, None).await;
            }
            return Err(error);
        }
        let attached = volume.clients.attached();
        if !attached.is_empty() && !force {
            return Err(client_active(name, &attached));
        }
        let mut begun = self.begin_handover(name, successor.as_ref().map(|(site, _)| *site)).await?;
        self.settings_heard(name).await;
        let emptied = match catch_up(&replica).await {
            Ok(()) if volume.gate.shut() => empty(&volume, &replica, &others).await,
            Ok(()) => Err("it is fenced"),
            Err(why) => Err(why),
        };
        let _last = match emptied {
            Ok(last) => last,
            Err(why) => {
                self.volumes.lock().await.seat_again(name);
                if yields {
                    self.fence(name, &volume, why, None).await;
                } else {
                    volume.gate.reopen();
                }
                let error = ApiError::new(ErrorCode::Timeout, format!("{name} cannot be handed over: {why}"));
                return Err(error.with_hint("`tern status` at its primary says how it stands; `tern wait --for in-sync` waits"));
            }
        };
        begun.sent();
        let attached = volume.clients.attached();
        if !attached.is_empty() && !force {
            // It came meanwhile.
            self.volumes.lock().await.seat_again(name);
            volume.gate.reopen();
            return Err(client_active(name, &attached));
        }
        let part = self.volumes.lock().await.take_part(name);
        let remains = tokio::task::block_in_place(|| {
            let remains = replica.stop();
            part.stop();
            remains
        });
        let done = self.hand_everything_over(&record, &volume, remains, successor, &begun).await;
        if let Err(error) = &done {
            if yields {
                self.fence(name, &volume, &error.message, None).await;
            }
            // Goes on as after a crash.
            self.volumes.lock().await.restore(name);
        }
        done
    }

    /// Serves nobody from now on, after a restart neither, until the other site has overtaken this one or the operator lifts it; or until the
    /// other site's trial has come to nothing.
    async fn fence(&self, name: &VolumeName, volume: &Volume, why: &str, trial: Option<String>) {
        volume.gate.set(GateState::Fenced);
        tracing::error!(volume = %name, why, "fenced: the other site is promoted by force");
        if let Err(error) = self.volumes.lock().await.change(name, |record| {
            // One that is fenced for good stays so.
            record.fenced_for = trial.filter(|_| !record.fenced || record.fenced_for.is_some());
            record.fenced = true;
        }) {
            tracing::error!(volume = %name, %error, "the fence could not be recorded");
        }
    }

    async fn hand_everything_over(
        &self,
        record: &VolumeRecord,
        volume: &Arc<Volume>,
        remains: Option<Remains>,
        successor: Option<(&str, String)>,
        begun: &Begun,
    ) -> Outcome<(Epoch, HandedOver)> {
        check_whole(record, volume)?;
        let known = remains.filter(|remains| remains.changed.is_empty()).and_then(|remains| remains.known);
        let known = known.ok_or_else(|| ApiError::new(ErrorCode::Internal, "something changed behind the gate"))?;
        let lineage = lineage_of(&record.lineage).ok_or_else(|| ApiError::new(ErrorCode::Internal, "a primary without a lineage"))?;
        let follows = successor.as_ref().map(|(site, _)| (*site).to_owned());
        let copy = Copy { committed: known.acked, base: Base::Point, lineage, follows, old: None };
        let granted = successor.map(|(_, generation)| Granted { generation, epoch: known.acked });
        tokio::task::block_in_place(|| volume.image.sync_data()).map_err(io_error)?;
        self.note_handed(record, begun, known.acked).await;
        self.volumes.lock().await.become_standby(volume, &record.name, copy, granted)?;
        tracing::info!(volume = %record.name, epoch = known.acked, "stepped down");
        Ok((known.acked, self.note_handed(record, begun, known.acked).await))
    }
}

pub(super) fn client_active(name: &VolumeName, attached: &[&str]) -> ApiError {
    let message = format!("a client is active at {name} by {}", attached.join(" and "));
    ApiError::new(ErrorCode::ClientActive, message).with_hint("stop it, or cut it off with --force")
}

/// Gets what the standby lacks there, but for what clients write meanwhile.
async fn catch_up(replica: &Replica) -> Result<(), &'static str> {
    let mut status = replica.status();
    let online = status.wait_for(|seen| seen.phase == Phase::Online);
    match tokio::time::timeout(REATTACH_DEADLINE, online).await {
        Ok(Ok(seen)) if seen.known.is_some() => {}
        Ok(Ok(_)) => return Err("its standby has no recovery point yet"),
        _ => return Err("its standby is not connected"),
    }
    let cut = tokio::time::timeout(CATCH_UP_DEADLINE, replica.snapshot(Box::new(|_| {}))).await;
    cut.map_err(|_| "too much is not at the standby yet")?.map(drop).map_err(|_| "the connection broke")
}

/// Waits until no client's request is inside the gate and everything is at the standby. The others get it before, as far as they are there and
/// quick: then they lack nothing. Those that are not get no epoch after the last one: they have nothing that the new primary lacks.
async fn empty(volume: &Volume, replica: &Replica, others: &[Arc<Replica>]) -> Result<LastCut, &'static str> {
    tokio::time::timeout(DRAIN_DEADLINE, volume.gate.drained()).await.map_err(|_| "requests of clients do not complete")?;
    // Its last epoch is the one that is granted: no cut of its group comes behind that.
    replica.join(None);
    let mut cuts = JoinSet::new();
    for other in others.iter().filter(|other| other.status().borrow().phase == Phase::Online) {
        let other = other.clone();
        cuts.spawn(async move { other.snapshot(Box::new(|_| {})).await.is_ok() });
    }
    if !cuts.is_empty() {
        let first = replica.snapshot(Box::new(|_| {}));
        let _ = tokio::time::timeout(OTHERS_DEADLINE, async { tokio::join!(first, cuts.join_all()) }).await;
    }
    let be_last = replica.be_last();
    let last = tokio::time::timeout(LAST_EPOCH_DEADLINE, replica.snapshot(Box::new(|_| {}))).await;
    last.map_err(|_| "the last changes do not get to the standby in time")?.map(|_| be_last).map_err(|_| "the connection broke")
}

/// What a site that becomes a standby holds.
pub(super) struct Copy {
    pub committed: Epoch,
    pub base: Base,
    pub lineage: Lineage,
    /// The site that is primary now, if that is known.
    pub follows: Option<String>,
    /// What it holds now is to be kept, beside what it will hold.
    pub old: Option<(Point, Lost)>,
}

impl Volumes {
    /// Records the copy's place, then the role, then begins to receive. The image is durable as it stands, and nothing comes into it any more.
    pub(super) fn become_standby(&mut self, volume: &Arc<Volume>, name: &VolumeName, copy: Copy, granted: Option<Granted>) -> Outcome<()> {
        let Copy { committed, base, lineage, follows, old } = copy;
        let id = volume_id(&self.get(name)?.record)?;
        // A journal of an earlier time as standby is all folded.
        if_there(std::fs::remove_dir_all(self.state_dir.journal(&id.to_string()))).map_err(io_error)?;
        self.forget_points(&id.to_string()).map_err(io_error)?;
        // Before the role: a standby overwrites nothing that is not kept.
        let dir = self.state_dir.old(&id.to_string());
        old.map_or(Ok(()), |old| old::begin(&dir, id, &lineage, &self.catalogue, old)).map_err(io_error)?;
        let size_bytes = volume.size_bytes();
        let place = Place { volume: id, replica: random_id()?, lineage, size_bytes, committed, folded: committed, base };
        memory::forget_promises(&*self.catalogue, id).map_err(io_error)?;
        place.store(&*self.catalogue as &dyn Catalogue, Persist::Synced).map_err(io_error)?;
        self.change(name, |record| {
            record.role = RecordedRole::Standby;
            if let Some(site) = &follows {
                record.follow(site);
            }
            record.granted = granted;
            record.wanted_generation = None;
            record.successor.clear();
            record.fenced = false;
            record.fenced_for = None;
            record.parted = None;
        })?;
        volume.intake.stop_logging();
        let record = self.get(name)?.record.clone();
        match self.start_standby(volume, &record) {
            Ok(part) => self.put_part(name, part),
            // It is one, and is recorded so.
            Err(error) => tracing::error!(volume = %name, %error, "the standby does not start"),
        }
        Ok(())
    }
}
