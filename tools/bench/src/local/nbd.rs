//! NBD: our daemon, `qemu-nbd` and `nbdkit file`, each with one connection, through `fio`.

use super::contest::{self, Contest, Nbd, Round};
use super::server::{Blockd, Content, Peer};
use super::workload::Workload;
use super::{CPU_TARGET, LATENCY_TARGET, NBD_SPEED_TARGET};
use crate::load::Disk;
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::Result;

pub const RANDOM_WRITE: Benchmark = Benchmark {
    name: "nbd-random-write",
    about: "NBD: 4 KiB random writes at depth 32, against qemu-nbd and nbdkit",
    figures: &throughput_figures(CPU_TARGET),
    run: |workshop, record| throughput(workshop, record, Workload::RANDOM_WRITE),
};
pub const RANDOM_READ: Benchmark = Benchmark {
    name: "nbd-random-read",
    about: "NBD: 4 KiB random reads at depth 32, against qemu-nbd and nbdkit",
    figures: &throughput_figures(CPU_TARGET),
    run: |workshop, record| throughput(workshop, record, Workload::RANDOM_READ),
};
pub const SEQUENTIAL_WRITE: Benchmark = Benchmark {
    name: "nbd-sequential-write",
    about: "NBD: 128 KiB sequential writes at depth 8, against qemu-nbd and nbdkit",
    figures: &throughput_figures(None),
    run: |workshop, record| throughput(workshop, record, Workload::SEQUENTIAL_WRITE),
};
pub const SEQUENTIAL_READ: Benchmark = Benchmark {
    name: "nbd-sequential-read",
    about: "NBD: 128 KiB sequential reads at depth 8, against qemu-nbd and nbdkit",
    figures: &throughput_figures(None),
    run: |workshop, record| throughput(workshop, record, Workload::SEQUENTIAL_READ),
};
pub const FLUSH: Benchmark = Benchmark {
    name: "nbd-flush",
    about: "NBD: a 4 KiB write and a flush at depth 1, against qemu-nbd and nbdkit",
    figures: &throughput_figures(None),
    run: |workshop, record| throughput(workshop, record, Workload::FLUSH),
};
pub const WRITE_LATENCY: Benchmark = Benchmark {
    name: "nbd-write-latency",
    about: "NBD: 4 KiB random writes at depth 1, against qemu-nbd and nbdkit",
    figures: &LATENCY_FIGURES,
    run: |workshop, record| latency(workshop, record, Workload::ONE_WRITE),
};
pub const READ_LATENCY: Benchmark = Benchmark {
    name: "nbd-read-latency",
    about: "NBD: 4 KiB random reads at depth 1, against qemu-nbd and nbdkit",
    figures: &LATENCY_FIGURES,
    run: |workshop, record| latency(workshop, record, Workload::ONE_READ),
};

const fn throughput_figures(cpu: Option<Target>) -> [Figure; 11] {
    [
        Figure { what: "requests, against qemu-nbd", unit: "×", target: Some(NBD_SPEED_TARGET) },
        Figure { what: "requests, against nbdkit", unit: "×", target: None },
        Figure { what: "CPU a request, against qemu-nbd", unit: "×", target: cpu },
        Figure { what: "requests", unit: "/s", target: None },
        Figure { what: "requests of qemu-nbd", unit: "/s", target: None },
        Figure { what: "requests of nbdkit", unit: "/s", target: None },
        Figure { what: "requests, against raw fio", unit: "×", target: None },
        Figure { what: "qemu-nbd against raw fio", unit: "×", target: None },
        Figure { what: "CPU a request", unit: "µs", target: None },
        Figure { what: "CPU a request of qemu-nbd", unit: "µs", target: None },
        Figure { what: "CPU a request of nbdkit", unit: "µs", target: None },
    ]
}

const LATENCY_FIGURES: [Figure; 8] = [
    Figure { what: "99th percentile, against qemu-nbd", unit: "×", target: Some(LATENCY_TARGET) },
    Figure { what: "median", unit: "µs", target: None },
    Figure { what: "99th percentile", unit: "µs", target: None },
    Figure { what: "99.9th percentile", unit: "µs", target: None },
    Figure { what: "median of qemu-nbd", unit: "µs", target: None },
    Figure { what: "99th percentile of qemu-nbd", unit: "µs", target: None },
    Figure { what: "99.9th percentile of qemu-nbd", unit: "µs", target: None },
    Figure { what: "99th percentile of nbdkit", unit: "µs", target: None },
];

fn throughput(workshop: &Workshop, record: &mut Record, workload: Workload) -> Result<()> {
    rounds(workshop, workload, |Round { ours, peer, others }| {
        let (raw, nbdkit) = (others[0].per_second, others[1]);
        record.add([
            ours.per_second / peer.per_second,
            ours.per_second / nbdkit.per_second,
            ours.cpu_us / peer.cpu_us,
            ours.per_second,
            peer.per_second,
            nbdkit.per_second,
            ours.per_second / raw,
            peer.per_second / raw,
            ours.cpu_us,
            peer.cpu_us,
            nbdkit.cpu_us,
        ]);
    })
}

fn latency(workshop: &Workshop, record: &mut Record, workload: Workload) -> Result<()> {
    rounds(workshop, workload, |Round { ours, peer, others }| {
        let (ours, peer, nbdkit) = (ours.latency, peer.latency, others[1].latency);
        let ratio = ours.p99_us / peer.p99_us;
        record.add([ratio, ours.p50_us, ours.p99_us, ours.p999_us, peer.p50_us, peer.p99_us, peer.p999_us, nbdkit.p99_us]);
    })
}

fn rounds(workshop: &Workshop, workload: Workload, each: impl FnMut(Round)) -> Result<()> {
    let image = contest::image(workshop)?;
    let blockd = Blockd::start(workshop.dir())?;
    blockd.create("vm1", Content::Image(&image))?;
    let ours = Nbd::server(blockd.site.process(), Disk::volume("vm1", &blockd.nbd("vm1")?));
    let (qemu, nbdkit) = (Peer::qemu_nbd(&image)?, Peer::nbdkit(&image)?);
    let disk = |peer: &Peer| Disk::nbd(&format!("nbd+unix:///?socket={}", peer.socket().display()));
    let mut contest = Contest::new(workshop, &image, ours, Nbd::server(qemu.process(), disk(&qemu)))?;
    contest.others.push(Nbd::server(nbdkit.process(), disk(&nbdkit)));
    contest.rounds(workload, each)
}
