//! How long it takes to go back to a recovery point of long ago: a client waits at the standby, and reads what is undo there.

use crate::load::{Disk, Load};
use crate::pair::Pair;
use crate::record::{Benchmark, Figure, Record, Target};
use crate::site::LONG_PATIENCE;
use crate::workshop::Workshop;
use anyhow::{Context, Result, ensure};
use blockd_api::{FrontEnd, PointList, Promotion, Snapshot};
use std::time::Instant;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "promote-at",
    about: "tern promote --at a point 10,000 epochs back, 2 GiB of undo, its primary killed: until a client has read",
    figures: &[
        Figure { what: "until the first read", unit: "s", target: Some(Target { at_least: 2.0, aim: 0.3 }) },
        Figure { what: "until the image is led back", unit: "s", target: None },
        Figure { what: "undo", unit: "GiB", target: None },
        Figure { what: "epochs back", unit: "", target: None },
    ],
    run,
};

const GIB: f64 = (1_u64 << 30) as f64;
/// What an epoch overwrites.
const EPOCH_BYTES: u64 = 208 << 10;

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let epochs = workshop.size(10_000, 50);
    let size_bytes = epochs * EPOCH_BYTES;
    for _ in 0..workshop.rounds() {
        let pair = Pair::start([workshop.dir(), workshop.standby_dir()], None)?;
        pair.create(&["--size", &size_bytes.next_multiple_of(1 << 20).to_string()])?;
        let write = |options: &[&str]| -> Result<()> {
            let size = format!("--size={size_bytes}");
            let all = [&["--rw=write", "--refill_buffers", &size], options].concat();
            Load::run(&[Disk::volume("vm1", &pair.primary.nbd())], &all, LONG_PATIENCE)?.finish()?;
            Ok(())
        };
        write(&["--bs=1m", "--iodepth=8"])?;
        pair.replicate_in("barrier")?;
        let point = pair.primary.tern_within::<Snapshot>(LONG_PATIENCE, &["snapshot", "vm1"])?.epoch;
        write(&[&format!("--bs={EPOCH_BYTES}"), "--iodepth=1", "--fsync=1"])?;
        let newest = pair.primary.tern_within::<Snapshot>(LONG_PATIENCE, &["snapshot", "vm1"])?.epoch;
        ensure!(newest - point >= epochs, "only {} epochs were made", newest - point);
        record.add(go_back(pair, point, newest, size_bytes)?);
    }
    Ok(())
}

fn go_back(pair: Pair, point: u64, newest: u64, size_bytes: u64) -> Result<[f64; 4]> {
    let Pair { primary, standby, dirs: _dirs } = pair;
    let nbd = format!("unix:{}", standby.nbd().display());
    standby.tern::<serde_json::Value>(&["volume", "export", "vm1", "--nbd", &nbd])?;
    let listed: PointList = standby.tern_within(LONG_PATIENCE, &["points", "vm1"])?;
    // Points that crowd are one, the earlier.
    let at = listed.points.iter().rfind(|kept| kept.epoch <= point).context("the point is not kept")?.epoch;
    let undo_bytes = standby.volume()?.undo_bytes;
    let options = ["--rw=randread", "--bs=4k", "--number_ios=1", &format!("--size={size_bytes}")];
    let read = Load::run(&[Disk::volume("vm1", &standby.nbd())], &options, LONG_PATIENCE)?;
    standby.wait_until("a client at the standby", |site| Ok(site.volume()?.attached.contains(&FrontEnd::Nbd)))?;
    primary.kill();
    let began = Instant::now();
    standby.tern_within::<Promotion>(LONG_PATIENCE, &["promote", "vm1", "--at", &at.to_string(), "--force"])?;
    read.finish()?;
    let first_read = began.elapsed();
    standby.wait_until("led back", |site| Ok(site.volume()?.going_back.is_none()))?;
    Ok([first_read.as_secs_f64(), began.elapsed().as_secs_f64(), undo_bytes as f64 / GIB, (newest - at) as f64])
}
