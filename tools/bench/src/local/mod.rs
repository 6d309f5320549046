//! The disk path: a daemon, its client and the disk, without another site.

mod compare;
mod contest;
mod fio;
mod guest;
mod idle_memory;
mod idle_replication;
mod nbd;
mod queues;
mod server;
mod span;
mod sys;
mod vhost;
mod volumes;
mod workload;

use crate::record::{Benchmark, Target};
use crate::workshop::Workshop;
use std::time::Duration;

/// What the command line calls all of them.
pub const GROUP: &str = "local";

/// In the order in which they run.
pub const BENCHMARKS: &[Benchmark] = &[
    vhost::RANDOM_WRITE,
    vhost::RANDOM_READ,
    vhost::SEQUENTIAL_WRITE,
    vhost::SEQUENTIAL_READ,
    vhost::FLUSH,
    vhost::WRITE_LATENCY,
    vhost::READ_LATENCY,
    nbd::RANDOM_WRITE,
    nbd::RANDOM_READ,
    nbd::SEQUENTIAL_WRITE,
    nbd::SEQUENTIAL_READ,
    nbd::FLUSH,
    nbd::WRITE_LATENCY,
    nbd::READ_LATENCY,
    queues::BENCHMARK,
    volumes::BENCHMARK,
    span::BENCHMARK,
    idle_replication::BENCHMARK,
    idle_memory::BENCHMARK,
];

const SPEED_TARGET: Target = Target { at_least: 1.1, aim: 1.5 };
const NBD_SPEED_TARGET: Target = Target { at_least: 1.1, aim: 2.0 };
/// CPU time of the server for a 4 KiB request.
const CPU_TARGET: Option<Target> = Some(Target { at_least: 0.8, aim: 0.5 });
const LATENCY_TARGET: Target = Target { at_least: 1.0, aim: 0.7 };

/// How long a turn is.
fn turn(workshop: &Workshop) -> Duration {
    Duration::from_millis(workshop.size(2500, 300))
}
