//! The oldest write that a disaster would have cost, at any moment of a load that fits the link.

use crate::cpus::{self, Place};
use crate::load::Load;
use crate::pair::{self, Pair};
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::{Context, Result, ensure};
use std::thread::sleep;
use std::time::Duration;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "rpo",
    about: "largest RPO seen under a steady write load that fits 85 Mbit/s, 27 ms, with --rpo 2s",
    figures: &[
        Figure { what: "largest RPO seen", unit: "s", target: Some(Target { at_least: 2.0, aim: 1.0 }) },
        Figure { what: "load", unit: "MiB/s", target: None },
    ],
    run,
};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// 40 % of the link.
const LOAD_MIB_PER_SECOND: u64 = 4;
/// A load that is slower than this part of what was asked for is another load.
const KEEPS_UP: f64 = 0.95;

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let seconds = workshop.size(30, 5);
    let (rate, runtime) = (format!("--rate={LOAD_MIB_PER_SECOND}m"), format!("--runtime={seconds}"));
    for _ in 0..workshop.rounds() {
        let wan = pair::wan()?;
        let pair = Pair::start([workshop.dir(); 2], Some(&wan))?;
        pair.create(&["--size", "1G"])?;
        pair.replicate("2s")?;
        let options = ["--bs=4k", "--iodepth=16", "--time_based", &rate, &runtime];
        let nbd = pair.primary.nbd();
        let mut load = cpus::at(Place::Here, || Load::start(&nbd, &options, Duration::from_secs(seconds)))?;
        let mut largest: f64 = 0.0;
        while load.is_running()? {
            let seen = pair.primary.volume()?.rpo_seconds;
            largest = largest.max(seen.context("the primary does not know its RPO")?);
            sleep(LOOK_EVERY);
        }
        let speed = load.finish()?.write.mib_per_second();
        ensure!(speed >= LOAD_MIB_PER_SECOND as f64 * KEEPS_UP, "the load reached only {speed:.1} MiB/s");
        record.add([largest, speed]);
    }
    Ok(())
}
