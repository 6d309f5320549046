//! How many requests are acknowledged at once.
//!
//! Writes that wait for a long round trip and are acknowledged together come back together: their successors are one epoch again, and the link
//! is idle until that has arrived. Acknowledged a few at a time, they travel as several epochs from then on, one behind the other.

use super::Promise;

/// From this round trip on.
const LONG_ROUND_TRIP_MS: u64 = 5;
/// As many as make no difference.
const FEW: usize = 8;
/// All that can be acknowledged are within so many turns.
const TURNS: usize = 4;
/// Long enough for what the guest does next to be an epoch.
pub const TURN_US: u64 = 700;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread {
    turn_began_us: u64,
    left: usize,
}

impl Spread {
    /// How many may be acknowledged now, of `waiting` at most.
    pub fn allows(&mut self, in_force: Promise, round_trip_ms: u64, waiting: usize, now_us: u64) -> usize {
        if in_force < Promise::Sync || round_trip_ms < LONG_ROUND_TRIP_MS {
            return usize::MAX;
        }
        if now_us.saturating_sub(self.turn_began_us) >= TURN_US {
            *self = Self { turn_began_us: now_us, left: (waiting / TURNS).max(FEW) };
        }
        self.left
    }

    /// So many were.
    pub fn handle_acknowledged(&mut self, requests: usize) {
        self.left = self.left.saturating_sub(requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convoy_is_acknowledged_in_a_few_turns_and_a_few_requests_at_once() {
        let (mut spread, mut waiting, mut turns) = (Spread::default(), 100, Vec::new());
        for now_us in (1_000_000..).step_by(100).take_while(|now_us| *now_us < 1_010_000) {
            let now = spread.allows(Promise::Sync, 27, waiting, now_us).min(waiting);
            waiting -= now;
            spread.handle_acknowledged(now);
            turns.extend((now > 0).then_some((now_us - 1_000_000, now)));
        }
        assert_eq!(turns[..4], [(0, 25), (700, 18), (1400, 14), (2100, 10)]);
        assert_eq!(waiting, 0);
        assert_eq!(Spread::default().allows(Promise::Sync, 27, 3, 1_000_000), FEW);
    }

    #[test]
    fn a_short_round_trip_and_a_weaker_promise_know_no_turns() {
        assert_eq!(Spread::default().allows(Promise::Sync, 1, 1000, 5), usize::MAX);
        assert_eq!(Spread::default().allows(Promise::Barrier, 27, 1000, 5), usize::MAX);
    }
}
