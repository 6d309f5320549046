//! What becomes of a primary that another site has overtaken.

use super::Daemon;
use super::divergence;
use super::going_back::{check_settled, leave_off};
use super::handover::{Copy, DRAIN_DEADLINE, wrong_state};
use super::part::{Overtaken, Part, volume_id};
use super::volumes::{io_error, remember_changed};
use crate::admin::Outcome;
use crate::catalogue::{Parted, RecordedRole, VolumeRecord};
use crate::volume::{GateState, Volume};
use blockd_api::{ApiError, ErrorCode, Resync, Resynced, VolumeName};
use replicator::clock::unix_ms;
use replicator::intake::extent_blocks;
use replicator::primary::memory;
use replicator::site_link::request::{lineage_of, lineage_records};
use replicator::undo::Point;
use replicator_engine::block::{BLOCK_BYTES, block_count};
use replicator_engine::generation::{Lineage, Relation};
use replicator_engine::wire::Base;
use roaring::RoaringBitmap;
use std::sync::Arc;

/// A set of changed blocks that is larger than this is told in whole extents: it travels in one frame.
const MAX_CHANGED_BYTES: usize = 2 << 20;

impl Daemon {
    /// Another site has a later generation, or a rival one: nothing is acknowledged here from now on. The gate is fenced already.
    pub(super) async fn overtaken(&self, news: Overtaken) {
        let name = &news.name;
        let Some(operation) = self.volumes.lock().await.open.get(name).map(|open| open.operation.clone()) else { return };
        let _operation = operation.lock_owned().await;
        let Ok((record, volume)) = self.volumes.lock().await.get(name).map(|open| (open.record.clone(), open.volume.clone())) else {
            return;
        };
        let oldest = self.volumes.lock().await.get(name).ok().and_then(divergence::oldest_unsent_unix_ms);
        let relation = lineage_of(&record.lineage).map(|mine| mine.relation(&news.lineage));
        let role = match (record.role, relation) {
            (RecordedRole::Primary, Some(Relation::TheirsAhead(_))) => RecordedRole::Stale,
            (RecordedRole::Primary, Some(Relation::Split)) => RecordedRole::SplitBrain,
            (RecordedRole::Standby, _) if record.trial.is_some() => return,
            // It stepped down meanwhile.
            (RecordedRole::Standby, _) => return volume.gate.set(GateState::Shut),
            // It was promoted meanwhile, past the other one.
            (RecordedRole::Primary, _) if !record.fenced => {
                volume.gate.set(GateState::Shut);
                return volume.gate.reopen();
            }
            _ => return,
        };
        // Whoever held the lock may have opened it again.
        volume.gate.set(GateState::Fenced);
        tracing::error!(volume = %name, "another site was promoted: this one stops acknowledging");
        // First, so that after a crash, too, nothing is acknowledged.
        let recorded = self.volumes.lock().await.change(name, |record| {
            record.role = role;
            record.fenced = false;
            record.fenced_for = None;
            record.successor = lineage_records(&news.lineage);
            record.parted.get_or_insert(Parted { since_unix_ms: oldest, common_unix_ms: None });
        });
        if let Err(error) = recorded {
            tracing::error!(volume = %name, %error, "the catalogue cannot be written; the volume stays fenced");
        }
        // Nobody lets them go any more.
        volume.intake.held().close_all();
        let drained = tokio::time::timeout(DRAIN_DEADLINE, volume.gate.drained()).await.is_ok();
        let part = self.volumes.lock().await.take_part(name);
        let Part::Primary(primary) = part else { return };
        let changed = tokio::task::block_in_place(|| primary.stop()).filter(|_| drained);
        // A write that waits for its epoch would do so for ever.
        volume.intake.thaw_all();
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
        if record.role == RecordedRole::Standby && !record.successor.is_empty() {
            return self.give_up_later_points(record, request).await;
        }
        if record.role == RecordedRole::Standby && request.discard_local {
            return self.let_old_go(name, request.yes).await;
        }
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
        if !request.yes {
            check_settled(&record, &volume)?;
        }
        let id = volume_id(&record)?;
        let changed = divergence::changed_alone(&*catalogue, &record, id, &volume).map_err(io_error)?.blocks;
        let (blocks, bytes) = (changed.len(), changed.len() * BLOCK_BYTES as u64);
        let (mine, theirs) = (lineage_of(&record.lineage), lineage_of(&record.successor));
        let (Some(mine), Some(theirs)) = (mine, theirs) else {
            return Err(ApiError::new(ErrorCode::Internal, "catalogue: a stale volume without its lineages"));
        };
        let (epoch, size_bytes) = (volume.intake.tracker().open_epoch(), volume.size_bytes());
        let keep = (!request.yes).then(|| Point { epoch, size_bytes, cut_unix_ms: unix_ms(), group: None });
        // A request that waits would be carried out on the other site's content: whoever made it has to begin anew.
        let emptied = async {
            front_ends.end_all(name).await;
            volume.gate.drained().await;
        };
        let done = match tokio::time::timeout(DRAIN_DEADLINE, emptied).await {
            Ok(()) => self.follow(&record, &volume, changed, &mine, theirs, keep).await,
            Err(_) => {
                let error = ApiError::new(ErrorCode::Timeout, format!("{name}: requests of clients do not complete"));
                Err(error.with_hint("the disk does not answer: see the kernel's log"))
            }
        };
        self.volumes.lock().await.serve_all(name).await;
        done.map(|()| Resynced { blocks, bytes, kept: keep.is_some() })
    }

    /// Becomes the standby of the site with lineage `theirs`.
    async fn follow(
        &self,
        record: &VolumeRecord,
        volume: &Arc<Volume>,
        changed: RoaringBitmap,
        mine: &Lineage,
        theirs: Lineage,
        old: Option<Point>,
    ) -> Outcome<()> {
        let id = volume_id(record)?;
        let catalogue = self.volumes.lock().await.catalogue.clone();
        tokio::task::block_in_place(|| volume.image.sync_data()).map_err(io_error)?;
        let mut volumes = self.volumes.lock().await;
        let left = tokio::task::block_in_place(|| leave_off(volume));
        let (changed, old) = (changed | &left.blocks, old.map(|point| (point, left)));
        let copy = match divergence::in_common(record, &*catalogue, id).map_err(io_error)? {
            // A standby that was promoted below what it had acknowledged lost something: what differs is anybody's guess.
            // And of one that never committed, or whose copy could not be used, nothing is known here.
            Some((_, branch)) => {
                let changed = coarse(changed, block_count(volume.size_bytes()) as u32);
                Copy { committed: branch, base: Base::PointBut(changed), lineage: mine.clone(), follows: None, old }
            }
            None => Copy { committed: 0, base: Base::Unfinished, lineage: theirs, follows: None, old },
        };
        // A primary that finds it after a crash would take it for all that changed.
        memory::take_changed(&*catalogue, id).map_err(io_error)?;
        volumes.become_standby(volume, &record.name, copy, None).inspect_err(|_| drop(volumes.resume_going_back(volume, record)))?;
        volume.gate.set(GateState::Shut);
        Ok(())
    }
}

/// The set in whole extents if it would not fit a frame block by block.
pub(super) fn coarse(changed: RoaringBitmap, blocks: u32) -> RoaringBitmap {
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
