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

use super::Daemon;
use super::part::{Overtaken, Part, PrimaryStart, peer_site, volume_id};
use super::status;
use super::volumes::{Volumes, if_there, io_error, random_id, remember_changed};
use crate::admin::{Outcome, ProgressSink};
use crate::catalogue::{Granted, RecordedRole, VolumeRecord};
use crate::volume::{GateState, Volume};
use blockd_api::*;
use replicator::catalogue::{Catalogue, Persist};
use replicator::intake::extent_blocks;
use replicator::primary::memory::{self, EpochNumbers};
use replicator::primary::{Remains, Replica};
use replicator::site_link::request::{self, Answer, Question, lineage_of, lineage_records, parse_id};
use replicator::standby::{Place, Settled, StandbyService};
use replicator_engine::block::{BLOCK_BYTES, block_count};
use replicator_engine::generation::{Lineage, Relation};
use replicator_engine::sender::{Known, Phase};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Base;
use roaring::RoaringBitmap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For requests that are inside the gate.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// For what is not at the standby yet to arrive there while clients go on.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(60);
/// For the last epoch to arrive.
const LAST_EPOCH_DEADLINE: Duration = Duration::from_secs(30);
/// For the answer to a handover: longer than the three before.
const HANDOVER_DEADLINE: Duration = Duration::from_secs(110);
/// For a sign of life of the primary.
const PING_DEADLINE: Duration = Duration::from_secs(5);
/// The same, for somebody who accepts a failover.
const FORCED_PING_DEADLINE: Duration = Duration::from_millis(300);
/// A set of changed blocks that is larger than this is told in whole extents: it travels in one frame.
const MAX_CHANGED_BYTES: usize = 2 << 20;

fn wrong_state(message: String, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::WrongState, message).with_hint(hint)
}

impl Daemon {
    pub(super) async fn take_over(&self, name: &VolumeName, force: bool, progress: &ProgressSink) -> Outcome<Promotion> {
        let began = Instant::now();
        let (record, _operation) = self.begin(name).await?;
        match record.role {
            RecordedRole::Standby => {}
            RecordedRole::SplitBrain if force => return self.continue_after_split(record, began).await,
            RecordedRole::Primary | RecordedRole::Standalone => {
                return Err(wrong_state(format!("{name} is primary here"), "promote it at its standby"));
            }
            RecordedRole::Stale | RecordedRole::SplitBrain => {
                return Err(wrong_state(format!("{name} is stale here"), "`tern resync --discard-local` makes it a standby first"));
            }
        }
        let standby = self.standby(name).await?;
        if !standby.status().borrow().has_point {
            let error = wrong_state(
                format!("{name} has no recovery point here: its first sync has not ended"),
                "at the primary, `tern wait --for in-sync`",
            );
            return Err(error);
        }
        progress.report(Progress { phase: "handover".into(), done: 0, total: Some(2), unit: Unit::Steps });
        let granted = self.ask_for_handover(&record, &standby, force).await?;
        progress.report(Progress { phase: "handover".into(), done: 1, total: Some(2), unit: Unit::Steps });
        let promoted = self.settle_and_become(name, &standby, granted).await;
        if promoted.is_err() {
            standby.resume();
            self.volumes.lock().await.restore(name);
        }
        let (epoch, generation) = promoted?;
        let (kind, lost_bytes) = if granted.is_some() { (PromotionKind::Handover, Some(0)) } else { (PromotionKind::Failover, None) };
        tracing::info!(volume = %name, ?kind, epoch, generation, "promoted");
        Ok(Promotion { kind, epoch, generation, seconds: began.elapsed().as_secs_f64(), lost_bytes })
    }

    /// From the last recovery point to being primary.
    async fn settle_and_become(&self, name: &VolumeName, standby: &StandbyService, granted: Option<Epoch>) -> Outcome<(Epoch, u64)> {
        let settled = standby.settle().await.map_err(io_error)?;
        if settled.base != Base::Point {
            return Err(wrong_state(format!("{name} has no recovery point here"), "at the primary, `tern wait --for in-sync`"));
        }
        if granted.is_some_and(|epoch| epoch != settled.epoch) {
            let error = format!("{name} was handed over at epoch {granted:?}, but this copy stands at {}", settled.epoch);
            return Err(ApiError::new(ErrorCode::Internal, error));
        }
        Ok((settled.epoch, self.become_primary(name, &settled).await?))
    }

    async fn standby(&self, name: &VolumeName) -> Outcome<Arc<StandbyService>> {
        match &self.volumes.lock().await.get(name)?.part {
            Part::Standby(standby) => Ok(standby.clone()),
            _ => Err(ApiError::new(ErrorCode::Internal, format!("{name} could not be opened as a standby: see the log"))),
        }
    }

    /// Asks the primary to step down. The epoch at which it did; `None` if nobody answers and that is accepted.
    async fn ask_for_handover(&self, record: &VolumeRecord, standby: &StandbyService, force: bool) -> Outcome<Option<Epoch>> {
        let name = &record.name;
        let Some(peer) = &record.peer else { return Ok(None) };
        let unreachable = |why: String| {
            if force {
                tracing::warn!(volume = %name, why, "failing over without the primary");
                return Ok(None);
            }
            let committed = standby.status().borrow().committed;
            let message = format!("{}: {why}: whatever was written after recovery point {committed} would be lost", peer.name);
            Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--force accepts that"))
        };
        let Some(link) = self.sites.links.get(&peer_site(peer)?) else { return unreachable("the primary does not answer".into()) };
        // A site that died leaves a link that looks alive for some seconds.
        let patience = if force { FORCED_PING_DEADLINE } else { PING_DEADLINE } + 2 * link.stats().round_trip;
        if let Err(error) = request::ask(&link, &Question::Ping, patience).await {
            return unreachable(format!("the primary does not answer ({error})"));
        }
        let generation = match &record.wanted_generation {
            Some(generation) => generation.clone(),
            None => random_id()?.to_string(),
        };
        self.volumes.lock().await.change(name, |record| record.wanted_generation = Some(generation.clone()))?;
        let question = Question::Handover { volume: record.id.clone(), generation, force };
        match request::ask(&link, &question, HANDOVER_DEADLINE).await {
            Ok(Answer::Granted { epoch }) => Ok(Some(epoch)),
            Ok(Answer::NotPrimary { committed }) => {
                let mine = standby.status().borrow().committed;
                if committed <= mine {
                    return Ok(Some(mine));
                }
                if force {
                    return Ok(None);
                }
                let message = format!("{} has recovery point {committed}, this site only {mine}", peer.name);
                Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("promote that one, or accept the loss with --force"))
            }
            // Whatever keeps it from stepping down: it has fenced itself, or is not primary.
            Ok(Answer::Refused { message, .. }) if force => unreachable(message),
            Ok(Answer::Refused { code, message }) => {
                let code = serde_json::from_value(code.into()).unwrap_or(ErrorCode::Internal);
                let error = ApiError::new(code, format!("{}: {message}", peer.name));
                Err(if code == ErrorCode::ClientActive { error.with_hint("stop the client, or cut it off with --force") } else { error })
            }
            Ok(other) => Err(ApiError::new(ErrorCode::Internal, format!("{} answered {other:?}", peer.name))),
            Err(error) => unreachable(error.to_string()),
        }
    }

    async fn become_primary(&self, name: &VolumeName, settled: &Settled) -> Outcome<u64> {
        let (volume, record, part) = {
            let mut volumes = self.volumes.lock().await;
            let part = volumes.take_part(name);
            let open = volumes.get(name)?;
            (open.volume.clone(), open.record.clone(), part)
        };
        tokio::task::block_in_place(|| part.stop());
        let generation = match record.wanted_generation.as_deref().and_then(parse_id) {
            Some(id) => id,
            None => random_id()?,
        };
        let (id, lineage) = (volume_id(&record)?, settled.lineage.promoted(generation, settled.epoch));
        let known = Known { replica: None, acked: settled.epoch };
        let site = record.peer.as_ref().map_or("", |peer| &peer.site);
        let mut volumes = self.volumes.lock().await;
        let prepared = EpochNumbers::first_unused(&*volumes.catalogue, id)
            .and_then(|first| volume.intake.restart(first.max(settled.epoch + 1)))
            .and_then(|()| memory::store_known(&*volumes.catalogue, &memory::known_key(id, site), Some(known), Persist::Synced))
            .and_then(|()| memory::take_changed(&*volumes.catalogue, id).map(drop));
        prepared.map_err(io_error)?;
        // From here on this site is primary, whatever happens.
        volumes.change(name, |record| {
            record.role = RecordedRole::Primary;
            record.lineage = lineage_records(&lineage);
            record.wanted_generation = None;
            record.granted = None;
            record.size_bytes = volume.size_bytes();
        })?;
        volume.intake.start_logging();
        let record = volumes.get(name)?.record.clone();
        let part = volumes.start_primary(PrimaryStart {
            volume: &volume,
            record: &record,
            known: Some(known),
            compare_first: RoaringBitmap::new(),
        })?;
        volumes.put_part(name, part);
        volume.gate.reopen();
        Ok(lineage.current().counter)
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
        let generation = lineage.current().counter;
        Ok(Promotion { kind: PromotionKind::Failover, epoch, generation, seconds: began.elapsed().as_secs_f64(), lost_bytes: None })
    }

    pub(super) async fn give_up(&self, name: &VolumeName, force: bool) -> Outcome<VolumeStatus> {
        let (record, _operation) = self.begin(name).await?;
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
        if record.peer.as_ref().is_none_or(|peer| peer.site != from) {
            return Err(unknown());
        }
        match record.role {
            RecordedRole::Primary => {
                let epoch = self.step_down(record, force, Some(generation)).await?;
                Ok(Answer::Granted { epoch })
            }
            RecordedRole::Standby => {
                if let Some(granted) = record.granted.filter(|granted| granted.generation == generation) {
                    return Ok(Answer::Granted { epoch: granted.epoch });
                }
                // Who asks takes over: a handover that this site asked for itself is void from now on.
                let mut volumes = self.volumes.lock().await;
                volumes.change(&record.name, |record| record.wanted_generation = None)?;
                let committed = status::status(volumes.get(&record.name)?).epoch_committed;
                Ok(Answer::NotPrimary { committed })
            }
            RecordedRole::Standalone => Err(unknown()),
            RecordedRole::Stale | RecordedRole::SplitBrain => {
                Err(ApiError::new(ErrorCode::WrongState, "that site is stale: `tern resync --discard-local` there first"))
            }
        }
    }

    /// Stops being primary: everything is at the standby, and recorded, on return. Clients go on until little is left.
    async fn step_down(&self, record: VolumeRecord, force: bool, generation: Option<String>) -> Outcome<Epoch> {
        let name = &record.name;
        if record.role != RecordedRole::Primary {
            return Err(ApiError::new(ErrorCode::WrongState, format!("{name} is not a replicated primary here")));
        }
        let replica = self.replica(name).await?;
        let volume = self.volumes.lock().await.get(name)?.volume.clone();
        let attached = volume.clients.attached();
        if !attached.is_empty() && !force {
            let message = format!("a client is active at {name} by {}", attached.join(" and "));
            return Err(ApiError::new(ErrorCode::ClientActive, message).with_hint("stop it, or cut it off with --force"));
        }
        let emptied = match catch_up(&replica).await {
            Ok(()) => {
                volume.gate.set(GateState::Shut);
                empty(&volume, &replica).await
            }
            Err(why) => Err(why),
        };
        if let Err(why) = emptied {
            if force && generation.is_some() {
                // Who asks takes over without us, and is told so: nothing may be acknowledged here meanwhile.
                volume.gate.set(GateState::Fenced);
                tracing::error!(volume = %name, why, "fenced: the other site is promoted by force");
            } else {
                volume.gate.reopen();
            }
            let error = ApiError::new(ErrorCode::Timeout, format!("{name} cannot be handed over: {why}"));
            return Err(error.with_hint("`tern status` at its primary says how it stands; `tern wait --for in-sync` waits"));
        }
        let part = self.volumes.lock().await.take_part(name);
        let remains = tokio::task::block_in_place(|| replica.stop());
        drop(part);
        let done = self.hand_everything_over(&record, &volume, remains, generation).await;
        if done.is_err() {
            // Goes on as after a crash.
            self.volumes.lock().await.restore(name);
        }
        done
    }

    async fn hand_everything_over(
        &self,
        record: &VolumeRecord,
        volume: &Arc<Volume>,
        remains: Option<Remains>,
        generation: Option<String>,
    ) -> Outcome<Epoch> {
        let known = remains.filter(|remains| remains.changed.is_empty()).and_then(|remains| remains.known);
        let known = known.ok_or_else(|| ApiError::new(ErrorCode::Internal, "something changed behind the gate"))?;
        let lineage = lineage_of(&record.lineage).ok_or_else(|| ApiError::new(ErrorCode::Internal, "a primary without a lineage"))?;
        let copy = Copy { committed: known.acked, base: Base::Point, lineage };
        let granted = generation.map(|generation| Granted { generation, epoch: known.acked });
        self.volumes.lock().await.become_standby(volume, &record.name, copy, granted)?;
        tracing::info!(volume = %record.name, epoch = known.acked, "stepped down");
        Ok(known.acked)
    }

    /// Another site has a later generation, or a rival one: nothing is acknowledged here from now on. The gate is fenced already.
    pub(super) async fn overtaken(&self, news: Overtaken) {
        let name = &news.name;
        let Some(operation) = self.volumes.lock().await.open.get(name).map(|open| open.operation.clone()) else { return };
        let _operation = operation.lock_owned().await;
        let Ok((record, volume)) = self.volumes.lock().await.get(name).map(|open| (open.record.clone(), open.volume.clone())) else {
            return;
        };
        let relation = lineage_of(&record.lineage).map(|mine| mine.relation(&news.lineage));
        let role = match (record.role, relation) {
            (RecordedRole::Primary, Some(Relation::TheirsAhead(_))) => RecordedRole::Stale,
            (RecordedRole::Primary, Some(Relation::Split)) => RecordedRole::SplitBrain,
            // It stepped down meanwhile.
            (RecordedRole::Standby, _) => return volume.gate.set(GateState::Shut),
            _ => return,
        };
        // Whoever held the lock may have opened it again.
        volume.gate.set(GateState::Fenced);
        tracing::error!(volume = %name, "another site was promoted: this one stops acknowledging");
        // First, so that after a crash, too, nothing is acknowledged.
        let recorded = self.volumes.lock().await.change(name, |record| {
            record.role = role;
            record.successor = lineage_records(&news.lineage);
        });
        if let Err(error) = recorded {
            tracing::error!(volume = %name, %error, "the catalogue cannot be written; the volume stays fenced");
        }
        let drained = tokio::time::timeout(DRAIN_DEADLINE, volume.gate.drained()).await.is_ok();
        let part = self.volumes.lock().await.take_part(name);
        let Part::Primary(primary) = part else { return };
        let changed = tokio::task::block_in_place(|| primary.stop()).filter(|_| drained);
        let catalogue = self.volumes.lock().await.catalogue.clone();
        let written = match (changed, volume_id(&record)) {
            (Some(changed), Ok(id)) => tokio::task::block_in_place(|| remember_changed(&*catalogue, id, &volume, &changed)),
            _ => return,
        };
        if let Err(error) = written {
            tracing::warn!(volume = %name, %error, "what changed here alone could not be written down: the activity log says it less exactly");
        }
    }

    pub(super) async fn discard_and_follow(&self, name: &VolumeName, request: &Resync) -> Outcome<Resynced> {
        let (record, _operation) = self.begin(name).await?;
        if !matches!(record.role, RecordedRole::Stale | RecordedRole::SplitBrain) {
            return Err(wrong_state(format!("{name} is not stale here"), "only an old primary that another site overtook is resynced"));
        }
        if !request.discard_local {
            let error = ApiError::new(ErrorCode::WouldLoseData, "a resync gives up what changed here alone");
            return Err(error.with_hint("--discard-local accepts that"));
        }
        let (volume, catalogue, front_ends) = {
            let volumes = self.volumes.lock().await;
            (volumes.get(name)?.volume.clone(), volumes.catalogue.clone(), volumes.front_ends.clone())
        };
        let id = volume_id(&record)?;
        let changed = match memory::load_changed(&*catalogue, id).map_err(io_error)? {
            Some(exact) => exact,
            None => volume.intake.log().hot().iter().flat_map(|extent| extent_blocks(extent).blocks()).collect(),
        };
        let (blocks, bytes) = (changed.len(), changed.len() * BLOCK_BYTES as u64);
        if !request.yes {
            let message = format!("{blocks} blocks ({}) changed here and are not at the new primary", human_bytes(bytes));
            return Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--yes gives them up"));
        }
        let (mine, theirs) = (lineage_of(&record.lineage), lineage_of(&record.successor));
        let (Some(mine), Some(theirs)) = (mine, theirs) else {
            return Err(ApiError::new(ErrorCode::Internal, "catalogue: a stale volume without its lineages"));
        };
        // A request that waits would be carried out on the other site's content: whoever made it has to begin anew.
        front_ends.end_all(name).await;
        if tokio::time::timeout(DRAIN_DEADLINE, volume.gate.drained()).await.is_err() {
            self.volumes.lock().await.serve_all(name).await;
            let error = ApiError::new(ErrorCode::Timeout, format!("{name}: requests of clients do not complete"));
            return Err(error.with_hint("the disk does not answer: see the kernel's log"));
        }
        let site = record.peer.as_ref().map_or("", |peer| &peer.site);
        let known = memory::load_known(&*catalogue, &memory::known_key(id, site)).map_err(io_error)?;
        let copy = match mine.relation(&theirs) {
            // A standby that was promoted below what it had acknowledged lost something: what differs is anybody's guess.
            Relation::TheirsAhead(branch) if known.is_none_or(|known| known.acked <= branch) => {
                Copy { committed: branch, base: Base::PointBut(coarse(changed, block_count(volume.size_bytes()) as u32)), lineage: mine }
            }
            _ => Copy { committed: 0, base: Base::Unfinished, lineage: theirs },
        };
        // A primary that finds it after a crash would take it for all that changed.
        memory::take_changed(&*catalogue, id).map_err(io_error)?;
        let mut volumes = self.volumes.lock().await;
        let done = volumes.become_standby(&volume, name, copy, None);
        if done.is_ok() {
            volume.gate.set(GateState::Shut);
        }
        volumes.serve_all(name).await;
        done?;
        Ok(Resynced { blocks, bytes, kept: false })
    }
}

/// Gets what the standby lacks there, but for what clients write meanwhile.
async fn catch_up(replica: &Replica) -> Result<(), &'static str> {
    let seen = replica.status().borrow().clone();
    if seen.phase != Phase::Online {
        return Err("its standby is not connected");
    }
    if seen.known.is_none() {
        return Err("its standby has no recovery point yet");
    }
    let cut = tokio::time::timeout(CATCH_UP_DEADLINE, replica.snapshot()).await;
    cut.map_err(|_| "too much is not at the standby yet")?.map(drop).map_err(|_| "the connection broke")
}

/// Waits until no client's request is inside the gate and everything is at the standby.
async fn empty(volume: &Volume, replica: &Replica) -> Result<(), &'static str> {
    tokio::time::timeout(DRAIN_DEADLINE, volume.gate.drained()).await.map_err(|_| "requests of clients do not complete")?;
    let last = tokio::time::timeout(LAST_EPOCH_DEADLINE, replica.snapshot()).await;
    last.map_err(|_| "the last changes do not get to the standby in time")?.map(drop).map_err(|_| "the connection broke")
}

/// What a site that becomes a standby holds.
struct Copy {
    committed: Epoch,
    base: Base,
    lineage: Lineage,
}

impl Volumes {
    /// Records the copy's place, then the role, then begins to receive.
    fn become_standby(&mut self, volume: &Arc<Volume>, name: &VolumeName, copy: Copy, granted: Option<Granted>) -> Outcome<()> {
        let Copy { committed, base, lineage } = copy;
        let id = volume_id(&self.get(name)?.record)?;
        // A journal of an earlier time as standby is all folded.
        if_there(std::fs::remove_dir_all(self.state_dir.journal(&id.to_string()))).map_err(io_error)?;
        volume.image.sync_data().map_err(io_error)?;
        let size_bytes = volume.size_bytes();
        let place = Place { volume: id, replica: random_id()?, lineage, size_bytes, committed, folded: committed, base };
        place.store(&*self.catalogue as &dyn Catalogue, Persist::Synced).map_err(io_error)?;
        self.change(name, |record| {
            record.role = RecordedRole::Standby;
            record.granted = granted;
            record.wanted_generation = None;
            record.successor.clear();
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

/// The set in whole extents if it would not fit a frame block by block.
fn coarse(changed: RoaringBitmap, blocks: u32) -> RoaringBitmap {
    let mut changed = changed;
    changed.remove_range(blocks..);
    changed.optimize();
    if changed.serialized_size() <= MAX_CHANGED_BYTES {
        return changed;
    }
    let mut extents = RoaringBitmap::new();
    for block in &changed {
        extents.insert(block / replicator::intake::EXTENT_BLOCKS);
    }
    let mut coarse = RoaringBitmap::new();
    for extent in extents {
        coarse.insert_range(extent_blocks(extent).blocks());
    }
    coarse.remove_range(blocks..);
    coarse.optimize();
    coarse
}
