//! Keeps strangers from filling the disk with log lines: a burst is logged, then one line now and then that says how many were left out.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lines that may be logged at once.
const BURST: u32 = 10;

/// A line is earned in this time.
const INTERVAL: Duration = Duration::from_secs(10);

/// A limit shared by every place that logs the same kind of event.
#[derive(Debug)]
pub(crate) struct LogLimit {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    lines_left: u32,
    refilled_at: Option<Instant>,
    left_out: u64,
}

impl LogLimit {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State { lines_left: BURST, refilled_at: None, left_out: 0 }) }
    }

    /// `Some(number of events left out since the last line)` if this event may be logged.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.admit(now)
    }
}

impl State {
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let since = self.refilled_at.get_or_insert(now);
        let earned = now.saturating_duration_since(*since).as_nanos() / INTERVAL.as_nanos();
        if earned > 0 {
            self.lines_left = BURST.min(self.lines_left.saturating_add(u32::try_from(earned).unwrap_or(BURST)));
            *since = now;
        }
        if self.lines_left == 0 {
            self.left_out += 1;
            return None;
        }
        self.lines_left -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_logged_and_the_rest_is_counted() {
        let limit = LogLimit::new();
        let start = Instant::now();
        let logged = (0..1000).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(logged, BURST as usize);
        assert_eq!(limit.admit(start + INTERVAL), Some(1000 - u64::from(BURST)));
        assert_eq!(limit.admit(start + INTERVAL), None);
    }
}
