//! Changing the primary.
//!
//! ```text
//!   standby                                   primary
//!   promote ──── Handover(generation) ──────► gate shut, drained, last epoch committed at the standby,
//!      │ ◄────── Granted(epoch) ───────────── its place and the grant recorded, standby from now on
//!      └─► settled, generation recorded, gate open
//! ```
//!
//! Whatever is answered was recorded before. A grant that was lost on its way is given again to whoever asks with the same generation.

use super::going_back::lead_back;
use super::handover::{HANDOVER_DEADLINE, wrong_state};
use super::lease::Inherited;
use super::part::{Base, Part, PrimaryStart, peer_site, volume_id};
use super::points::{check_point, past_error};
use super::trial::not_on_trial;
use super::volumes::{io_error, random_id};
use super::{Daemon, old};
use crate::admin::{Outcome, ProgressSink};
use crate::catalogue::{Parted, RecordedRole, VolumeRecord};
use crate::volume::{GateState, Volume};
use blockd_api::*;
use replicator::catalogue::Catalogue;
use replicator::clock::unix_ms;
use replicator::primary::memory;
use replicator::site_link::request::{self, Answer, Question, lineage_of, lineage_records, parse_id};
use replicator::standby::{Rollback, Settled, StandbyService};
use replicator_engine::history::History;
use replicator_engine::sender::Known;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For a sign of life of the primary.
const PING_DEADLINE: Duration = Duration::from_secs(5);
/// The same, for somebody who accepts a failover.
const FORCED_PING_DEADLINE: Duration = Duration::from_millis(300);

/// For a primary to stop: longer than it waits for an operation of its own.
const FENCE_DEADLINE: Duration = Duration::from_secs(8);

impl Daemon {
    pub(super) async fn take_over(&self, name: &VolumeName, request: &Promote, progress: &ProgressSink) -> Outcome<Promotion> {
        let (began, force) = (Instant::now(), request.force);
        let (record, _operation) = self.begin(name).await?;
        match record.role {
            RecordedRole::Standby => {
                not_on_trial(&record)?;
                self.check_alone(&record, "promoted").await?;
            }
            _ if request.at.is_some() || request.trial.is_some() => {
                return Err(wrong_state(format!("{name} is no standby here"), "a standby keeps recovery points: promote it there"));
            }
            RecordedRole::SplitBrain if force => return self.continue_after_split(record, began).await,
            RecordedRole::Primary if record.fenced && force => return self.lift_fence(record, began).await,
            RecordedRole::Primary | RecordedRole::Standalone => return self.go_on_without(&record, force, began).await,
            RecordedRole::Stale | RecordedRole::SplitBrain => {
                return Err(wrong_state(format!("{name} is stale here"), "`tern resync --discard-local` makes it a standby first"));
            }
        }
        if let Some(span) = request.trial {
            return self.begin_trial(record, request, span, began).await;
        }
        let standby = self.standby(name).await?;
        old::check_promotion(name, &standby, force)?;
        if !standby.status().borrow().has_point {
            let error = wrong_state(
                format!("{name} has no recovery point here: its first sync has not ended"),
                "at the primary, `tern wait --for in-sync`",
            );
            return Err(error);
        }
        progress.report(Progress { phase: "handover".into(), done: 0, total: Some(2), unit: Unit::Steps });
        let older = request.at;
        if let Some(at) = older {
            check_point(name, &standby, at, force).await?;
        }
        let granted = match older {
            // Nothing is taken over from the primary.
            Some(_) => {
                self.fence_primary(&record, None).await?;
                None
            }
            None => self.ask_for_handover(&record, &standby, force).await?,
        };
        progress.report(Progress { phase: "handover".into(), done: 1, total: Some(2), unit: Unit::Steps });
        let expected = granted.filter(|_| !force);
        let common_unix_ms = standby.status().borrow().cut_unix_ms.filter(|_| older.is_none());
        let how = if granted.is_some() { PromotionKind::Handover } else { PromotionKind::Failover };
        let (epoch, generation) = self.settle_or_restore(name, &standby, older, expected, how).await?;
        let (kind, lost_bytes) = if granted == Some(epoch) { (PromotionKind::Handover, Some(0)) } else { (PromotionKind::Failover, None) };
        if kind == PromotionKind::Failover {
            self.note_parted(name, common_unix_ms).await;
        }
        let damaged_blocks = standby.status().borrow().health.as_ref().map_or(0, |health| health.damaged);
        tracing::info!(volume = %name, ?kind, epoch, generation, "promoted");
        Ok(Promotion { kind, epoch, generation, seconds: began.elapsed().as_secs_f64(), lost_bytes, damaged_blocks })
    }

    /// Since when this site has what the other one lacks: for the status alone.
    pub(super) async fn note_parted(&self, name: &VolumeName, common_unix_ms: Option<u64>) {
        let parted = Parted { since_unix_ms: Some(unix_ms()), common_unix_ms };
        let _ = self.volumes.lock().await.change(name, |record| record.parted = Some(parted));
    }

    /// From the last recovery point, or an older one, to being primary; or to being a standby as before.
    pub(super) async fn settle_or_restore(
        &self,
        name: &VolumeName,
        standby: &StandbyService,
        older: Option<Epoch>,
        expected: Option<Epoch>,
        how: PromotionKind,
    ) -> Outcome<(Epoch, u64)> {
        let began = Instant::now();
        let promoted = self.settle_and_become(name, standby, older, expected, how).await;
        match &promoted {
            Err(_) => {
                standby.resume();
                self.volumes.lock().await.restore(name);
            }
            Ok((epoch, _)) if how == PromotionKind::Handover => self.note_taken_over(name, *epoch, began.elapsed()).await,
            Ok(_) => {}
        }
        promoted
    }

    async fn settle_and_become(
        &self,
        name: &VolumeName,
        standby: &StandbyService,
        older: Option<Epoch>,
        expected: Option<Epoch>,
        how: PromotionKind,
    ) -> Outcome<(Epoch, u64)> {
        let (settled, rollback) = settle(name, standby, older).await?;
        if !settled.damaged.is_empty() {
            let (blocks, first) = (settled.damaged.len(), settled.damaged.min());
            tracing::error!(volume = %name, blocks, first, "promoted with blocks that this site's disk did not give back as they came");
        }
        if let Some(epoch) = expected.filter(|epoch| *epoch != settled.epoch) {
            let message = format!("{name} was handed over at recovery point {epoch}, but this copy stands at {}", settled.epoch);
            return Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--force accepts that"));
        }
        let epoch = settled.epoch;
        Ok((epoch, self.become_primary(name, settled, rollback, how).await?))
    }

    pub(super) async fn standby(&self, name: &VolumeName) -> Outcome<Arc<StandbyService>> {
        match &self.volumes.lock().await.get(name)?.part {
            Part::Standby(standby) => Ok(standby.clone()),
            _ => Err(ApiError::new(ErrorCode::Internal, format!("{name} could not be opened as a standby: see the log"))),
        }
    }

    /// Asks the primary to step down. The epoch at which it did; `None` if nobody answers and that is accepted.
    pub(super) async fn ask_for_handover(&self, record: &VolumeRecord, standby: &StandbyService, force: bool) -> Outcome<Option<Epoch>> {
        let name = &record.name;
        let Some(peer) = &record.peer else { return Ok(None) };
        let began = Instant::now();
        let unreachable = |why: String| {
            if force {
                tracing::warn!(volume = %name, why, "failing over without the primary");
                return Ok(None);
            }
            let committed = standby.status().borrow().committed;
            let message = format!("{}: {why}: whatever was written after recovery point {committed} would be lost", peer.name);
            Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--force accepts that"))
        };
        let (links, site) = (&self.sites.links, peer_site(peer)?);
        let Some(link) = links.get(&site) else { return unreachable("the primary does not answer".into()) };
        // A site that died leaves a link that looks alive for some seconds.
        let patience = if force { FORCED_PING_DEADLINE } else { PING_DEADLINE } + 2 * link.stats().round_trip;
        if let Err(error) = request::ask(links, &site, &Question::Ping, patience).await {
            return unreachable(format!("the primary does not answer ({error})"));
        }
        let generation = match &record.wanted_generation {
            Some(generation) => generation.clone(),
            None => random_id()?.to_string(),
        };
        self.volumes.lock().await.change(name, |record| record.wanted_generation = Some(generation.clone()))?;
        let question = Question::Handover { volume: record.id.clone(), generation: generation.clone(), force };
        match request::ask(links, &site, &question, HANDOVER_DEADLINE).await {
            Ok(Answer::Granted { epoch, handed }) => {
                self.note_granted(record, &generation, epoch, handed, began.elapsed()).await;
                Ok(Some(epoch))
            }
            Ok(Answer::NotPrimary { committed, handed }) => {
                let mine = standby.status().borrow().committed;
                let stepped_down = handed.map_or(Duration::ZERO, |handed| Duration::from_millis(handed.took_ms));
                let granted = stepped_down.saturating_add(began.elapsed());
                self.note_granted(record, &generation, committed, handed.filter(|_| committed == mine), granted).await;
                if committed <= mine {
                    return Ok(Some(mine));
                }
                if force {
                    return Ok(None);
                }
                let message = format!("{} has recovery point {committed}, this site only {mine}", peer.name);
                Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("promote that one, or accept the loss with --force"))
            }
            Ok(Answer::Refused { code, message }) => {
                let code = serde_json::from_value(code.into()).unwrap_or(ErrorCode::Internal);
                // Whatever keeps it from stepping down: it has fenced itself, or is not primary. If it is busy, that is not known.
                if force && code != ErrorCode::Busy {
                    return unreachable(message);
                }
                let error = ApiError::new(code, format!("{}: {message}", peer.name));
                Err(if code == ErrorCode::ClientActive { error.with_hint("stop the client, or cut it off with --force") } else { error })
            }
            Ok(other) => Err(ApiError::new(ErrorCode::Internal, format!("{} answered {other:?}", peer.name))),
            Err(error) => unreachable(error.to_string()),
        }
    }

    /// Has the primary stop, if it can be reached; for a trial, for as long as that lasts.
    pub(super) async fn fence_primary(&self, record: &VolumeRecord, trial: Option<String>) -> Outcome<()> {
        let Some(peer) = &record.peer else { return Ok(()) };
        let (links, site) = (&self.sites.links, peer_site(peer)?);
        let Some(link) = links.get(&site) else { return Ok(()) };
        let ping = request::ask(links, &site, &Question::Ping, FORCED_PING_DEADLINE + 2 * link.stats().round_trip).await;
        let asked = match ping {
            Ok(_) => request::ask(links, &site, &Question::Fence { volume: record.id.clone(), trial }, FENCE_DEADLINE).await,
            Err(error) => Err(error),
        };
        match asked {
            Ok(Answer::Done) => {}
            Ok(Answer::Refused { code, message }) if code == request::BUSY => {
                return Err(ApiError::new(ErrorCode::Busy, format!("{}: {message}", peer.name)));
            }
            // It hears of the new generation, and stops then.
            Ok(other) => tracing::warn!(volume = %record.name, answer = ?other, "the primary is not fenced"),
            Err(error) => tracing::warn!(volume = %record.name, %error, "the primary is not fenced"),
        }
        Ok(())
    }

    /// The volume takes nothing in any more, and nobody looks at its past.
    pub(super) async fn end_standby(&self, name: &VolumeName) -> Outcome<(Arc<Volume>, VolumeRecord)> {
        // The image that a drill is a view over is about to be written to.
        self.end_any_drill(name).await;
        let (volume, record, part) = {
            let mut volumes = self.volumes.lock().await;
            let part = volumes.take_part(name);
            let open = volumes.get(name)?;
            (open.volume.clone(), open.record.clone(), part)
        };
        tokio::task::block_in_place(|| part.stop());
        Ok((volume, record))
    }

    async fn become_primary(&self, name: &VolumeName, settled: Settled, rollback: Option<Rollback>, how: PromotionKind) -> Outcome<u64> {
        let (volume, record) = self.end_standby(name).await?;
        let Inherited { lease, not_before_ms, stood_for } = self.inherited(&record, how);
        let generation = match stood_for.or(record.wanted_generation.as_deref().and_then(parse_id)) {
            Some(id) => id,
            None => random_id()?,
        };
        let (id, lineage) = (volume_id(&record)?, settled.lineage.promoted(generation, settled.epoch));
        let mut rollback = rollback;
        let begun = rollback.as_mut().map_or(Ok(()), |rollback| tokio::task::block_in_place(|| rollback.begin(lineage.current())));
        begun.map_err(io_error)?;
        let mut volumes = self.volumes.lock().await;
        let catalogue: Arc<dyn Catalogue> = volumes.catalogue.clone();
        // Where a standby stands is known once it attaches, and what it lacks then. Until it has that, the activity log has it, too.
        let owed = if settled.history.floor() <= settled.epoch { settled.history } else { History::new(settled.epoch) };
        let known = Known { replica: None, acked: owed.floor() };
        let sites: Vec<_> = record.peers().map(|peer| (peer.site.as_str(), known)).collect();
        memory::prepare_promotion(&catalogue, id, settled.epoch, &sites, &owed.blocks(), &volume.intake).map_err(io_error)?;
        let bases = sites.iter().map(|_| Base { known: Some(known), owed: owed.clone(), ..Base::default() }).collect();
        // From here on this site is primary, whatever happens.
        volumes.change(name, |record| {
            record.role = RecordedRole::Primary;
            record.lineage = lineage_records(&lineage);
            record.wanted_generation = None;
            record.granted = None;
            record.successor.clear();
            // Who was fenced for a trial stays so until it hears of this generation.
            record.voided.clear();
            record.size_bytes = settled.size_bytes;
            if let Some(peer) = &mut record.peer {
                peer.lease = lease;
            }
        })?;
        // What grew since the recovery point goes with what was written since, now that nobody follows it any more.
        let goes_back = rollback.is_some();
        tokio::task::block_in_place(|| match rollback {
            Some(rollback) => lead_back(&volume, settled.size_bytes, rollback),
            None => volume.image.go_back_to(settled.size_bytes),
        })
        .map_err(io_error)?;
        volume.intake.start_logging();
        let record = volumes.get(name)?.record.clone();
        let part = volumes.start_primary(PrimaryStart { volume: &volume, record: &record, bases, not_before_ms })?;
        volumes.put_part(name, part);
        volume.gate.reopen();
        // Not before this site is primary: a promotion that fails costs no point. What is left of them goes when it is a standby again.
        let forgotten = tokio::task::block_in_place(|| match goes_back {
            true => volumes.forget_digests(&record.id),
            false => volumes.forget_points(&record.id),
        });
        if let Err(error) = forgotten {
            tracing::warn!(volume = %name, %error, "the older recovery points, or the image's digests, take room although they lead nowhere");
        }
        Ok(lineage.current().counter)
    }

    /// The other site was not promoted after all: the operator says so.
    async fn lift_fence(&self, record: VolumeRecord, began: Instant) -> Outcome<Promotion> {
        let mut volumes = self.volumes.lock().await;
        volumes.change(&record.name, |record| (record.fenced, record.fenced_for) = (false, None))?;
        let volume = &volumes.get(&record.name)?.volume;
        volume.gate.set(GateState::Shut);
        volume.gate.reopen();
        let generation = lineage_of(&record.lineage).map_or(0, |lineage| lineage.current().counter);
        let epoch = volume.intake.tracker().open_epoch();
        Ok(Promotion {
            kind: PromotionKind::Failover,
            epoch,
            generation,
            seconds: began.elapsed().as_secs_f64(),
            lost_bytes: Some(0),
            damaged_blocks: 0,
        })
    }

    /// Both sites were primary: this one stays it, in a generation of its own, by which the other one sees that this was decided.
    async fn continue_after_split(&self, record: VolumeRecord, began: Instant) -> Outcome<Promotion> {
        let name = &record.name;
        let mut volumes = self.volumes.lock().await;
        let volume = volumes.get(name)?.volume.clone();
        let mine = lineage_of(&record.lineage).ok_or_else(|| ApiError::new(ErrorCode::Internal, "a primary without a lineage"))?;
        let epoch = volume.intake.tracker().open_epoch();
        let lineage = mine.promoted(random_id()?, epoch);
        volumes.change(name, |record| {
            record.role = RecordedRole::Primary;
            record.lineage = lineage_records(&lineage);
            record.successor.clear();
        })?;
        // From a fence there is no way but through here.
        volume.gate.set(GateState::Shut);
        volumes.restore(name);
        if !matches!(volumes.get(name)?.part, Part::Primary(_)) {
            return Err(ApiError::new(ErrorCode::Io, format!("{name} is primary here, but its replication does not start: see the log")));
        }
        let generation = lineage.current().counter;
        Ok(Promotion {
            kind: PromotionKind::Failover,
            epoch,
            generation,
            seconds: began.elapsed().as_secs_f64(),
            lost_bytes: None,
            damaged_blocks: 0,
        })
    }
}

/// Has the copy stand still at its newest recovery point, or at this one.
pub(super) async fn settle(name: &VolumeName, standby: &StandbyService, at: Option<Epoch>) -> Outcome<(Settled, Option<Rollback>)> {
    let (settled, rollback) = match at {
        Some(point) => standby.settle_at(point).await.map_err(past_error)?,
        None => (standby.settle().await.map_err(io_error)?, None),
    };
    if settled.base != wire::Base::Point {
        return Err(wrong_state(format!("{name} has no recovery point here"), "at the primary, `tern wait --for in-sync`"));
    }
    Ok((settled, rollback))
}
