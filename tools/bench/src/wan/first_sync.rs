//! What the first sync of a file system with real files takes of a slow link, and of the CPUs.

use super::zstd;
use crate::pair::{self, Pair};
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::Result;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "first-sync",
    about: "first sync of a file system with real files over 85 Mbit/s, 27 ms: bytes on the wire",
    figures: &[
        Figure {
            what: "bytes on the wire, against zstd -3 of what is not zero",
            unit: "x",
            target: Some(Target { at_least: 1.03, aim: 0.9 }),
        },
        Figure { what: "of the content on the wire", unit: "%", target: None },
        Figure { what: "CPU of both daemons meanwhile", unit: "cores", target: Some(Target { at_least: 1.0, aim: 0.5 }) },
    ],
    run,
};

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let image = workshop.real_image()?;
    let theirs = zstd::compress(&image, &workshop.dir().join("real.zst"))?;
    for _ in 0..workshop.rounds() {
        let mut wan = pair::wan()?;
        let pair = Pair::start([workshop.dir(); 2], Some(&wan))?;
        pair.import(&image)?;
        let (bytes, cpu) = (wan.stats()?.a_to_b.counters.delivered.bytes, pair.cpu_seconds()?);
        let took = pair.replicate("5s")?;
        let sent = (wan.stats()?.a_to_b.counters.delivered.bytes - bytes) as f64;
        let cores = (pair.cpu_seconds()? - cpu) / took.as_secs_f64();
        record.add([sent / theirs.compressed_bytes as f64, sent / theirs.content_bytes as f64 * 100.0, cores]);
    }
    Ok(())
}
