//! Writes scattered over 100 GiB, where each of the first is outside of the activity log, against the same over 2 GiB.
//!
//! The volume has a standby whose site is down: no region leaves the log, and nothing is sent meanwhile. Volumes are sparse and fresh in each
//! turn, so that the file system has as many blocks to find in both; what it makes of that by itself is measured beside.

use super::compare::{Side, compare};
use super::contest;
use super::guest::Guest;
use super::turn;
use super::workload::Workload;
use crate::load::Disk;
use crate::pair::{self, Pair};
use crate::record::{Benchmark, Figure, Record, Target};
use crate::site::Site;
use crate::workshop::Workshop;
use anyhow::Result;
use serde_json::Value;
use std::fs::{self, File};

pub const BENCHMARK: Benchmark = Benchmark {
    name: "span",
    about: "vhost-user: 4 KiB random writes at depth 32 over 100 GiB, against the same over 2 GiB, with replication",
    figures: &[
        Figure { what: "over 100 GiB, against 2 GiB", unit: "×", target: Some(Target { at_least: 0.6, aim: 0.9 }) },
        Figure { what: "the same, raw fio", unit: "×", target: None },
        Figure { what: "over 100 GiB", unit: "/s", target: None },
        Figure { what: "over 2 GiB", unit: "/s", target: None },
    ],
    run,
};

const WIDE_BYTES: u64 = 100 << 30;
const NARROW_BYTES: u64 = 2 << 30;
const WORKLOAD: Workload = Workload::RANDOM_WRITE;

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let mut pair = Some(Pair::start([workshop.dir(); 2], None)?);
    let ours = compare(workshop.rounds(), |side| {
        let (per_second, after) = replicated(workshop, pair.take().expect("each turn gives it back"), size(side))?;
        pair = Some(after);
        Ok(per_second)
    })?;
    drop(pair);
    let raw = compare(workshop.rounds(), |side| {
        let path = workshop.dir().join("sparse.raw");
        File::create(&path)?.set_len(size(side))?;
        let per_second = WORKLOAD.fio(&[Disk::file(&path)], turn(workshop))?.iops;
        fs::remove_file(&path)?;
        contest::settle_disk(workshop)?;
        Ok(per_second)
    })?;
    for (ours, raw) in ours.iter().zip(&raw) {
        record.add([ours.ratio(), raw.ratio(), ours.subject, ours.reference]);
    }
    Ok(())
}

fn size(side: Side) -> u64 {
    if side == Side::Reference { NARROW_BYTES } else { WIDE_BYTES }
}

/// Writes a second to a fresh volume whose standby is away; the pair is as it was then.
fn replicated(workshop: &Workshop, pair: Pair, size_bytes: u64) -> Result<(f64, Pair)> {
    pair.create(&["--size", &size_bytes.to_string()])?;
    pair.replicate("5s")?;
    let Pair { primary, standby, dirs } = pair;
    let place = standby.kill();
    let socket = primary.socket("vhost");
    primary.tern::<Value>(&["volume", "export", "vm1", "--vhost-user", &socket.to_string_lossy()])?;
    contest::settle_disk(workshop)?;
    let done = Guest::connect(&socket, 1)?.run(WORKLOAD, turn(workshop))?;
    primary.tern::<Value>(&["replicate", "vm1", "--stop"])?;
    primary.tern::<Value>(&["volume", "delete", "vm1", "--yes"])?;
    let pair = Pair { primary, standby: Site::start(pair::here(), place)?, dirs };
    pair.standby.tern::<Value>(&["volume", "delete", "vm1", "--yes"])?;
    pair.wait_until_connected()?;
    Ok((done.per_second, pair))
}
