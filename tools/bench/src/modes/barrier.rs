//! What a program gets that makes each of its steps durable, in modes `barrier` and `sync`: alone, and with others.
//!
//! A step is what a database does for a transaction: some writes, and a flush. With others beside it, flushes share a commit.

use super::RAMP;
use crate::cpus::{self, Place};
use crate::load::{Disk, Load};
use crate::pair::{self, Pair};
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::Result;
use std::time::Duration;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "barrier-flushes",
    about: "steps of four 4 KiB writes and a flush over 85 Mbit/s, 27 ms: mode barrier against mode sync",
    figures: &[
        Figure { what: "steps of one program, against sync", unit: "×", target: Some(Target { at_least: 1.0, aim: 2.0 }) },
        Figure { what: "steps of 16 programs, against sync", unit: "×", target: Some(Target { at_least: 1.0, aim: 2.0 }) },
        Figure { what: "steps of 16 programs, against one", unit: "×", target: Some(Target { at_least: 5.0, aim: 15.0 }) },
        Figure { what: "steps of one program", unit: "/s", target: None },
    ],
    run,
};

const WRITES_A_STEP: f64 = 4.0;

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let wan = pair::wan()?;
    let pair = Pair::start([workshop.dir(), workshop.standby_dir()], Some(&wan))?;
    pair.create(&["--size", "1G"])?;
    let seconds = workshop.size(6, 2);
    for _ in 0..workshop.rounds() {
        let steps = |mode| -> Result<[f64; 2]> {
            pair.replicate_in(mode)?;
            Ok([step(&pair, 1, seconds)?, step(&pair, 16, seconds)?])
        };
        let (sync, barrier) = (steps("sync")?, steps("barrier")?);
        record.add([barrier[0] / sync[0], barrier[1] / sync[1], barrier[1] / barrier[0], barrier[0]]);
    }
    Ok(())
}

/// Steps a second of so many programs together.
fn step(pair: &Pair, programs: usize, seconds: u64) -> Result<f64> {
    let options = [
        "--rw=randwrite",
        "--refill_buffers",
        "--randrepeat=0",
        "--bs=4k",
        "--time_based",
        "--iodepth=1",
        &format!("--fsync={WRITES_A_STEP}"),
        &format!("--ramp_time={}", RAMP.as_secs()),
        &format!("--runtime={seconds}"),
    ];
    let disks: Vec<_> = (0..programs).map(|_| Disk::volume("vm1", &pair.primary.nbd())).collect();
    let load = cpus::at(Place::Here, || Load::run(&disks, &options, RAMP + Duration::from_secs(seconds)))?;
    Ok(load.finish()?.write.iops / WRITES_A_STEP)
}
