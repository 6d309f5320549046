//! What the controller remembers: the highest rate of the last rounds, and the shortest round trip of the last seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Rounds that a rate is remembered for: more than one cycle, so that the rate of a probe lasts until the next one.
const RATE_ROUNDS: usize = 10;

/// A round trip is remembered for once or twice this time.
const ROUND_TRIP_SPAN: Duration = Duration::from_secs(10);

/// The highest of the last [`RATE_ROUNDS`] rates, in bytes a second.
#[derive(Clone, Debug, Default)]
pub(super) struct RateFilter {
    rates: VecDeque<f64>,
}

impl RateFilter {
    pub(super) fn add(&mut self, rate: f64) {
        if self.rates.len() == RATE_ROUNDS {
            self.rates.pop_front();
        }
        self.rates.push_back(rate);
    }

    /// Raises the latest rate, as a round does that was limited by the application: it shows what is possible at least.
    pub(super) fn raise(&mut self, rate: f64) {
        if rate > self.highest() {
            self.add(rate);
        }
    }

    pub(super) fn highest(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    pub(super) fn reset_to(&mut self, rate: f64) {
        self.rates.clear();
        self.rates.push_back(rate);
    }
}

/// The shortest round trip of the last ten to twenty seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct RoundTripFilter {
    previous: Option<Duration>,
    current: Option<(Instant, Duration)>,
}

impl RoundTripFilter {
    pub(super) fn add(&mut self, now: Instant, round_trip: Duration) {
        match &mut self.current {
            Some((since, shortest)) if now.saturating_duration_since(*since) < ROUND_TRIP_SPAN => *shortest = round_trip.min(*shortest),
            current => {
                self.previous = current.take().map(|(_, shortest)| shortest);
                *current = Some((now, round_trip));
            }
        }
    }

    pub(super) fn shortest(&self) -> Option<Duration> {
        let current = self.current.map(|(_, shortest)| shortest);
        self.previous.into_iter().chain(current).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_rate_is_forgotten_after_its_rounds() {
        let mut filter = RateFilter::default();
        filter.add(9.0);
        for _ in 1..RATE_ROUNDS {
            filter.add(1.0);
            assert_eq!(filter.highest(), 9.0);
        }
        filter.add(1.0);
        assert_eq!(filter.highest(), 1.0);
        filter.raise(0.5);
        filter.raise(3.0);
        assert_eq!(filter.highest(), 3.0);
    }

    #[test]
    fn the_shortest_round_trip_is_forgotten_after_its_span() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut filter = RoundTripFilter::default();
        assert_eq!(filter.shortest(), None);
        filter.add(start, ms(20));
        filter.add(start + ms(1), ms(30));
        filter.add(start + ROUND_TRIP_SPAN, ms(40));
        assert_eq!(filter.shortest(), Some(ms(20)));
        filter.add(start + 2 * ROUND_TRIP_SPAN, ms(50));
        assert_eq!(filter.shortest(), Some(ms(40)));
    }
}
