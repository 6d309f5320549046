//! What an idle volume holds of the daemon's memory: a hundred of them, after a load. Memory of guests, which the daemon has mapped and its
//! requests have touched, is theirs and does not count.

use super::guest::{self, Guest};
use super::server::{Blockd, Content};
use super::turn;
use super::volumes::{MANY, name};
use super::workload::Workload;
use crate::load::Disk;
use crate::machine;
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::Result;

const TARGET: Option<Target> = Some(Target { at_least: 4.0, aim: 1.0 });
const MIB: f64 = (1 << 20) as f64;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "idle-memory",
    about: "memory per idle volume: 100 volumes with their guests attached, and 100 exported over NBD, each after a load",
    figures: &[
        Figure { what: "attached over vhost-user", unit: "MiB", target: TARGET },
        Figure { what: "exported over NBD", unit: "MiB", target: TARGET },
        Figure { what: "attached, before the load", unit: "MiB", target: None },
        Figure { what: "the daemon without volumes", unit: "MiB", target: None },
    ],
    run,
};

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let size_bytes = workshop.size(16 << 20, 1 << 20);
    for _ in 0..workshop.rounds() {
        let (blockd, empty) = with_volumes(workshop, size_bytes)?;
        let mut guests = Vec::new();
        for number in 0..MANY {
            guests.push(Guest::connect(&blockd.vhost_user(&name(number))?, 1)?);
        }
        let attached = own_mib(&blockd)? - empty;
        guest::run_all(&mut guests, Workload::RANDOM_WRITE, turn(workshop))?;
        let vhost_user = own_mib(&blockd)? - empty;
        drop((guests, blockd));

        let (blockd, empty) = with_volumes(workshop, size_bytes)?;
        let disks = (0..MANY).map(|number| Ok(Disk::volume(&name(number), &blockd.nbd(&name(number))?))).collect::<Result<Vec<_>>>()?;
        Workload::RANDOM_WRITE.fio(&disks, turn(workshop))?;
        let nbd = own_mib(&blockd)? - empty;
        let [vhost_user, nbd, attached] = [vhost_user, nbd, attached].map(|mib| mib / MANY as f64);
        record.add([vhost_user, nbd, attached, empty]);
    }
    Ok(())
}

/// A daemon with as many volumes, and what it held before it had them.
fn with_volumes(workshop: &Workshop, size_bytes: u64) -> Result<(Blockd, f64)> {
    let blockd = Blockd::start(workshop.dir())?;
    let empty = own_mib(&blockd)?;
    (0..MANY).try_for_each(|number| blockd.create(&name(number), Content::Sparse(size_bytes)))?;
    Ok((blockd, empty))
}

/// What the daemon holds and shares with no guest.
fn own_mib(blockd: &Blockd) -> Result<f64> {
    let path = format!("/proc/{}/status", blockd.site.process());
    Ok(((machine::kib(&path, "RssAnon")? + machine::kib(&path, "RssFile")?) << 10) as f64 / MIB)
}
