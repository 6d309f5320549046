//! How much of a slow link the first sync of data that nothing compresses fills.

use super::{BLOCK_BYTES, LinkUse};
use crate::pair::{self, Pair};
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::Result;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "wan-sync",
    about: "first sync of random data over 85 Mbit/s, 27 ms: share of the link in use",
    figures: &[
        Figure { what: "share of the link in use", unit: "%", target: Some(Target { at_least: 90.0, aim: 97.0 }) },
        Figure { what: "content alone, without headers", unit: "%", target: None },
    ],
    run,
};

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let image = workshop.random_image("random", workshop.size(256, 16) << 20)?;
    for _ in 0..workshop.rounds() {
        let mut wan = pair::wan()?;
        let pair = Pair::start([workshop.dir(); 2], Some(&wan))?;
        pair.import(&image)?;
        let before = wan.stats()?;
        pair.replicate("5s")?;
        let link = LinkUse::between(&before, &wan.stats()?);
        let content_bytes = pair.primary.volume()?.full_blocks * BLOCK_BYTES;
        record.add([link.percent(link.delivered_bytes), link.percent(content_bytes as f64)]);
    }
    Ok(())
}
