//! Bytes on a thin link: what is sent for what changed, beside what public tools would send.

mod database;
mod first_sync;
mod peers;
mod pgbench;
mod zstd;

use crate::record::Benchmark;

/// What the command line calls all of them.
pub const GROUP: &str = "wan";

/// In the order in which they run.
pub const BENCHMARKS: &[Benchmark] = &[first_sync::BENCHMARK, peers::BENCHMARK, pgbench::BENCHMARK];
