//! What a copy says of its past, and of its blocks: each recovery point that it offers is a cut, and no block is damaged that nobody damaged.

use crate::history::History;
use crate::storage::{SimFiles, view_of};
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::disk::Pages;
use replicator::standby::{Round, Standby};
use replicator_engine::block::{Run, block_count};
use replicator_engine::tracker::Epoch;

/// Holds a copy without staged content against what happened: one of its recovery points, and the digests of its image.
pub fn check(copy: &mut Standby<SimFiles>, history: &History, rng: &mut StdRng) {
    let points = copy.points().expect("a disk without faults");
    // A copy that was primary has one of which nobody wrote down when it was cut.
    if !points.is_empty() {
        show(copy, points[rng.random_range(0..points.len())].point.epoch, history);
    }
    if copy.can_scrub() {
        scrub(copy);
    }
}

fn show(copy: &mut Standby<SimFiles>, epoch: Epoch, history: &History) {
    let mut view = copy.open_view(epoch).expect("a point that is offered");
    let all = Run { start: 0, len: block_count(view.point.size_bytes) as u32 };
    let mut content = Pages::new(all.len);
    copy.read_view(&mut view, all, &mut content).expect("a disk without faults");
    copy.close_view(&view);
    history.check(&copy.place().lineage, epoch, view.point.size_bytes, &view_of(&content));
}

fn scrub(copy: &mut Standby<SimFiles>) {
    copy.begin_scrub();
    let mut round = Round::default();
    while round != Round::Ended {
        round = copy.scrub_one(round, 1).expect("a disk without faults").next;
    }
    let health = copy.health().expect("its blocks have digests");
    assert_eq!(health.damaged, 0, "a block that nobody damaged is called damaged: {health:?}");
}
