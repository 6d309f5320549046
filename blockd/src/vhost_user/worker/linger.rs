//! How long a worker looks for work before it sleeps.
//!
//! A sleep that something ends soon costs more than looking on: a wake-up for us, a kick for the guest. A sleep that lasts costs nothing. So
//! the time follows what sleeps turn out to be: short ones lengthen it, long ones end it.

use std::time::Duration;

/// Longest that is looked on. More would take from the guest what it gains.
const MAX: Duration = Duration::from_micros(16);
/// What it begins with when it is worth its while.
const FIRST: Duration = Duration::from_micros(4);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Linger {
    limit: Duration,
}

impl Linger {
    /// How long to look on now; zero: not at all.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// The worker has slept for so long.
    pub(super) fn slept(&mut self, elapsed: Duration) {
        self.limit = match self.limit {
            _ if elapsed > MAX => Duration::ZERO,
            Duration::ZERO => FIRST,
            limit => (limit * 2).min(MAX),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sleeps_make_it_look_on_and_a_long_one_ends_that() {
        let mut linger = Linger::default();
        assert!(linger.limit().is_zero());
        for _ in 0..10 {
            linger.slept(FIRST);
        }
        assert_eq!(linger.limit(), MAX);
        linger.slept(Duration::from_millis(1));
        assert!(linger.limit().is_zero());
    }
}
