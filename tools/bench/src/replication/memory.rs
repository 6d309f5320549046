//! What both daemons hold of a large volume of which one block in a hundred is dirty.
//!
//! The standby's site is down while the blocks are written, then comes back and gets them: the peaks cover all of that. The volumes
//! lie in a file system of their own.

use super::{BLOCK_BYTES, MIB};
use crate::load::Load;
use crate::pair::{self, Pair};
use crate::record::{Benchmark, Figure, Record, Target};
use crate::scratch::Scratch;
use crate::site::{LONG_PATIENCE, Site};
use crate::workshop::Workshop;
use anyhow::{Result, ensure};

pub const BENCHMARK: Benchmark = Benchmark {
    name: "memory",
    about: "memory of both daemons: a 1 TiB sparse volume with 1 % random blocks dirty, until they are shipped",
    figures: &[
        Figure { what: "largest peak of a daemon", unit: "MiB", target: Some(Target { at_least: 300.0, aim: 100.0 }) },
        Figure { what: "primary, all dirty", unit: "MiB", target: None },
        Figure { what: "primary, peak until in sync again", unit: "MiB", target: None },
        Figure { what: "standby, peak until in sync again", unit: "MiB", target: None },
    ],
    run,
};

/// One block in so many.
const DIRTY_ONE_IN: u64 = 100;
/// For the written blocks three times (image, journal, the other image) and what file systems need.
const ROOM_TIMES: u64 = 3;
const ROOM_BESIDE: u64 = 4 << 30;

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let size_bytes: u64 = workshop.size(1 << 40, 8 << 30);
    let blocks = size_bytes / BLOCK_BYTES / DIRTY_ONE_IN;
    let room_bytes = blocks * BLOCK_BYTES * ROOM_TIMES + ROOM_BESIDE;
    for _ in 0..workshop.rounds() {
        let scratch = Scratch::mount(workshop.dir(), room_bytes)?;
        let pair = Pair::start([scratch.dir(); 2], None)?;
        pair.create(&["--size", &size_bytes.to_string()])?;
        pair.replicate("5s")?;
        let Pair { primary, standby, dirs } = pair;
        let place = standby.kill();
        // fio takes each block once.
        let writes = format!("--number_ios={blocks}");
        Load::start(&primary.nbd(), &["--bs=4k", "--iodepth=16", &writes], LONG_PATIENCE)?.finish()?;
        let dirty = primary.volume()?.dirty_blocks;
        ensure!(dirty == blocks, "{dirty} blocks are dirty, not {blocks}");
        let all_dirty = primary.memory()?;
        let pair = Pair { primary, standby: Site::start(pair::here(), place)?, dirs };
        pair.wait_in_sync()?;
        let (primary, standby) = (pair.primary.memory()?, pair.standby.memory()?);
        let mib = |bytes: u64| bytes as f64 / MIB;
        record.add([mib(primary.peak.max(standby.peak)), mib(all_dirty.resident), mib(primary.peak), mib(standby.peak)]);
    }
    Ok(())
}
