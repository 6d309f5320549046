//! What a client does, and what came of it.

use std::time::Duration;

/// Requests of one kind, so many at a time.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// What each does.
    pub op: Op,
    /// Where.
    pub order: Order,
    /// Bytes of a request.
    pub block_bytes: u64,
    /// Requests at a time.
    pub depth: usize,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Writes, then flushes: one request.
    WriteFlush,
}

/// Where requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Anywhere.
    Random,
    /// Each behind the one before.
    Sequential,
}

/// A client's turn with a server.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Requests a second.
    pub per_second: f64,
    /// CPU time of the server for each; nothing without a server.
    pub cpu_us: f64,
    /// How long they took.
    pub latency: Latency,
}

/// Percentiles of the time from a request to its answer.
#[derive(Debug, Clone, Copy)]
pub struct Latency {
    /// Half of the requests took no longer.
    pub p50_us: f64,
    /// 99 % of the requests took no longer.
    pub p99_us: f64,
    /// All but one in a thousand took no longer.
    pub p999_us: f64,
}

impl Workload {
    /// 4 KiB at random places, 32 at a time.
    pub const RANDOM_WRITE: Self = Self { op: Op::Write, order: Order::Random, block_bytes: 4 << 10, depth: 32 };
    /// The same, reading.
    pub const RANDOM_READ: Self = Self { op: Op::Read, ..Self::RANDOM_WRITE };
    /// 128 KiB one behind the other, 8 at a time.
    pub const SEQUENTIAL_WRITE: Self = Self { op: Op::Write, order: Order::Sequential, block_bytes: 128 << 10, depth: 8 };
    /// The same, reading.
    pub const SEQUENTIAL_READ: Self = Self { op: Op::Read, ..Self::SEQUENTIAL_WRITE };
    /// 4 KiB at random places, each with a flush, one at a time.
    pub const FLUSH: Self = Self { op: Op::WriteFlush, depth: 1, ..Self::RANDOM_WRITE };
    /// 4 KiB at random places, one at a time.
    pub const ONE_WRITE: Self = Self { depth: 1, ..Self::RANDOM_WRITE };
    /// The same, reading.
    pub const ONE_READ: Self = Self { depth: 1, ..Self::RANDOM_READ };
}

impl Turn {
    /// What a turn between these two would have been.
    pub fn mean(&self, other: &Self) -> Self {
        let mean = |of: fn(&Self) -> f64| (of(self) + of(other)) / 2.0;
        let latency = Latency {
            p50_us: mean(|turn| turn.latency.p50_us),
            p99_us: mean(|turn| turn.latency.p99_us),
            p999_us: mean(|turn| turn.latency.p999_us),
        };
        Self { per_second: mean(|turn| turn.per_second), cpu_us: mean(|turn| turn.cpu_us), latency }
    }
}

impl Latency {
    /// Of these requests, in any order; all zero if there were none.
    pub fn of(mut samples_ns: Vec<u32>) -> Self {
        samples_ns.sort_unstable();
        let at = |part: f64| {
            let index = (samples_ns.len() as f64 * part) as usize;
            samples_ns.get(index.min(samples_ns.len().saturating_sub(1))).map_or(0.0, |ns| f64::from(*ns) / 1000.0)
        };
        Self { p50_us: at(0.5), p99_us: at(0.99), p999_us: at(0.999) }
    }
}

/// Nanoseconds for a sample: more than four seconds are four seconds.
pub fn sample_ns(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_from_the_sorted_samples() {
        let Latency { p50_us, p99_us, p999_us } = Latency::of((0..1000).rev().map(|us| us * 1000).collect());
        assert_eq!((p50_us, p99_us, p999_us), (500.0, 990.0, 999.0));
        assert_eq!(Latency::of(Vec::new()).p99_us, 0.0);
        assert_eq!(Latency::of(vec![7000]).p999_us, 7.0);
    }
}
