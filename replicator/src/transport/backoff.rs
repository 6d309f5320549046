//! How long to wait before the next attempt to reach a peer.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;

/// Grows from attempt to attempt up to a cap, with jitter, so that two sites that lost each other do not dial in step for ever.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    random: StdRng,
}

impl Backoff {
    /// The first wait, before jitter.
    pub(crate) const FIRST: Duration = Duration::from_millis(250);
    /// The longest wait, before jitter.
    pub(crate) const LONGEST: Duration = Duration::from_secs(5);

    pub(crate) fn new(seed: u64) -> Self {
        Self { failures: 0, random: StdRng::seed_from_u64(seed) }
    }

    /// An attempt failed: how long to wait, between half and all of the doubled time.
    pub(crate) fn next_wait(&mut self) -> Duration {
        let doubled = Self::FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(Self::LONGEST).mul_f64(self.random.random_range(0.5..=1.0))
    }

    /// A link was up: begin anew.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_begin_anew() {
        let mut backoff = Backoff::new(7);
        let waits: Vec<_> = (0..40).map(|_| backoff.next_wait()).collect();
        assert!(waits[0] <= Backoff::FIRST && waits[0] >= Backoff::FIRST / 2);
        assert!(waits.iter().all(|wait| *wait <= Backoff::LONGEST));
        assert!(waits[10..].iter().all(|wait| *wait >= Backoff::LONGEST / 2));
        backoff.reset();
        assert!(backoff.next_wait() <= Backoff::FIRST);
    }

    #[test]
    fn a_seed_gives_the_same_waits() {
        let (mut one, mut two) = (Backoff::new(1), Backoff::new(1));
        assert!((0..10).all(|_| one.next_wait() == two.next_wait()));
    }
}
