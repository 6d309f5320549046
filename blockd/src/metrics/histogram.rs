//! A histogram of durations that many threads feed without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the buckets in nanoseconds: 10 µs for a cached read to a minute for a commit over a bad link.
const BOUNDS_NANOS: [u64; 21] = [
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One more than bounds: the last is for all that is longer.
    buckets: [AtomicU64; BOUNDS_NANOS.len() + 1],
    /// Overflows after 584 years of requests.
    sum_nanos: AtomicU64,
}

/// What a histogram holds. Sum and buckets may differ by the requests that completed while it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// All durations together.
    pub sum_seconds: f64,
    /// How many there were.
    pub count: u64,
    /// Upper bound in seconds and number of durations in each bucket, not cumulative.
    pub buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// Records one duration.
    pub fn observe(&self, elapsed: Duration) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NANOS.partition_point(|bound| *bound < nanos);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(nanos, Relaxed);
    }

    /// What it holds now.
    pub fn snapshot(&self) -> Snapshot {
        let bounds = BOUNDS_NANOS.iter().map(|nanos| *nanos as f64 / 1e9).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(&self.buckets).map(|(bound, count)| (bound, count.load(Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        Snapshot { sum_seconds: self.sum_nanos.load(Relaxed) as f64 / 1e9, count, buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::default();
        for micros in [0, 10, 11, 1_000_000, 61_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let snapshot = histogram.snapshot();
        let filled: Vec<_> = snapshot.buckets.iter().filter(|(_, count)| *count > 0).copied().collect();
        assert_eq!(filled, [(1e-5, 2), (2e-5, 1), (1.0, 1), (f64::INFINITY, 1)]);
        assert_eq!(snapshot.count, 5);
        assert!((snapshot.sum_seconds - 62.000_021).abs() < 1e-9, "{}", snapshot.sum_seconds);
    }

    #[test]
    fn threads_lose_nothing() {
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| histogram.observe(Duration::from_micros(3))));
            }
        });
        assert_eq!(histogram.snapshot().count, 4000);
    }
}
