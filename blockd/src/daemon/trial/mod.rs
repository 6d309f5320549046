//! A promotion that can be taken back.
//!
//! ```text
//!              ┌──► commit:   the role is recorded ────────────────────────────► primary
//!   standby ──► trial (recorded): what a client changes is kept first, durably
//!              └──► rollback (recorded): what was kept is put back ──► standby as before, its generation void
//! ```
//!
//! The volume is served from its own image, so that making it final moves nothing. To everybody but its clients the site is a standby that
//! takes nothing in: the generation is told to nobody as one, and is in no lineage before it is final. The primary, if it is there or comes
//! back, fences itself for as long as the trial lasts.

mod ending;
mod kept;
mod peer;
mod provisional;
mod watch;

use super::Daemon;
use super::handover::wrong_state;
use super::part::{Part, volume_id};
use super::points::{check_point, past_error};
use super::promotion::settle;
use super::volumes::{Volumes, io_error, random_id};
use crate::admin::Outcome;
use crate::catalogue::{TrialRecord, VolumeRecord};
use crate::volume::{GateState, Volume};
use blockd_api::*;
use kept::KeptPlace;
use replicator::catalogue::Catalogue;
use replicator::clock::unix_ms;
use replicator::intake::extent_blocks;
use replicator::primary::memory;
use replicator::site_link::request::{lineage_of, lineage_records};
use replicator::standby::{Rollback, Settled, StandbyService};
use replicator_engine::block::block_count;
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::sender::Known;
use replicator_engine::tracker::Epoch;
use roaring::RoaringBitmap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

/// After how long a trial may be taken back, in milliseconds.
const TIMEOUT_MS: RangeInclusive<u64> = 1_000..=30 * 86_400_000;
/// Trials that the other site may not have heard the end of: with more, none begins.
const MAX_VOIDED: usize = 64;

/// Refuses what a volume on trial does not do.
pub(super) fn not_on_trial(record: &VolumeRecord) -> Outcome<()> {
    let Some(trial) = &record.trial else { return Ok(()) };
    let name = &record.name;
    let doing = if trial.taken_back { "its trial is being taken back" } else { "it is promoted on trial here" };
    Err(wrong_state(format!("{name}: {doing}"), "`tern commit` makes a trial final, `tern rollback` takes it back: then try again"))
}

/// Nobody would send to the other standbys meanwhile, and which of them may follow is known only in the end.
fn check_no_others(record: &VolumeRecord) -> Outcome<()> {
    if record.others.is_empty() {
        return Ok(());
    }
    let message = format!("{} has more than one standby: what became of a trial would have to be undone at each", record.name);
    Err(wrong_state(message, "`tern drill` tries a recovery point, `tern promote --force` goes on from it for good"))
}

/// The recovery point that a trial goes on from, and the lineage that the site has once it is final.
fn goes_on_from(trial: &TrialRecord) -> Outcome<(Epoch, Lineage)> {
    let lineage = lineage_of(&trial.lineage).ok_or_else(|| ApiError::new(ErrorCode::Internal, "catalogue: a trial without a lineage"))?;
    Ok((lineage.current().branch_epoch, lineage))
}

/// What the operator is told of a trial.
pub(super) fn status(trial: &TrialRecord) -> Option<TrialStatus> {
    let (point, _) = goes_on_from(trial).ok()?;
    let over_unix_ms = trial.began_unix_ms.saturating_add(trial.timeout_ms);
    let left_ms = over_unix_ms.saturating_sub(unix_ms()).min(trial.timeout_ms);
    Some(TrialStatus { point, left_seconds: left_ms as f64 / 1000.0, taken_back: trial.taken_back })
}

/// The counter of the generation that a trial is to be.
pub(super) fn generation(trial: &TrialRecord) -> u64 {
    goes_on_from(trial).map_or(0, |(_, lineage)| lineage.current().counter)
}

impl Volumes {
    fn kept_place(&self, record: &VolumeRecord) -> Outcome<KeptPlace> {
        let id = volume_id(record)?;
        let prefix = format!("trial/{id}/kept/").into_bytes();
        Ok(KeptPlace { path: self.state_dir.trial(&record.id), prefix, catalogue: self.catalogue.clone() })
    }

    /// Forgets what an ended trial has left.
    pub(super) fn forget_trial(&self, record: &VolumeRecord) -> Outcome<()> {
        self.kept_place(record)?.forget().map_err(io_error)
    }

    /// Goes on with a trial, after a restart or when a change of it failed half-way. One that is being taken back serves nobody.
    pub(super) fn resume_trial(&self, volume: &Volume, record: &VolumeRecord) -> Outcome<Part> {
        let Some(trial) = record.trial.as_ref().filter(|trial| !trial.taken_back) else { return Ok(Part::Idle) };
        let (point, lineage) = goes_on_from(trial)?;
        let (id, catalogue): (Id, Arc<dyn Catalogue>) = (volume_id(record)?, self.catalogue.clone());
        let kept = self.kept_place(record)?.open().map_err(io_error)?;
        let rollback = Rollback::resume(id, &lineage, &self.state_dir.undo(&record.id), &catalogue).map_err(past_error)?;
        // All that may have changed: what was kept, and what the activity log knows of.
        let blocks = block_count(volume.size_bytes()) as u32;
        let hot = volume.intake.log().hot();
        let mut changed: RoaringBitmap =
            hot.iter().flat_map(|extent| extent_blocks(extent).blocks()).filter(|block| *block < blocks).collect();
        changed |= kept.blocks();
        volume.intake.tracker().mark(&changed, Some(1));
        volume.intake.start_logging();
        provisional::serve(volume, point, kept, rollback).map_err(io_error)?;
        volume.gate.set(GateState::Open);
        Ok(Part::Idle)
    }
}

impl Daemon {
    /// `tern promote --force --trial`: nothing is taken over from the primary, which keeps what this site lacks.
    pub(super) async fn begin_trial(&self, record: VolumeRecord, request: &Promote, span: Span, began: Instant) -> Outcome<Promotion> {
        let name = &record.name;
        let timeout_ms = u64::try_from(span.duration().as_millis()).unwrap_or(u64::MAX);
        self.check_trial(&record, request, timeout_ms)?;
        let standby = self.standby(name).await?;
        if !standby.status().borrow().has_point {
            let message = format!("{name} has no recovery point here: its first sync has not ended");
            return Err(wrong_state(message, "at the primary, `tern wait --for in-sync`"));
        }
        if let Some(at) = request.at {
            check_point(name, &standby, at, request.force).await?;
        }
        let generation = random_id()?;
        // The other site may be fenced for it from here on: it is told that it is void unless it begins.
        self.volumes.lock().await.change(name, |record| void(record, generation.to_string()))?;
        self.fence_primary(&record, Some(generation.to_string())).await?;
        let begun = self.settle_and_try(name, &standby, request.at, generation, timeout_ms).await;
        if begun.is_err() {
            standby.resume();
            self.volumes.lock().await.restore(name);
        }
        let (epoch, counter) = begun?;
        tracing::warn!(volume = %name, epoch, generation = counter, timeout_ms, "promoted on trial");
        let damaged_blocks = standby.status().borrow().health.as_ref().map_or(0, |health| health.damaged);
        let seconds = began.elapsed().as_secs_f64();
        Ok(Promotion { kind: PromotionKind::Failover, epoch, generation: counter, seconds, lost_bytes: None, damaged_blocks })
    }

    fn check_trial(&self, record: &VolumeRecord, request: &Promote, timeout_ms: u64) -> Outcome<()> {
        if !request.force {
            let error = ApiError::new(ErrorCode::InvalidRequest, "a trial goes on without the primary, which is fenced");
            return Err(error.with_hint("--force accepts that"));
        }
        if !TIMEOUT_MS.contains(&timeout_ms) {
            let error = ApiError::new(ErrorCode::InvalidRequest, format!("a trial of {timeout_ms} ms"));
            return Err(error.with_hint("give --trial 1s or more, and 30 days or less"));
        }
        check_no_others(record)?;
        // It may be fenced for any of them, and would stay so for one that is forgotten.
        if record.voided.len() >= MAX_VOIDED {
            let message = format!("{}: the other site has not heard the end of {MAX_VOIDED} trials", record.name);
            return Err(wrong_state(
                message,
                "it hears that once it is connected; `tern promote --force` without --trial goes on for good",
            ));
        }
        if record.peer.as_ref().is_some_and(|peer| peer.lease.is_some()) || self.grants.terms(&record.id).is_some() {
            let message = format!("{} is fenced by leases: who may serve it is decided for good", record.name);
            return Err(wrong_state(message, "`tern drill` tries a recovery point, `tern promote --force` goes on from it"));
        }
        Ok(())
    }

    async fn settle_and_try(
        &self,
        name: &VolumeName,
        standby: &StandbyService,
        at: Option<Epoch>,
        generation: Id,
        timeout_ms: u64,
    ) -> Outcome<(Epoch, u64)> {
        let (settled, rollback) = settle(name, standby, at).await?;
        let (volume, record) = self.end_standby(name).await?;
        if rollback.is_some() && volume.size_bytes() != settled.size_bytes {
            let message = format!("{name} has grown since recovery point {}: a trial of it could not be taken back", settled.epoch);
            return Err(wrong_state(message, "`tern drill --at` tries that point, `tern promote --at` without --trial goes back to it"));
        }
        let lineage = settled.lineage.promoted(generation, settled.epoch);
        let mut volumes = self.volumes.lock().await;
        let begun = tokio::task::block_in_place(|| volumes.record_trial(&record, &volume, &settled, rollback, &lineage, timeout_ms));
        begun.and_then(|()| {
            let record = volumes.get(name)?.record.clone();
            tokio::task::block_in_place(|| volumes.resume_trial(&volume, &record)).map(drop)
        })?;
        Ok((settled.epoch, lineage.current().counter))
    }
}

impl Volumes {
    /// Everything that a trial needs, and then the trial itself: without that a crash leaves the standby.
    fn record_trial(
        &mut self,
        record: &VolumeRecord,
        volume: &Volume,
        settled: &Settled,
        rollback: Option<Rollback>,
        lineage: &Lineage,
        timeout_ms: u64,
    ) -> Outcome<()> {
        let (id, catalogue): (Id, Arc<dyn Catalogue>) = (volume_id(record)?, self.catalogue.clone());
        // It may have been told of others since it was asked.
        check_no_others(self.get(&record.name).map(|open| &open.record)?)?;
        let known = Known { replica: None, acked: settled.epoch };
        let sites: Vec<_> = record.peers().map(|peer| (peer.site.as_str(), known)).collect();
        memory::prepare_promotion(&catalogue, id, settled.epoch, &sites, &RoaringBitmap::new(), &volume.intake).map_err(io_error)?;
        self.kept_place(record)?.begin().map_err(io_error)?;
        match rollback {
            Some(mut rollback) => rollback.begin(lineage.current()).map_err(io_error)?,
            // Beyond the point there is nothing but zeroes.
            None => volume.image.go_back_to(settled.size_bytes).map_err(io_error)?,
        }
        let trial = TrialRecord { lineage: lineage_records(lineage), timeout_ms, began_unix_ms: unix_ms(), taken_back: false };
        let generation = lineage.current().id.to_string();
        self.change(&record.name, |record| {
            record.trial = Some(trial);
            record.size_bytes = settled.size_bytes;
            record.wanted_generation = None;
            record.voided.retain(|voided| *voided != generation);
        })
    }
}

/// Remembers that a generation came to nothing.
fn void(record: &mut VolumeRecord, generation: String) {
    record.voided.push(generation);
}
