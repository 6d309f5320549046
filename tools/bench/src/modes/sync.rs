//! Writes in mode `sync`: one at a time against the round trip, and many at a time against the link.

use super::RAMP;
use crate::cpus::{self, Place};
use crate::load::Load;
use crate::pair::{self, Pair, WAN_BITS_PER_SECOND, WAN_ROUND_TRIP};
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::{Result, ensure};
use std::time::Duration;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "sync-writes",
    about: "4 KiB random writes in mode sync over 85 Mbit/s, 27 ms: against the round trip, and against the link",
    figures: &[
        Figure { what: "a write at depth 1, against the round trip", unit: "×", target: Some(Target { at_least: 1.15, aim: 1.03 }) },
        Figure { what: "link full of payload at depth 32", unit: "%", target: Some(Target { at_least: 70.0, aim: 95.0 }) },
        Figure { what: "of all that depth 32 can have under way", unit: "%", target: None },
        Figure { what: "link full of payload at depth 64", unit: "%", target: None },
        Figure { what: "median at depth 1", unit: "ms", target: None },
        Figure { what: "99th percentile at depth 1", unit: "ms", target: None },
    ],
    run,
};

const WRITE_BITS: f64 = 4096.0 * 8.0;

/// Writes of a load that ran for a while, one after the other or several at a time.
struct Writes {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let wan = pair::wan()?;
    let pair = Pair::start([workshop.dir(), workshop.standby_dir()], Some(&wan))?;
    pair.create(&["--size", "1G"])?;
    pair.replicate_in("sync")?;
    let link = |writes: &Writes| writes.per_second * WRITE_BITS / WAN_BITS_PER_SECOND as f64 * 100.0;
    // All of them wait for an answer that takes a round trip.
    let most = |depth: u32| f64::from(depth) / WAN_ROUND_TRIP.as_secs_f64();
    let seconds = workshop.size(8, 2);
    for _ in 0..workshop.rounds() {
        let [one, some, many] = [1, 32, 64].map(|depth| write(&pair, depth, seconds));
        let (one, some, many) = (one?, some?, many?);
        record.add([most(1) / one.per_second, link(&some), some.per_second / most(32) * 100.0, link(&many), one.p50_ms, one.p99_ms]);
    }
    Ok(())
}

fn write(pair: &Pair, depth: u32, seconds: u64) -> Result<Writes> {
    let options = [
        "--bs=4k",
        "--time_based",
        "--lat_percentiles=1",
        "--percentile_list=50:99",
        &format!("--iodepth={depth}"),
        &format!("--ramp_time={}", RAMP.as_secs()),
        &format!("--runtime={seconds}"),
    ];
    let load = cpus::at(Place::Here, || Load::start(&pair.primary.nbd(), &options, RAMP + Duration::from_secs(seconds)))?;
    let done = load.finish()?.write;
    let volume = pair.primary.volume()?;
    ensure!(volume.promise_held, "the promise was not held: {volume:?}");
    let percentile_ms = |percentile| done.percentile_us(percentile).unwrap_or(f64::NAN) / 1000.0;
    Ok(Writes { per_second: done.iops, p50_ms: percentile_ms(50.0), p99_ms: percentile_ms(99.0) })
}
