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
use super::replication::only_one;
use super::status;
use super::volumes::{Volumes, io_error, random_id};
use crate::admin::{Outcome, ProgressSink};
use crate::catalogue::{Granted, RecordedRole, VolumeRecord};
use crate::volume::{GateState, Volume};
use blockd_api::*;
use replicator::catalogue::{Catalogue, Persist};
use replicator::intake::extent_blocks;
use replicator::primary::memory::{self, EpochNumbers};
use replicator::site_link::request::{self, Answer, Question, lineage_of, lineage_records, parse_id};
use replicator::standby::{Place, Settled, StandbyService};
use replicator_engine::block::{BLOCK_BYTES, block_count};
use replicator_engine::generation::{Lineage, Relation};
use replicator_engine::sender::Known;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Base;
use roaring::RoaringBitmap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For requests that are inside the gate.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// For the last epoch to arrive.
const LAST_EPOCH_DEADLINE: Duration = Duration::from_secs(90);
/// For the answer to a handover: longer than the two before.
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
        let (record, operation) = self.record(name).await?;
        let _operation = only_one(&operation, name)?;
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
        progress.report(Progress { phase: "handover".into(), done: 0, total: Some(2), unit: Unit::Steps });
        let granted = self.ask_for_handover(&record, &standby, force).await?;
        progress.report(Progress { phase: "handover".into(), done: 1, total: Some(2), unit: Unit::Steps });
        let promoted = self.settle_and_become(name, &standby, granted).await;
        let (epoch, generation) = promoted.inspect_err(|_| standby.resume())?;
        let (kind, lost_bytes) = if granted.is_some() { (PromotionKind::Handover, Some(0)) } else { (PromotionKind::Failover, None) };
        tracing::info!(volume = %name, ?kind, epoch, generation, "promoted");
        Ok(Promotion { kind, epoch, generation, seconds: began.elapsed().as_secs_f64(), lost_bytes })
    }

    /// From the last recovery point to being primary.
    async fn settle_and_become(&self, name: &VolumeName, standby: &StandbyService, granted: Option<Epoch>) -> Outcome<(Epoch, u64)> {
        let settled = standby.settle().await.map_err(io_error)?;
        if settled.base != Base::Point {
            let error = ApiError::new(ErrorCode::WrongState, format!("{name} has no recovery point here: its first sync has not ended"));
            return Err(error.with_hint("wait for it with `tern wait --for in-sync` at the primary"));
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
        let mut volumes = self.volumes.lock().await;
        let volume = volumes.get(name)?.volume.clone();
        let mut record = volumes.get(name)?.record.clone();
        let id = match record.wanted_generation.take().and_then(|id| parse_id(&id)) {
            Some(id) => id,
            None => random_id()?,
        };
        let (volume_id, lineage) = (volume_id(&record)?, settled.lineage.promoted(id, settled.epoch));
        let known = Known { replica: None, acked: settled.epoch };
        let site = record.peer.as_ref().map_or("", |peer| &peer.site);
        let first = EpochNumbers::first_unused(&*volumes.catalogue, volume_id).map_err(io_error)?.max(settled.epoch + 1);
        volume.intake.restart(first).map_err(io_error)?;
        let prepared = memory::store_known(&*volumes.catalogue, &memory::known_key(volume_id, site), Some(known), Persist::Synced);
        prepared.map_err(io_error)?;
        record.role = RecordedRole::Primary;
        record.lineage = lineage_records(&lineage);
        record.granted = None;
        record.size_bytes = volume.size_bytes();
        if let Part::Standby(standby) = volumes.take_part(name) {
            tokio::task::block_in_place(|| standby.stop());
        }
        // From here on this site is primary, whatever happens.
        volumes.turn(record.clone(), Part::Idle)?;
        volume.intake.start_logging();
        let start = PrimaryStart { volume: &volume, record: &record, known: Some(known), compare_first: RoaringBitmap::new() };
        let part = volumes.start_primary(start)?;
        volumes.turn(record, part)?;
        volume.gate.reopen();
        Ok(lineage.current().counter)
    }

    /// Both sites were primary: this one stays it.
    async fn continue_after_split(&self, mut record: VolumeRecord, began: Instant) -> Outcome<Promotion> {
        let mut volumes = self.volumes.lock().await;
        let volume = volumes.get(&record.name)?.volume.clone();
        record.role = RecordedRole::Primary;
        record.successor.clear();
        let generation = lineage_of(&record.lineage).map_or(0, |lineage| lineage.current().counter);
        volumes.turn(record.clone(), Part::Idle)?;
        let hot = volume.intake.log().hot();
        let part = volumes.resume_primary(&volume, &record, &hot)?;
        let epoch = volume.intake.tracker().open_epoch();
        volumes.turn(record, part)?;
        volume.gate.set(GateState::Open);
        Ok(Promotion { kind: PromotionKind::Failover, epoch, generation, seconds: began.elapsed().as_secs_f64(), lost_bytes: None })
    }

    pub(super) async fn give_up(&self, name: &VolumeName, force: bool) -> Outcome<VolumeStatus> {
        let (record, operation) = self.record(name).await?;
        let _operation = only_one(&operation, name)?;
        self.step_down(record, force, None).await?;
        self.volumes.lock().await.get(name).map(status::status)
    }

    /// A standby wants to be primary.
    pub(super) async fn hand_over(&self, from: &str, volume: &str, generation: String, force: bool) -> Outcome<Answer> {
        let found = self.volumes.lock().await.by_id(volume).map(|open| (open.record.clone(), open.operation.clone()));
        let unknown = || ApiError::new(ErrorCode::NotFound, "the volume is not replicated between these sites");
        let (record, operation) = found.ok_or_else(unknown)?;
        if record.peer.as_ref().is_none_or(|peer| peer.site != from) {
            return Err(unknown());
        }
        let _operation = only_one(&operation, &record.name)?;
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

    /// Stops being primary: everything is at the standby, and recorded, on return.
    async fn step_down(&self, mut record: VolumeRecord, force: bool, generation: Option<String>) -> Outcome<Epoch> {
        let name = record.name.clone();
        if record.role != RecordedRole::Primary {
            return Err(ApiError::new(ErrorCode::WrongState, format!("{name} is not a replicated primary here")));
        }
        let replica = self.replica(&name).await?;
        let volume = self.volumes.lock().await.get(&name)?.volume.clone();
        let attached = volume.clients.attached();
        if !attached.is_empty() && !force {
            let message = format!("a client is active at {name} by {}", attached.join(" and "));
            return Err(ApiError::new(ErrorCode::ClientActive, message).with_hint("stop it, or cut it off with --force"));
        }
        volume.gate.set(GateState::Shut);
        let emptied = async {
            tokio::time::timeout(DRAIN_DEADLINE, volume.gate.drained()).await.map_err(|_| "requests of clients do not complete")?;
            let last = tokio::time::timeout(LAST_EPOCH_DEADLINE, replica.snapshot()).await;
            last.map_err(|_| "the last changes do not get to the standby in time")?.map_err(|_| "the connection broke")
        };
        if let Err(why) = emptied.await {
            volume.gate.reopen();
            return Err(ApiError::new(ErrorCode::Timeout, format!("{name} stays primary: {why}")));
        }
        let mut volumes = self.volumes.lock().await;
        let remains = tokio::task::block_in_place(|| replica.stop());
        drop(volumes.take_part(&name));
        let done = match &remains {
            Some(remains) if remains.changed.is_empty() => remains.known,
            _ => None,
        };
        let Some(known) = done else {
            // Nothing was recorded: it goes on as after a crash.
            let hot = volume.intake.log().hot();
            let part = volumes.resume_primary(&volume, &record, &hot)?;
            volumes.turn(record, part)?;
            volume.gate.reopen();
            return Err(ApiError::new(ErrorCode::Internal, format!("{name} stays primary: something changed behind the gate")));
        };
        let lineage = lineage_of(&record.lineage).ok_or_else(|| ApiError::new(ErrorCode::Internal, "a primary without a lineage"))?;
        record.granted = generation.map(|generation| Granted { generation, epoch: known.acked });
        let copy = Copy { committed: known.acked, base: Base::Point, lineage };
        volumes.become_standby(&volume, record, copy)?;
        tracing::info!(volume = %name, epoch = known.acked, "stepped down");
        Ok(known.acked)
    }

    /// Another site has a later generation, or a rival one: nothing is acknowledged here from now on.
    pub(super) async fn overtaken(&self, news: Overtaken) {
        let Some((record, operation, volume)) = ({
            let volumes = self.volumes.lock().await;
            volumes.by_id(&news.volume.to_string()).map(|open| (open.record.clone(), open.operation.clone(), open.volume.clone()))
        }) else {
            return;
        };
        if record.role != RecordedRole::Primary {
            return;
        }
        // Before anything that may take time.
        volume.gate.set(GateState::Fenced);
        let _operation = operation.lock_owned().await;
        let Ok((record, _)) = self.record(&record.name).await else { return };
        if record.role != RecordedRole::Primary {
            // It stepped down meanwhile.
            volume.gate.set(GateState::Shut);
            return;
        }
        // Whoever held the lock may have opened it again.
        volume.gate.set(GateState::Fenced);
        tracing::error!(volume = %record.name, "another site was promoted: this one stops acknowledging");
        let ahead = lineage_of(&record.lineage).map(|mine| mine.relation(&news.lineage));
        let role = if matches!(ahead, Some(Relation::TheirsAhead(_))) { RecordedRole::Stale } else { RecordedRole::SplitBrain };
        // First, so that after a crash, too, nothing is acknowledged.
        let recorded = self.volumes.lock().await.change(&record.name, |record| {
            record.role = role;
            record.successor = lineage_records(&news.lineage);
        });
        if let Err(error) = recorded {
            tracing::error!(volume = %record.name, %error, "the catalogue cannot be written; the volume stays fenced");
        }
        let drained = tokio::time::timeout(DRAIN_DEADLINE, volume.gate.drained()).await.is_ok();
        let mut volumes = self.volumes.lock().await;
        let Part::Primary(primary) = volumes.take_part(&record.name) else { return };
        let changed = tokio::task::block_in_place(|| primary.stop());
        if let (Some(changed), true) = (changed, drained)
            && let Err(error) = memory::store_changed(&*volumes.catalogue, news.volume, &changed)
        {
            tracing::warn!(volume = %record.name, %error, "what changed here alone could not be written down: the activity log says it less exactly");
        }
    }

    pub(super) async fn discard_and_follow(&self, name: &VolumeName, request: &Resync) -> Outcome<Resynced> {
        let (mut record, operation) = self.record(name).await?;
        let _operation = only_one(&operation, name)?;
        if !matches!(record.role, RecordedRole::Stale | RecordedRole::SplitBrain) {
            return Err(wrong_state(format!("{name} is not stale here"), "only an old primary that another site overtook is resynced"));
        }
        if !request.discard_local {
            let error = ApiError::new(ErrorCode::WouldLoseData, "a resync gives up what changed here alone");
            return Err(error.with_hint("--discard-local accepts that"));
        }
        let mut volumes = self.volumes.lock().await;
        let volume = volumes.get(name)?.volume.clone();
        let id = volume_id(&record)?;
        let changed = match memory::load_changed(&*volumes.catalogue, id).map_err(io_error)? {
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
        let copy = match mine.relation(&theirs) {
            Relation::TheirsAhead(branch) => {
                Copy { committed: branch, base: Base::PointBut(coarse(changed, block_count(volume.size_bytes()) as u32)), lineage: mine }
            }
            _ => Copy { committed: 0, base: Base::Unfinished, lineage: theirs },
        };
        volume.gate.set(GateState::Shut);
        record.granted = None;
        record.successor.clear();
        // A primary that finds it after a crash would take it for all that changed.
        memory::take_changed(&*volumes.catalogue, id).map_err(io_error)?;
        volumes.become_standby(&volume, record, copy)?;
        Ok(Resynced { blocks, bytes, kept: false })
    }
}

/// What a site that becomes a standby holds.
struct Copy {
    committed: Epoch,
    base: Base,
    lineage: Lineage,
}

impl Volumes {
    /// Records the copy's place, then the role, then begins to receive.
    fn become_standby(&mut self, volume: &Arc<Volume>, mut record: VolumeRecord, copy: Copy) -> Outcome<()> {
        let Copy { committed, base, lineage } = copy;
        let journal = self.state_dir.journal(&record.id);
        if journal.exists() {
            // Of an earlier time as standby, all folded.
            std::fs::remove_dir_all(&journal).map_err(io_error)?;
        }
        volume.image.sync_data().map_err(io_error)?;
        let size_bytes = volume.size_bytes();
        let place = Place { volume: volume_id(&record)?, replica: random_id()?, lineage, size_bytes, committed, folded: committed, base };
        place.store(&*self.catalogue as &dyn Catalogue, Persist::Synced).map_err(io_error)?;
        record.role = RecordedRole::Standby;
        record.wanted_generation = None;
        self.turn(record.clone(), Part::Idle)?;
        volume.intake.stop_logging();
        let part = self.start_standby(volume, &record)?;
        self.turn(record, part)
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
