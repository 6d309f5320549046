//! The next cut, whatever becomes of the clock on the wall.

use super::Schedule;

/// What time it is.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// By the clock that never steps, from any instant on.
    pub now_ms: u64,
    /// By the clock on the wall, since 1970.
    pub unix_ms: u64,
}

/// See the module's documentation.
///
/// A clock that is set forwards over an instant makes it due at once. One that is set back has the same instants come again: they are left
/// out, but once half as much time again has passed as lies between two cuts, the next is due all the same. So a cut a night is made once, and
/// one every few minutes goes on.
#[derive(Clone, Debug)]
pub struct Timetable {
    schedule: Schedule,
    /// The next instant: by the wall for cron syntax, else by the clock that never steps. `None`: at once.
    due_ms: Option<u64>,
    /// The same by the wall, as it was when that became the next one.
    due_unix_ms: u64,
    /// When that became the next one, by the clock that never steps.
    since_ms: u64,
    /// What lies between two cuts: the longer one of the time until the next and the time after it.
    gap_ms: u64,
}

impl Timetable {
    /// Goes on from the last cut; without one the first is due at once.
    pub fn new(schedule: Schedule, last_unix_ms: Option<u64>, clock: Clock) -> Self {
        let mut timetable = Self { schedule, due_ms: None, due_unix_ms: clock.unix_ms, since_ms: clock.now_ms, gap_ms: 0 };
        if let Some(last) = last_unix_ms {
            // A last cut in the future says that the clock was set back.
            timetable.arm(timetable.after(last.min(clock.unix_ms)), clock);
        }
        timetable
    }

    /// Whether a cut is due now. It counts as made from then on.
    pub fn take_due(&mut self, clock: Clock) -> bool {
        let now_ms = if self.is_cron() { clock.unix_ms } else { clock.now_ms };
        let is_due = self.due_ms.is_none_or(|due| due <= now_ms);
        let passed_ms = clock.now_ms.saturating_sub(self.since_ms);
        let is_late = self.is_cron() && passed_ms > self.gap_ms.saturating_add(self.gap_ms / 2);
        if !is_due && !is_late {
            return false;
        }
        let next = self.after(clock.unix_ms);
        let second = self.after(next);
        // An instant that follows at once upon a cut that was late is that one.
        let is_this_one = !is_due && next - clock.unix_ms < (second - next) / 2;
        if is_this_one {
            self.arm(second, clock);
            self.gap_ms = second - next;
        } else {
            self.arm(next, clock);
        }
        true
    }

    /// When the next cut is due, by the clock on the wall.
    pub fn next_unix_ms(&self) -> u64 {
        self.due_unix_ms
    }

    fn is_cron(&self) -> bool {
        matches!(self.schedule, Schedule::Cron(_))
    }

    /// A pattern that matched once matches again before the end of time.
    fn after(&self, unix_ms: u64) -> u64 {
        self.schedule.after(unix_ms).unwrap_or(u64::MAX)
    }

    fn arm(&mut self, due_unix_ms: u64, clock: Clock) {
        let left_ms = due_unix_ms.saturating_sub(clock.unix_ms);
        (self.since_ms, self.due_unix_ms) = (clock.now_ms, due_unix_ms);
        self.gap_ms = left_ms.max(self.after(due_unix_ms) - due_unix_ms);
        self.due_ms = Some(if self.is_cron() { due_unix_ms } else { clock.now_ms.saturating_add(left_ms) });
    }
}
