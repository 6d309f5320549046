//! The recovery points of a standby, as the admin API shows them.

use super::Daemon;
use super::handover::wrong_state;
use super::part::Part;
use super::volumes::io_error;
use crate::admin::Outcome;
use blockd_api::*;
use replicator::standby::{PastError, StandbyService};
use replicator::undo::{self, Kept};
use replicator_engine::tracker::Epoch;

impl Daemon {
    pub(super) async fn list_points(&self, name: &VolumeName) -> Outcome<PointList> {
        let standby = match &self.volumes.lock().await.get(name)?.part {
            Part::Standby(standby) => standby.clone(),
            _ => return Err(wrong_state(format!("{name} is no standby here"), "ask at the site that has its standby")),
        };
        let points = standby.points().await.map_err(io_error)?;
        Ok(PointList { points: points.iter().map(listed).collect() })
    }
}

fn listed(kept: &Kept) -> Point {
    let time = point_time(kept.point);
    Point { epoch: kept.point.epoch, time, bytes: kept.changed_bytes, size_bytes: kept.point.size_bytes }
}

/// When it was cut.
pub(super) fn point_time(point: undo::Point) -> Option<UtcTime> {
    i64::try_from(point.cut_unix_ms / 1000).ok().and_then(UtcTime::from_unix_seconds)
}

/// The recovery point that is asked for, unless it is the newest. It must be there, and what goes back to it loses what was written since.
pub(super) async fn older_point(name: &VolumeName, standby: &StandbyService, at: Epoch, force: bool) -> Outcome<Option<Epoch>> {
    let points = standby.points().await.map_err(io_error)?;
    let Some(place) = points.iter().position(|kept| kept.point.epoch == at) else { return Err(past_error(PastError::NotKept(at))) };
    if place + 1 == points.len() {
        return Ok(None);
    }
    if !force {
        let changed: u64 = points[place..].iter().map(|kept| kept.changed_bytes).sum();
        let message = format!("going back to recovery point {at} gives {name} up as it is now: at most {} differ", human_bytes(changed));
        return Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--force accepts that"));
    }
    Ok(Some(at))
}

pub(super) fn past_error(error: PastError) -> ApiError {
    match error {
        PastError::NotKept(_) => ApiError::new(ErrorCode::NotFound, error.to_string()).with_hint("`tern points` lists those that are"),
        PastError::Disk(error) => io_error(error),
    }
}
