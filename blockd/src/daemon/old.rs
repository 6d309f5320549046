//! What an old primary had when it became a standby: kept beside the image, shown, drilled, and let go.

use super::Daemon;
use super::handover::wrong_state;
use super::part::{Part, volume_id};
use super::points::point_time;
use super::volumes::{if_there, io_error};
use crate::admin::Outcome;
use crate::catalogue::RocksCatalogue;
use crate::store::Image;
use blockd_api::{ApiError, ErrorCode, Resynced, State, VolumeName, VolumeStatus, human_bytes};
use replicator::disk::BlockDevice;
use replicator::standby::{KeptOld, Lost, OldMarks, OldState, Place, SegmentDir, StandbyService};
use replicator::undo::Point;
use replicator_engine::generation::{Generation, Id, Lineage};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What is remembered of what is kept in a directory.
fn marks(volume: Id, generation: Generation, catalogue: &Arc<RocksCatalogue>) -> OldMarks {
    OldMarks::new(volume, generation, catalogue.clone())
}

/// From now on what the image holds is kept, but for what is `lost` of it already.
pub(super) fn begin(
    dir: &Path,
    volume: Id,
    lineage: &Lineage,
    catalogue: &Arc<RocksCatalogue>,
    (point, lost): (Point, Lost),
) -> io::Result<()> {
    OldState::begin(SegmentDir::open(dir)?, &marks(volume, lineage.current(), catalogue), point, &lost)
}

/// Nothing is kept any more.
pub(super) fn forget(dir: &Path, volume: Id, catalogue: &Arc<RocksCatalogue>) -> io::Result<()> {
    // In this order: a log whose end is gone counts as damaged while it is known how far it went.
    if_there(std::fs::remove_dir_all(dir))?;
    OldMarks::forget(volume, &**catalogue)
}

/// The image as a standby writes to it, and what is kept of it.
type Opened = (Arc<dyn BlockDevice>, Option<Arc<OldState<SegmentDir>>>);

/// The image of a copy, behind what is kept of it if something is.
pub(super) fn open(dir: &Path, place: &Place, catalogue: &Arc<RocksCatalogue>, image: &Image) -> io::Result<Opened> {
    let image: Arc<dyn BlockDevice> = Arc::new(image.clone());
    let marks = marks(place.volume, place.lineage.current(), catalogue);
    if !dir.exists() && !marks.are_there()? {
        return Ok((image, None));
    }
    Ok(match OldState::open(SegmentDir::open(dir)?, marks, image.clone())? {
        Some(old) => (old.clone(), Some(old)),
        None => (image, None),
    })
}

/// As `tern points` lists it.
pub(super) fn listed(kept: KeptOld) -> blockd_api::Point {
    let KeptOld { point, used_bytes, lost_blocks, .. } = kept;
    let (time, size_bytes) = (point_time(point), point.size_bytes);
    blockd_api::Point { epoch: point.epoch, time, bytes: used_bytes, size_bytes, pinned: true, damaged_blocks: lost_blocks }
}

/// What a standby's status says of it.
pub(super) fn of_standby(status: &mut VolumeStatus, kept: Option<&KeptOld>) {
    let Some(KeptOld { used_bytes, lost_blocks, why_lost, .. }) = kept else { return };
    status.kept_bytes = *used_bytes;
    let Some(why) = why_lost else { return };
    if status.state == State::InSync {
        status.state = State::Degraded;
    }
    let name = &status.name;
    let lost = || {
        format!("{lost_blocks} blocks of the old state that is kept are lost: {why}; `tern resync {name} --discard-local --yes` lets it go")
    };
    status.last_error = status.last_error.take().or_else(|| Some(lost()));
}

/// A promotion writes to the image without keeping anything.
pub(super) fn check_promotion(name: &VolumeName, standby: &StandbyService, force: bool) -> Outcome<()> {
    match standby.status().borrow().kept_old.as_ref() {
        Some(_) if !force => {
            let message = format!("{name} keeps its old state here, which a promotion gives up");
            let cure = format!("`tern resync {name} --discard-local --yes` lets it go; --force accepts that it is lost");
            Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint(cure))
        }
        Some(_) => {
            tracing::warn!(volume = %name, "promoted by force: the old state that was kept here is given up");
            Ok(())
        }
        None => Ok(()),
    }
}

impl Daemon {
    /// The operator has looked at the old state, and needs it no more.
    pub(super) async fn let_old_go(&self, name: &VolumeName, yes: bool) -> Outcome<Resynced> {
        let (standby, has_drill) = {
            let volumes = self.volumes.lock().await;
            match &volumes.get(name)?.part {
                Part::Standby(standby) => (standby.clone(), volumes.drills.contains_key(name)),
                _ => return Err(ApiError::new(ErrorCode::Internal, format!("{name} could not be opened as a standby: see the log"))),
            }
        };
        let Some(kept) = standby.status().borrow().kept_old.clone() else {
            return Err(wrong_state(format!("{name} follows already, and keeps no old state"), "nothing is to be done"));
        };
        if !yes {
            let message = format!("{name} follows already; its old state is kept in {}", human_bytes(kept.used_bytes));
            return Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--yes lets that go, for good"));
        }
        if has_drill {
            let message = format!("a drill of {name} is under way, perhaps of its old state");
            return Err(ApiError::new(ErrorCode::Busy, message).with_hint(format!("`tern drill {name} --end` ends it")));
        }
        standby.forget_old().await.map_err(io_error)?;
        {
            let volumes = self.volumes.lock().await;
            let id = &volumes.get(name)?.record.id;
            let dir = volumes.state_dir.old(id);
            tokio::task::block_in_place(|| forget(&dir, volume_id(&volumes.get(name)?.record)?, &volumes.catalogue).map_err(io_error))?;
        }
        tracing::info!(volume = %name, "the old state is let go");
        Ok(Resynced { blocks: 0, bytes: kept.used_bytes, kept: false })
    }
}
