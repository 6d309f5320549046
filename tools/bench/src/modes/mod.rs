//! Modes that promise more than `async`: what a write and a flush cost when the standby has to have them.

mod barrier;
mod promote_at;
mod sync;

use crate::record::Benchmark;
use crate::replication::busy_link;

/// What the command line calls all of them.
pub const GROUP: &str = "modes";

/// In the order in which they run.
pub const BENCHMARKS: &[Benchmark] = &[sync::BENCHMARK, barrier::BENCHMARK, busy_link::BARRIER, promote_at::BENCHMARK];

/// Until the mode's promise is held and the queues are full.
const RAMP: std::time::Duration = std::time::Duration::from_secs(2);
