//! What an old primary had when it became a standby: kept beside the image, shown, drilled, and let go.

use super::Daemon;
use super::handover::wrong_state;
use super::part::Part;
use super::points::point_time;
use super::volumes::io_error;
use crate::admin::Outcome;
use crate::store::Image;
use blockd_api::{ApiError, ErrorCode, Resynced, VolumeName, human_bytes};
use replicator::disk::BlockDevice;
use replicator::standby::{KeptOld, OldState, SegmentDir, StandbyService};
use replicator::undo::{Aside, Point};
use replicator_engine::generation::Generation;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// From now on what the image holds is kept.
pub(super) fn begin(dir: &Path, generation: Generation, point: Point) -> io::Result<()> {
    Aside::begin(SegmentDir::open(dir)?, generation, point)
}

/// The image as a standby writes to it, and what is kept of it.
type Opened = (Arc<dyn BlockDevice>, Option<Arc<OldState<SegmentDir>>>);

/// The image, behind what is kept of it if something is.
pub(super) fn open(dir: &Path, generation: Generation, image: &Image) -> io::Result<Opened> {
    let image: Arc<dyn BlockDevice> = Arc::new(image.clone());
    if !dir.exists() {
        return Ok((image, None));
    }
    Ok(match OldState::open(SegmentDir::open(dir)?, generation, image.clone())? {
        Some(old) => (old.clone(), Some(old)),
        None => {
            tracing::warn!(dir = %dir.display(), "what was kept of an old state cannot be read");
            (image, None)
        }
    })
}

/// As `tern points` lists it.
pub(super) fn listed(kept: KeptOld) -> blockd_api::Point {
    let KeptOld { point, used_bytes } = kept;
    blockd_api::Point { epoch: point.epoch, time: point_time(point), bytes: used_bytes, size_bytes: point.size_bytes, pinned: true }
}

/// A promotion writes to the image without keeping anything.
pub(super) fn check_promotion(name: &VolumeName, standby: &StandbyService, force: bool) -> Outcome<()> {
    match standby.status().borrow().kept_old {
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
        let Some(kept) = standby.status().borrow().kept_old else {
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
        tracing::info!(volume = %name, "the old state is let go");
        Ok(Resynced { blocks: 0, bytes: kept.used_bytes, kept: false })
    }
}
