//! What more queues give, with as much load on each: our daemon and `qemu-storage-daemon` with as many.

use super::contest::{self, Contest, Round, VhostUser};
use super::server::{Blockd, Content, Peer};
use super::workload::Workload;
use crate::record::{Benchmark, Figure, Record};
use crate::workshop::Workshop;
use anyhow::Result;

pub const BENCHMARK: Benchmark = Benchmark {
    name: "queues",
    about: "vhost-user: 4 KiB random reads at depth 32 on each of 1, 2 and 4 queues, against qemu-storage-daemon",
    figures: &[
        Figure { what: "1 queue, against qemu-storage-daemon", unit: "×", target: None },
        Figure { what: "2 queues, against qemu-storage-daemon", unit: "×", target: None },
        Figure { what: "4 queues, against qemu-storage-daemon", unit: "×", target: None },
        Figure { what: "requests with 1 queue", unit: "/s", target: None },
        Figure { what: "requests with 2 queues", unit: "/s", target: None },
        Figure { what: "requests with 4 queues", unit: "/s", target: None },
    ],
    run,
};

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let image = contest::image(workshop)?;
    let blockd = Blockd::start(workshop.dir())?;
    blockd.create("vm1", Content::Image(&image))?;
    let socket = blockd.vhost_user("vm1")?;
    let rounds = |queues| -> Result<Vec<Round>> {
        let ours = VhostUser::connect(blockd.site.process(), &socket, queues)?;
        let qemu = Peer::qemu_storage_daemon(&image, queues)?;
        let peer = VhostUser::connect(qemu.process(), &qemu.socket(), queues)?;
        let mut rounds = Vec::new();
        Contest::new(workshop, &image, ours, peer)?.rounds(Workload::RANDOM_READ, |round| rounds.push(round))?;
        Ok(rounds)
    };
    let (one, two, four) = (rounds(1)?, rounds(2)?, rounds(4)?);
    for ((one, two), four) in one.iter().zip(&two).zip(&four) {
        let [one, two, four] = [one, two, four].map(|round| (round.ours.per_second / round.peer.per_second, round.ours.per_second));
        record.add([one.0, two.0, four.0, one.1, two.1, four.1]);
    }
    Ok(())
}
