//! Keeps a client that misbehaves in a loop from filling the log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lines that may be written in each [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Counts lines.
#[derive(Debug, Default)]
pub(super) struct LogLimit(Mutex<Option<Count>>);

#[derive(Debug)]
struct Count {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Whether a line may be written at `now`, and how many were not written before it.
    pub(super) fn admit(&self, now: Instant) -> Option<u64> {
        let mut count = self.0.lock().expect("no panic under this lock");
        let count = count.get_or_insert(Count { since: now, lines: 0, suppressed: 0 });
        if now.duration_since(count.since) >= WINDOW {
            count.since = now;
            count.lines = 0;
        }
        if count.lines == LINES {
            count.suppressed += 1;
            return None;
        }
        count.lines += 1;
        Some(std::mem::take(&mut count.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_limited_and_those_left_out_are_counted() {
        let limit = LogLimit::default();
        let start = Instant::now();
        assert!((0..LINES).all(|_| limit.admit(start) == Some(0)));
        assert!((0..5).all(|_| limit.admit(start + WINDOW / 2).is_none()));
        assert_eq!(limit.admit(start + WINDOW), Some(5));
        assert_eq!(limit.admit(start + WINDOW), Some(0));
    }
}
