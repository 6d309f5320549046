//! vhost-user-blk: our daemon and `qemu-storage-daemon`, each with one queue, through the same driver.

use super::contest::{self, Contest, Round, VhostUser};
use super::server::{Blockd, Content, Peer};
use super::workload::Workload;
use super::{CPU_TARGET, LATENCY_TARGET, SPEED_TARGET};
use crate::record::{Benchmark, Figure, Record, Target};
use crate::workshop::Workshop;
use anyhow::Result;

pub const RANDOM_WRITE: Benchmark = Benchmark {
    name: "vhost-random-write",
    about: "vhost-user: 4 KiB random writes at depth 32, against qemu-storage-daemon",
    figures: &throughput_figures(CPU_TARGET),
    run: |workshop, record| throughput(workshop, record, Workload::RANDOM_WRITE),
};
pub const RANDOM_READ: Benchmark = Benchmark {
    name: "vhost-random-read",
    about: "vhost-user: 4 KiB random reads at depth 32, against qemu-storage-daemon",
    figures: &throughput_figures(CPU_TARGET),
    run: |workshop, record| throughput(workshop, record, Workload::RANDOM_READ),
};
pub const SEQUENTIAL_WRITE: Benchmark = Benchmark {
    name: "vhost-sequential-write",
    about: "vhost-user: 128 KiB sequential writes at depth 8, against qemu-storage-daemon",
    figures: &throughput_figures(None),
    run: |workshop, record| throughput(workshop, record, Workload::SEQUENTIAL_WRITE),
};
pub const SEQUENTIAL_READ: Benchmark = Benchmark {
    name: "vhost-sequential-read",
    about: "vhost-user: 128 KiB sequential reads at depth 8, against qemu-storage-daemon",
    figures: &throughput_figures(None),
    run: |workshop, record| throughput(workshop, record, Workload::SEQUENTIAL_READ),
};
pub const FLUSH: Benchmark = Benchmark {
    name: "vhost-flush",
    about: "vhost-user: a 4 KiB write and a flush at depth 1, against qemu-storage-daemon",
    figures: &throughput_figures(None),
    run: |workshop, record| throughput(workshop, record, Workload::FLUSH),
};
pub const WRITE_LATENCY: Benchmark = Benchmark {
    name: "vhost-write-latency",
    about: "vhost-user: 4 KiB random writes at depth 1, against qemu-storage-daemon",
    figures: &LATENCY_FIGURES,
    run: |workshop, record| latency(workshop, record, Workload::ONE_WRITE),
};
pub const READ_LATENCY: Benchmark = Benchmark {
    name: "vhost-read-latency",
    about: "vhost-user: 4 KiB random reads at depth 1, against qemu-storage-daemon",
    figures: &LATENCY_FIGURES,
    run: |workshop, record| latency(workshop, record, Workload::ONE_READ),
};

const fn throughput_figures(cpu: Option<Target>) -> [Figure; 8] {
    [
        Figure { what: "requests, against qemu-storage-daemon", unit: "×", target: Some(SPEED_TARGET) },
        Figure { what: "CPU a request, against qemu-storage-daemon", unit: "×", target: cpu },
        Figure { what: "requests", unit: "/s", target: None },
        Figure { what: "requests of qemu-storage-daemon", unit: "/s", target: None },
        Figure { what: "requests, against raw fio", unit: "×", target: None },
        Figure { what: "qemu-storage-daemon against raw fio", unit: "×", target: None },
        Figure { what: "CPU a request", unit: "µs", target: None },
        Figure { what: "CPU a request of qemu-storage-daemon", unit: "µs", target: None },
    ]
}

const LATENCY_FIGURES: [Figure; 8] = [
    Figure { what: "99th percentile, against qemu-storage-daemon", unit: "×", target: Some(LATENCY_TARGET) },
    Figure { what: "median", unit: "µs", target: None },
    Figure { what: "99th percentile", unit: "µs", target: None },
    Figure { what: "99.9th percentile", unit: "µs", target: None },
    Figure { what: "median of qemu-storage-daemon", unit: "µs", target: None },
    Figure { what: "99th percentile of qemu-storage-daemon", unit: "µs", target: None },
    Figure { what: "99.9th percentile of qemu-storage-daemon", unit: "µs", target: None },
    Figure { what: "99th percentile of raw fio", unit: "µs", target: None },
];

fn throughput(workshop: &Workshop, record: &mut Record, workload: Workload) -> Result<()> {
    rounds(workshop, workload, |Round { ours, peer, others }| {
        let raw = others[0].per_second;
        record.add([
            ours.per_second / peer.per_second,
            ours.cpu_us / peer.cpu_us,
            ours.per_second,
            peer.per_second,
            ours.per_second / raw,
            peer.per_second / raw,
            ours.cpu_us,
            peer.cpu_us,
        ]);
    })
}

fn latency(workshop: &Workshop, record: &mut Record, workload: Workload) -> Result<()> {
    rounds(workshop, workload, |Round { ours, peer, others }| {
        let (ours, peer, raw) = (ours.latency, peer.latency, others[0].latency);
        let ratio = ours.p99_us / peer.p99_us;
        record.add([ratio, ours.p50_us, ours.p99_us, ours.p999_us, peer.p50_us, peer.p99_us, peer.p999_us, raw.p99_us]);
    })
}

fn rounds(workshop: &Workshop, workload: Workload, each: impl FnMut(Round)) -> Result<()> {
    let image = contest::image(workshop)?;
    let blockd = Blockd::start(workshop.dir())?;
    blockd.create("vm1", Content::Image(&image))?;
    let ours = VhostUser::connect(blockd.site.process(), &blockd.vhost_user("vm1")?, 1)?;
    let qemu = Peer::qemu_storage_daemon(&image, 1)?;
    let peer = VhostUser::connect(qemu.process(), &qemu.socket(), 1)?;
    Contest::new(workshop, &image, ours, peer)?.rounds(workload, each)
}
