//! What replication over a link that is full costs a guest that does not flush: 4 KiB random writes with it and without, in turns.
//!
//! ```text
//!   plain ─► replicated ─► plain ─► replicated ─► plain …      each replicated turn against the mean of its neighbours
//! ```
//!
//! What would be elsewhere takes nothing from the primary: the WAN and the standby have a CPU of their own, and the standby another disk.
//! A replicated turn begins in sync. The load is many times what the link carries, so the link is full from the ramp on, which the
//! emulator's counters have to show.

use super::LinkUse;
use crate::cpus::{self, Place};
use crate::load::Load;
use crate::pair::{self, Pair};
use crate::record::{Benchmark, Figure, Record, Target};
use crate::site::LONG_PATIENCE;
use crate::workshop::Workshop;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::thread::sleep;
use std::time::Duration;
use wanem::{Command, Emulator, Rate, Report};

pub const BENCHMARK: Benchmark = Benchmark {
    name: "busy-link",
    about: "4 KiB random writes with async over a busy 85 Mbit/s link, against no replication",
    figures: &figures(Target { at_least: 0.9, aim: 0.97 }),
    run: |workshop, record| run(workshop, record, "async"),
};

pub const BARRIER: Benchmark = Benchmark {
    name: "barrier-writes",
    about: "4 KiB random writes without a flush, with barrier over a busy 85 Mbit/s link, against no replication",
    figures: &figures(Target { at_least: 0.95, aim: 1.0 }),
    run: |workshop, record| run(workshop, record, "barrier"),
};

const fn figures(target: Target) -> [Figure; 3] {
    [
        Figure { what: "writes, against no replication", unit: "×", target: Some(target) },
        Figure { what: "writes with it", unit: "/s", target: None },
        Figure { what: "link in use meanwhile", unit: "%", target: None },
    ]
}

/// Until the queues are full and the link is.
const RAMP: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A link that is less in use than this was not busy.
const BUSY_PERCENT: f64 = 90.0;

struct Turns {
    wan: Emulator,
    pair: Pair,
    rate: Rate,
    mode: &'static str,
    seconds: u64,
}

fn run(workshop: &Workshop, record: &mut Record, mode: &'static str) -> Result<()> {
    let image = workshop.random_image("random", workshop.size(1024, 256) << 20)?;
    let wan = pair::wan()?;
    let pair = Pair::start([workshop.dir(), workshop.standby_dir()], Some(&wan))?;
    pair.import(&image)?;
    let mut turns = Turns { wan, pair, rate: "85Mbit".parse()?, mode, seconds: workshop.size(10, 2) };
    let mut before = turns.plain()?;
    for _ in 0..workshop.rounds() {
        let (replicated, busy_percent) = turns.replicated()?;
        let after = turns.plain()?;
        record.add([replicated / ((before + after) / 2.0), replicated, busy_percent]);
        before = after;
    }
    Ok(())
}

impl Turns {
    fn load(&self) -> Result<Load> {
        let (ramp, runtime) = (format!("--ramp_time={}", RAMP.as_secs()), format!("--runtime={}", self.seconds));
        let options = ["--bs=4k", "--iodepth=16", "--time_based", &ramp, &runtime];
        let expected = RAMP + Duration::from_secs(self.seconds);
        cpus::at(Place::Here, || Load::start(&self.pair.primary.nbd(), &options, expected))
    }

    /// Writes a second without replication.
    fn plain(&self) -> Result<f64> {
        Ok(self.load()?.finish()?.write.iops)
    }

    /// Writes a second with replication, and how busy the link was meanwhile.
    fn replicated(&mut self) -> Result<(f64, f64)> {
        self.wan.send(Command::SetRate(Rate::Unlimited))?;
        self.pair.replicate_with(&["--rpo", "2s", "--mode", self.mode])?;
        self.wan.send(Command::SetRate(self.rate))?;
        let mut load = self.load()?;
        let busy_percent = self.watch(&mut load)?;
        let written = load.finish()?.write;
        ensure!(busy_percent >= BUSY_PERCENT, "the link was in use for only {busy_percent:.0} % of the time: not busy");
        self.pair.primary.tern_within::<Value>(LONG_PATIENCE, &["replicate", "vm1", "--stop"])?;
        self.pair.standby.tern_within::<Value>(LONG_PATIENCE, &["volume", "delete", "vm1", "--yes"])?;
        Ok((written.iops, busy_percent))
    }

    /// How busy the link is from the ramp to the last look before the end.
    fn watch(&mut self, load: &mut Load) -> Result<f64> {
        let mut seen: Option<(Report, Report)> = None;
        loop {
            sleep(LOOK_EVERY);
            let report = self.wan.stats()?;
            if !load.is_running()? {
                break;
            }
            if load.age() >= RAMP {
                seen = Some((seen.map_or_else(|| report.clone(), |(first, _)| first), report));
            }
        }
        let (first, last) = seen.context("the load ended within its ramp")?;
        Ok(LinkUse::between(&first, &last).busy * 100.0)
    }
}
