//! What replication costs a guest while it has nothing to send: reads with a standby in sync, and writes with the standby's site down, once the
//! regions that are written to are in the activity log. Both against a second volume of the same daemon, which has no standby.

use super::compare::{Side, compare};
use super::guest::Guest;
use super::turn;
use super::workload::Workload;
use crate::pair::Pair;
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::Result;
use serde_json::Value;
use std::path::Path;

const TARGET: Option<Target> = Some(Target { at_least: 0.98, aim: 1.0 });

pub const BENCHMARK: Benchmark = Benchmark {
    name: "idle-replication",
    about: "vhost-user: 4 KiB random reads and writes with replication attached and idle, against none",
    figures: &[
        Figure { what: "reads, in sync, against no replication", unit: "×", target: TARGET },
        Figure { what: "writes, standby away, against no replication", unit: "×", target: TARGET },
        Figure { what: "reads, in sync", unit: "/s", target: None },
        Figure { what: "writes, standby away", unit: "/s", target: None },
    ],
    run,
};

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let size_bytes = workshop.size(1 << 30, 64 << 20);
    let image = |name| workshop.random_image(name, size_bytes);
    let (replicated, alone) = (image("replicated")?, image("alone")?);
    let pair = Pair::start([workshop.dir(); 2], None)?;
    pair.create(&["--backing", &replicated.to_string_lossy()])?;
    pair.primary.tern::<Value>(&["volume", "create", "alone", "--backing", &alone.to_string_lossy()])?;
    pair.replicate("5s")?;
    let Pair { primary, standby, dirs: _dirs } = pair;
    let attach = |volume: &str| {
        let socket = primary.socket(&format!("{volume}.vhost"));
        primary.tern::<Value>(&["volume", "export", volume, "--vhost-user", &socket.to_string_lossy()])?;
        Guest::connect(Path::new(&socket), 1)
    };
    let (mut replicated, mut alone) = (attach("vm1")?, attach("alone")?);
    let mut compared = |workload| {
        // Regions get into the activity log.
        replicated.run(workload, turn(workshop))?;
        compare(workshop.rounds(), |side| {
            let guest = if side == Side::Reference { &mut alone } else { &mut replicated };
            Ok(guest.run(workload, turn(workshop))?.per_second)
        })
    };
    let reads = compared(Workload::RANDOM_READ)?;
    standby.kill();
    let writes = compared(Workload::RANDOM_WRITE)?;
    for (reads, writes) in reads.iter().zip(&writes) {
        record.add([reads.ratio(), writes.ratio(), reads.subject, writes.subject]);
    }
    Ok(())
}
