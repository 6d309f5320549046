//! Syncs that a thread with nothing else to do carries out itself.
//!
//! io_uring has a thread of the kernel do a sync, and the two wake-ups that this takes cost more than what a quick disk needs. A slow one must
//! not hold up the thread: a sync that took long leaves the next ones to the ring.

use super::Image;
use std::io;
use std::time::{Duration, Instant};

/// Longest sync of a quick disk.
const QUICK: Duration = Duration::from_millis(1);
/// Syncs that are left to the ring after one that was not quick.
const LEFT_TO_THE_RING: u32 = 256;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct InlineSync {
    left_to_the_ring: u32,
}

impl InlineSync {
    /// Makes the image durable, and says what came of it; `None`: that is for the ring to do.
    pub fn sync(&mut self, image: &Image) -> Option<io::Result<()>> {
        self.attempt(|| image.sync_data())
    }

    fn attempt(&mut self, sync: impl FnOnce() -> io::Result<()>) -> Option<io::Result<()>> {
        if let Some(fewer) = self.left_to_the_ring.checked_sub(1) {
            self.left_to_the_ring = fewer;
            return None;
        }
        let began = Instant::now();
        let result = sync();
        if began.elapsed() > QUICK {
            self.left_to_the_ring = LEFT_TO_THE_RING;
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_slow_sync_the_next_ones_are_left_to_the_ring() {
        let mut inline = InlineSync::default();
        for _ in 0..1000 {
            assert!(inline.attempt(|| Ok(())).is_some());
            if inline.left_to_the_ring > 0 {
                break;
            }
        }
        // However slow the machine is, this is slower.
        inline.left_to_the_ring = 0;
        let slow = || {
            let began = Instant::now();
            while began.elapsed() <= QUICK {}
            Err(io::ErrorKind::Other.into())
        };
        assert!(inline.attempt(slow).is_some_and(|result| result.is_err()));
        for _ in 0..LEFT_TO_THE_RING {
            assert!(inline.attempt(|| panic!("it is the ring's")).is_none());
        }
        assert!(inline.attempt(|| Ok(())).is_some());
    }
}
