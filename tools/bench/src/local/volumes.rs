//! A hundred volumes at once, against one that is as large as the hundred together: each under as much load as the one, and each with one
//! request at a time, which is a small load on each and many wake-ups for few requests.

use super::compare::{Side, compare};
use super::guest::{self, Guest};
use super::server::{Blockd, Content};
use super::turn;
use super::workload::Workload;
use crate::load::Disk;
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::Result;

const TARGET: Option<Target> = Some(Target { at_least: 0.9, aim: 1.0 });
/// How many are many.
pub const MANY: usize = 100;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "volumes",
    about: "4 KiB random writes to 100 volumes at once, at depth 32 and at depth 1 each, against one volume at depth 32",
    figures: &[
        Figure { what: "sum of 100, against one, vhost-user", unit: "×", target: TARGET },
        Figure { what: "sum of 100, against one, NBD", unit: "×", target: TARGET },
        Figure { what: "sum of 100 at depth 1, against one at 32, vhost-user", unit: "×", target: None },
        Figure { what: "sum of 100, vhost-user", unit: "/s", target: None },
        Figure { what: "one, vhost-user", unit: "/s", target: None },
        Figure { what: "sum of 100, NBD", unit: "/s", target: None },
        Figure { what: "one, NBD", unit: "/s", target: None },
    ],
    run,
};

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let (workload, duration) = (Workload::RANDOM_WRITE, turn(workshop));
    let each_bytes = workshop.size(32 << 20, 1 << 20);
    let blockd = Blockd::start(workshop.dir())?;
    let make = |volume: &str, size_bytes| {
        let image = workshop.random_image(volume, size_bytes)?;
        blockd.create(volume, Content::Image(&image))
    };
    make("one", each_bytes * MANY as u64)?;
    (0..MANY).try_for_each(|number| make(&name(number), each_bytes))?;

    let (mut one, mut many) = (vec![attach(&blockd, "one")?], Vec::new());
    for number in 0..MANY {
        many.push(attach(&blockd, &name(number))?);
    }
    let mut with_depth = |depth| {
        compare(workshop.rounds(), |side| match side {
            Side::Reference => Ok(guest::run_all(&mut one, workload, duration)?.per_second),
            Side::Subject => Ok(guest::run_all(&mut many, Workload { depth, ..workload }, duration)?.per_second),
        })
    };
    let (vhost_user, shallow) = (with_depth(workload.depth)?, with_depth(1)?);
    drop((one, many));

    let disk = |volume: &str| Ok(Disk::volume(volume, &blockd.nbd(volume)?));
    let one = [disk("one")?];
    let many = (0..MANY).map(|number| disk(&name(number))).collect::<Result<Vec<_>>>()?;
    let nbd = compare(workshop.rounds(), |side| {
        let disks = if side == Side::Reference { one.as_slice() } else { many.as_slice() };
        Ok(workload.fio(disks, duration)?.iops)
    })?;
    for ((vhost_user, shallow), nbd) in vhost_user.iter().zip(&shallow).zip(&nbd) {
        let ratios = [vhost_user.ratio(), nbd.ratio(), shallow.ratio()];
        let requests = [vhost_user.subject, vhost_user.reference, nbd.subject, nbd.reference];
        record.add([ratios[0], ratios[1], ratios[2], requests[0], requests[1], requests[2], requests[3]]);
    }
    Ok(())
}

/// A volume of the many.
pub fn name(number: usize) -> String {
    format!("vm{number}")
}

fn attach(blockd: &Blockd, volume: &str) -> Result<Guest> {
    Guest::connect(&blockd.vhost_user(volume)?, 1)
}
