//! Cuts by the clock, in mode `snapshot`: asks the sender for each that is due, and sees when the standby has it.

use super::group::Seat;
use super::memory::store_point;
use super::shell::Shell;
use crate::catalogue::Persist;
use replicator_engine::schedule::{Clock, Dues, Schedule, Timetable};
use replicator_engine::sender::Cuts;
use replicator_engine::tracker::Epoch;

/// What is due, and what is there.
#[derive(Default)]
pub(super) struct Scheduling {
    schedule: Option<Schedule>,
    timetable: Option<Timetable>,
    pub(super) dues: Dues,
    /// When the newest recovery point was cut, if that is known.
    pub(super) point_unix_ms: Option<u64>,
}

impl Scheduling {
    pub(super) fn new(point_unix_ms: Option<u64>) -> Self {
        Self { point_unix_ms, ..Self::default() }
    }

    /// The operator wants this, or nothing, from now on.
    pub(super) fn set(&mut self, schedule: Option<Schedule>, clock: Clock) {
        if schedule != self.schedule {
            self.timetable = schedule.clone().map(|schedule| Timetable::new(schedule, self.point_unix_ms, clock));
            (self.schedule, self.dues) = (schedule, Dues::default());
        }
    }

    /// When the next cut is due, by the clock on the wall.
    pub(super) fn next_unix_ms(&self) -> Option<u64> {
        self.timetable.as_ref().map(Timetable::next_unix_ms)
    }
}

impl Shell {
    /// Asks for the cut that is due now.
    pub(super) fn keep_time(&mut self, clock: Clock) {
        let is_due = self.scheduling.timetable.as_mut().is_some_and(|timetable| timetable.take_due(clock));
        if is_due && self.seat.as_ref().is_none_or(Seat::keeps_time) {
            self.scheduling.dues.handle_due();
            self.sender.request_cut();
        }
    }

    /// The standby has this epoch, which was cut at this time. Remembered where that matters after a restart.
    pub(super) fn note_point(&mut self, epoch: Epoch, cut_unix_ms: u64) {
        self.scheduling.dues.handle_committed(epoch);
        self.scheduling.point_unix_ms = Some(cut_unix_ms);
        if self.setup.orders.settings.cuts == Cuts::Asked
            && let Err(error) = store_point(&*self.setup.catalogue, &self.setup.point_key, cut_unix_ms, Persist::Eventually)
        {
            // Safe: after a restart the next cut comes earlier.
            tracing::warn!(volume = %self.setup.volume, %error, "the catalogue cannot be written");
        }
    }
}
