//! How long a forced promotion takes after the primary's site was lost: while its guest went on writing as guests do, and right after a
//! burst, when the standby has everything in its journal and not yet in its image.

use super::{BLOCK_BYTES, MIB};
use crate::load::Load;
use crate::pair::Pair;
use crate::record::{Benchmark, Figure, Record, Target};
use crate::site::LONG_PATIENCE;
use crate::workshop::Workshop;
use anyhow::{Result, ensure};
use blockd_api::{Promotion, PromotionKind, Snapshot};
use std::thread::sleep;
use std::time::{Duration, Instant};

const TARGET: Option<Target> = Some(Target { at_least: 1.0, aim: 0.2 });

pub const BENCHMARK: Benchmark = Benchmark {
    name: "promote",
    about: "tern promote --force of a 100 GiB sparse volume with 2 GiB written, its primary killed",
    figures: &[
        Figure { what: "killed under a load of 4 MiB/s", unit: "s", target: TARGET },
        Figure { what: "killed right after a burst", unit: "s", target: TARGET },
        Figure { what: "journal at the end of the burst", unit: "MiB", target: None },
    ],
    run,
};

/// A journal with nothing left to fold is not quite empty.
const FOLDED_BYTES: u64 = 1 << 20;
/// Until the load has made some epochs.
const LOAD_FOR: Duration = Duration::from_secs(5);

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    // Scattered, and not so small that the disk is what is measured.
    let written_bytes: u64 = workshop.size(2 << 30, 64 << 20);
    let burst = ["--bs=64k", "--iodepth=16", &format!("--number_ios={}", written_bytes / (64 << 10))];
    let written = || -> Result<Pair> {
        let pair = Pair::start([workshop.dir(); 2], None)?;
        pair.create(&["--size", "100G"])?;
        pair.replicate("2s")?;
        Load::start(&pair.primary.nbd(), &burst, LONG_PATIENCE)?.finish()?;
        pair.primary.tern_within::<Snapshot>(LONG_PATIENCE, &["snapshot", "vm1"])?;
        let volume = pair.wait_in_sync()?;
        ensure!(volume.full_blocks * BLOCK_BYTES >= written_bytes, "only {} blocks were sent", volume.full_blocks);
        Ok(pair)
    };
    for _ in 0..workshop.rounds() {
        let pair = written()?;
        pair.standby.wait_until("folding", |site| Ok(site.status()?.journal.used_bytes < FOLDED_BYTES))?;
        let load = Load::start(&pair.primary.nbd(), &["--bs=4k", "--iodepth=16", "--rate=4m"], LONG_PATIENCE)?;
        sleep(LOAD_FOR);
        let under_load = lose(pair)?;
        drop(load);
        let pair = written()?;
        let journal_bytes = pair.standby.status()?.journal.used_bytes;
        record.add([under_load.as_secs_f64(), lose(pair)?.as_secs_f64(), journal_bytes as f64 / MIB]);
    }
    Ok(())
}

/// Kills the primary and promotes the standby; how long the command took.
fn lose(pair: Pair) -> Result<Duration> {
    let Pair { primary, standby, dirs: _dirs } = pair;
    primary.kill();
    let began = Instant::now();
    let promotion: Promotion = standby.tern_within(LONG_PATIENCE, &["promote", "vm1", "--force"])?;
    let took = began.elapsed();
    ensure!(promotion.kind == PromotionKind::Failover, "{:?} instead of a failover", promotion.kind);
    Ok(took)
}
