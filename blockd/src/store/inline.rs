//! Which requests a thread carries out itself, in place of its ring.
//!
//! io_uring has threads of the kernel do a sync and end a write, and each wake-up costs more than what a quick disk needs. So a thread that is
//! asked for one thing at a time does it itself, while the disk is quick. It looks at nothing else meanwhile: as soon as requests come together,
//! or one took long, they are the ring's.

use std::time::{Duration, Instant};

/// Longest answer of a quick disk.
const QUICK: Duration = Duration::from_millis(1);
/// Requests in a row that nothing else was beside of, before one is carried out.
const ALONE: u32 = 8;
/// Requests that are left to the ring after one that was not quick.
const LEFT_TO_THE_RING: u32 = 256;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Inline {
    alone: u32,
    left_to_the_ring: u32,
}

impl Inline {
    /// Whether the thread should carry out the request that begins now. `alone`: nothing else is under way or waits.
    pub fn begin(&mut self, alone: bool) -> bool {
        self.alone = if alone { self.alone.saturating_add(1) } else { 0 };
        if let Some(fewer) = self.left_to_the_ring.checked_sub(1) {
            self.left_to_the_ring = fewer;
            return false;
        }
        self.alone > ALONE
    }

    /// Carries it out.
    pub fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        if began.elapsed() > QUICK {
            self.left_to_the_ring = LEFT_TO_THE_RING;
        }
        done
    }

    /// Another request has had to wait for it.
    pub fn held_up(&mut self) {
        self.alone = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Inline {
        let mut inline = Inline::default();
        for _ in 0..ALONE {
            assert!(!inline.begin(true));
        }
        inline
    }

    #[test]
    fn requests_that_come_one_at_a_time_are_carried_out_until_two_meet() {
        let mut inline = ready();
        assert!(inline.begin(true) && inline.begin(true));
        assert!(!inline.begin(false) && !inline.begin(true));
        let mut inline = ready();
        assert!(inline.begin(true));
        inline.held_up();
        assert!(!inline.begin(true));
    }

    #[test]
    fn after_a_slow_one_the_next_are_left_to_the_ring() {
        let mut inline = ready();
        let slow = || {
            let began = Instant::now();
            while began.elapsed() <= QUICK {}
            "done"
        };
        assert_eq!(inline.run(slow), "done");
        for _ in 0..LEFT_TO_THE_RING {
            assert!(!inline.begin(true));
        }
        assert!(inline.begin(true));
    }
}
