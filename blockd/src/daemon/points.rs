//! The recovery points of a standby, as the admin API shows them.

use super::Daemon;
use super::handover::wrong_state;
use super::old;
use super::part::Part;
use super::trial::not_on_trial;
use super::volumes::io_error;
use crate::admin::Outcome;
use blockd_api::*;
use replicator::standby::{PastError, StandbyService};
use replicator::undo::{self, Kept};
use replicator_engine::tracker::Epoch;

impl Daemon {
    pub(super) async fn list_points(&self, name: &VolumeName) -> Outcome<PointList> {
        not_on_trial(&self.volumes.lock().await.get(name)?.record)?;
        let standby = match &self.volumes.lock().await.get(name)?.part {
            Part::Standby(standby) => standby.clone(),
            _ => return Err(wrong_state(format!("{name} is no standby here"), "ask at the site that has its standby")),
        };
        let points = standby.points().await.map_err(io_error)?;
        let kept = standby.status().borrow().kept_old.clone();
        Ok(PointList { points: kept.map(old::listed).into_iter().chain(points.iter().map(listed)).collect() })
    }
}

fn listed(kept: &Kept) -> Point {
    let time = point_time(kept.point);
    Point {
        epoch: kept.point.epoch,
        time,
        bytes: kept.changed_bytes,
        size_bytes: kept.point.size_bytes,
        pinned: false,
        damaged_blocks: kept.lost_blocks,
    }
}

/// When it was cut.
pub(super) fn point_time(point: undo::Point) -> Option<UtcTime> {
    i64::try_from(point.cut_unix_ms / 1000).ok().and_then(UtcTime::from_unix_seconds)
}

/// The recovery point that is asked for must be there; what goes back to it loses what was written since, were it the newest.
pub(super) async fn check_point(name: &VolumeName, standby: &StandbyService, at: Epoch, force: bool) -> Outcome<()> {
    let points = standby.points().await.map_err(io_error)?;
    let Some(place) = points.iter().position(|kept| kept.point.epoch == at) else { return Err(past_error(PastError::NotKept(at))) };
    if !force {
        let changed: u64 = points[place..].iter().map(|kept| kept.changed_bytes).sum();
        let differs = human_bytes(changed);
        let message =
            format!("recovery point {at} instead of {name} as it is now: at most {differs} differ here, and what the primary has since");
        return Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--force accepts that"));
    }
    Ok(())
}

pub(super) fn past_error(error: PastError) -> ApiError {
    match error {
        PastError::NotKept(_) => ApiError::new(ErrorCode::NotFound, error.to_string()).with_hint("`tern points` lists those that are"),
        PastError::Disk(error) => io_error(error),
    }
}
