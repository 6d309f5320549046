//! How a standby's image fares.

use crate::admin::{Outcome, ProgressSink};
use crate::daemon::Daemon;
use crate::daemon::handover::wrong_state;
use crate::daemon::part::Part;
use crate::daemon::volumes::io_error;
use blockd_api::*;
use replicator::standby::{Health, ScrubProgress, StandbyStatus};

impl Daemon {
    /// Looks through a standby's image, and says how it fares then.
    pub(in crate::daemon) async fn scrub_now(&self, name: &VolumeName, progress: &ProgressSink) -> Outcome<ScrubStatus> {
        let standby = match &self.volumes.lock().await.get(name)?.part {
            Part::Standby(standby) => standby.clone(),
            _ => {
                return Err(wrong_state(
                    format!("{name} is no standby here"),
                    "a primary has nothing to hold its image against: `tern verify`",
                ));
            }
        };
        let mut seen = standby.status();
        let told = async {
            loop {
                if let Some(ScrubProgress { done_bytes, total_bytes }) = seen.borrow_and_update().scrub {
                    progress.report(Progress::bytes("scrub", done_bytes, Some(total_bytes)));
                }
                if seen.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            ended = standby.scrub() => ended.map(|health| of_health(&health, None)).map_err(io_error),
            () = told => unreachable!("it is told until the round has ended"),
        }
    }
}

fn of_health(health: &Health, under_way: Option<ScrubProgress>) -> ScrubStatus {
    let last = i64::try_from(health.ended_unix_ms / 1000).ok().filter(|seconds| *seconds > 0).and_then(UtcTime::from_unix_seconds);
    ScrubStatus {
        running: under_way.is_some(),
        done_bytes: under_way.map_or(0, |under_way| under_way.done_bytes),
        total_bytes: under_way.map_or(0, |under_way| under_way.total_bytes),
        last,
        damaged_blocks: health.damaged,
        first_damaged_block: health.first_damaged.map(u64::from),
        found_blocks: health.found,
        repaired_blocks: health.repaired,
        unknown_blocks: health.unknown,
        error: health.void.clone(),
    }
}

/// What a standby's status says of its image.
pub(in crate::daemon) fn of_standby(status: &mut VolumeStatus, seen: &StandbyStatus) {
    status.scrub = seen.health.as_ref().map(|health| of_health(health, seen.scrub));
    let Some(ScrubStatus { damaged_blocks, first_damaged_block: Some(first), .. }) = status.scrub else { return };
    if status.state == State::InSync {
        status.state = State::Degraded;
    }
    let damaged =
        || format!("the disk has lost {damaged_blocks} blocks of the image, the first of them {first}: the primary sends them again");
    status.last_error = status.last_error.take().or_else(|| Some(damaged()));
}
