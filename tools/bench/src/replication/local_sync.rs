//! How fast the first sync of a file system with real files is when no link limits it.

use super::{BLOCK_BYTES, MIB};
use crate::pair::Pair;
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::Result;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "local-sync",
    about: "first sync of a file system with real files on loopback, no limit",
    figures: &[
        Figure { what: "content that is not zero", unit: "MiB/s", target: Some(Target { at_least: 150.0, aim: 400.0 }) },
        Figure { what: "of it on the wire", unit: "%", target: None },
    ],
    run,
};

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let image = workshop.real_image()?;
    for _ in 0..workshop.rounds() {
        let pair = Pair::start([workshop.dir(); 2], None)?;
        pair.import(&image)?;
        let took = pair.replicate("5s")?;
        let volume = pair.primary.volume()?;
        let content_bytes = (volume.full_blocks * BLOCK_BYTES) as f64;
        record.add([content_bytes / MIB / took.as_secs_f64(), volume.wire_bytes_sent as f64 / content_bytes * 100.0]);
    }
    Ok(())
}
