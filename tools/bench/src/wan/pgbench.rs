//! What a database that is updated here and there takes of a slow link.

use super::database::Database;
use crate::pair::{self, Pair};
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::Result;
use serde_json::Value;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "pgbench-bytes",
    about: "pgbench on a volume in mode async over 85 Mbit/s, 27 ms: bytes on the wire",
    figures: &[
        Figure { what: "bytes on the wire, against bytes written", unit: "x", target: Some(Target { at_least: 0.3, aim: 0.1 }) },
        Figure { what: "of the blocks as differences", unit: "%", target: None },
        Figure { what: "written", unit: "MiB", target: None },
    ],
    run,
};

/// A transaction updates three rows and adds one.
const TRANSACTIONS_A_SECOND: &str = "--rate=200";

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let scale = workshop.size("--scale=20", "--scale=1");
    let time = workshop.size("--time=60", "--time=5");
    for _ in 0..workshop.rounds() {
        let mut wan = pair::wan()?;
        let pair = Pair::start([workshop.dir(); 2], Some(&wan))?;
        pair.create(&["--size", "2G"])?;
        pair.replicate("5s")?;
        let database = Database::create(&pair.primary.nbd())?;
        database.run("pgbench", &["--initialize", "--quiet", scale])?;
        database.run("psql", &["--quiet", "--command=checkpoint"])?;
        pair.wait_in_sync()?;
        pair.primary.tern::<Value>(&["snapshot", "vm1"])?;
        let (before, bytes) = (pair.primary.volume()?, wan.stats()?.a_to_b.counters.delivered.bytes);
        database.run("pgbench", &["--no-vacuum", "--client=4", TRANSACTIONS_A_SECOND, time])?;
        pair.primary.tern::<Value>(&["snapshot", "vm1"])?;
        let (after, sent) = (pair.primary.volume()?, wan.stats()?.a_to_b.counters.delivered.bytes - bytes);
        let changed = (after.changed_bytes - before.changed_bytes) as f64;
        let differences = (after.delta_blocks - before.delta_blocks) as f64;
        let blocks = differences + (after.full_blocks - before.full_blocks) as f64;
        record.add([sent as f64 / changed, differences / blocks * 100.0, changed / f64::from(1 << 20)]);
    }
    Ok(())
}
