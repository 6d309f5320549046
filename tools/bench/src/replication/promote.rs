//! How long a forced promotion takes after the primary's site was lost.

use super::BLOCK_BYTES;
use crate::load::Load;
use crate::pair::Pair;
use crate::record::{Benchmark, Figure, Record, Target};
use crate::site::LONG_PATIENCE;
use crate::workshop::Workshop;
use anyhow::{Result, ensure};
use blockd_api::{Promotion, PromotionKind};
use std::time::Instant;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "promote",
    about: "tern promote --force of a 100 GiB sparse volume with 2 GiB written, its primary killed",
    figures: &[
        Figure { what: "the command", unit: "s", target: Some(Target { at_least: 1.0, aim: 0.2 }) },
        Figure { what: "of it the daemon", unit: "s", target: None },
    ],
    run,
};

/// Scattered, and not so small that the disk is what is measured.
const WRITE_BYTES: u64 = 64 << 10;

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let written_bytes: u64 = workshop.size(2 << 30, 64 << 20);
    let writes = format!("--number_ios={}", written_bytes / WRITE_BYTES);
    let options = ["--bs=64k", "--iodepth=16", &writes];
    for _ in 0..workshop.rounds() {
        let pair = Pair::on_loopback(workshop.dir())?;
        pair.create(&["--size", "100G"])?;
        pair.replicate("2s")?;
        Load::start(&pair.primary.nbd(), &options, LONG_PATIENCE)?.finish()?;
        let volume = pair.wait_in_sync()?;
        ensure!(volume.full_blocks * BLOCK_BYTES >= written_bytes, "{} blocks were sent", volume.full_blocks);
        // At once: what was committed last is not folded yet.
        let Pair { primary, standby, dirs: _dirs } = pair;
        primary.kill();
        let began = Instant::now();
        let promotion: Promotion = standby.tern_within(LONG_PATIENCE, &["promote", "vm1", "--force"])?;
        let took = began.elapsed();
        ensure!(promotion.kind == PromotionKind::Failover, "{:?} instead of a failover", promotion.kind);
        record.add([took.as_secs_f64(), promotion.seconds]);
    }
    Ok(())
}
