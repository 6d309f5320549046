//! Replication in mode `async`: what it reaches, and what it costs.

pub mod busy_link;
mod local_sync;
mod memory;
mod promote;
mod rpo;
mod wan_sync;

use crate::record::Benchmark;
use wanem::Report;

/// What the command line calls all of them.
pub const GROUP: &str = "replication";

/// In the order in which they run.
pub const BENCHMARKS: &[Benchmark] =
    &[wan_sync::BENCHMARK, local_sync::BENCHMARK, busy_link::BENCHMARK, memory::BENCHMARK, rpo::BENCHMARK, promote::BENCHMARK];

const MIB: f64 = (1 << 20) as f64;
const BLOCK_BYTES: u64 = 4096;

/// The link from the primary to the standby between two looks at the emulator's counters.
struct LinkUse {
    capacity_bytes: f64,
    delivered_bytes: f64,
    busy: f64,
}

impl LinkUse {
    /// Between two reports under the same rate; without a limit nothing is a share of it.
    fn between(before: &Report, after: &Report) -> Self {
        let seconds = (after.uptime_ns - before.uptime_ns) as f64 / 1e9;
        let rate = after.rate_bits_per_second.map_or(f64::INFINITY, |bits| bits as f64);
        let (from, to) = (&before.a_to_b.counters, &after.a_to_b.counters);
        Self {
            capacity_bytes: rate / 8.0 * seconds,
            delivered_bytes: (to.delivered.bytes - from.delivered.bytes) as f64,
            busy: (to.busy_ns - from.busy_ns) as f64 / 1e9 / seconds,
        }
    }

    fn percent(&self, bytes: f64) -> f64 {
        bytes / self.capacity_bytes * 100.0
    }
}
