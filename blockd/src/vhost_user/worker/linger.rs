//! How long a worker looks for work before it sleeps.
//!
//! Where a processor has nothing else to do, a wait that something ends soon is cheaper without a sleep: no kick for the guest, no wake-up for
//! us. One that lasts costs nothing asleep. So the time follows what waits turn out to be: short ones set it, long ones take it back.

use std::time::Duration;

/// Less than this is not worth its while.
const LEAST: Duration = Duration::from_micros(4);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Linger {
    most: Duration,
    limit: Duration,
}

impl Linger {
    /// One that looks on for `most` at most; zero: never.
    pub(super) fn new(most: Duration) -> Self {
        Self { most, limit: Duration::ZERO }
    }

    /// How long to look on now; zero: not at all.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// There was nothing to do for so long, looking and sleeping.
    pub(super) fn waited(&mut self, elapsed: Duration) {
        let limit = if elapsed > self.most { self.limit / 4 } else { (elapsed * 2).max(LEAST).min(self.most) };
        self.limit = if limit < LEAST { Duration::ZERO } else { limit };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    #[test]
    fn short_waits_make_it_look_on_and_long_ones_end_that() {
        let mut linger = Linger::new(MOST);
        assert!(linger.limit().is_zero());
        linger.waited(Duration::from_micros(10));
        assert_eq!(linger.limit(), Duration::from_micros(20));
        linger.waited(MOST);
        assert_eq!(linger.limit(), MOST);
        linger.waited(Duration::from_millis(1));
        assert!(!linger.limit().is_zero(), "one is not yet a rule");
        linger.waited(Duration::from_millis(1));
        assert!(linger.limit().is_zero());
    }

    #[test]
    fn it_never_looks_on_unless_it_is_told_to() {
        let mut linger = Linger::new(Duration::ZERO);
        linger.waited(Duration::ZERO);
        assert!(linger.limit().is_zero());
    }
}
