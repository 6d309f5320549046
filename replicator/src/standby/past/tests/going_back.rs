//! An image that is led back to an older point while it is written to.

use super::*;
use crate::catalogue::Catalogue;
use crate::disk::BlockDevice;
use crate::standby::Rollback;
use replicator_engine::block::runs;
use roaring::RoaringBitmap;

/// What a primary that is led back does, with the order that keeps it safe.
struct Served {
    rollback: Rollback,
    image: Arc<Image>,
    plan: RoaringBitmap,
    filled: RoaringBitmap,
    /// The point, and what clients wrote since.
    flushed: Vec<u8>,
    unflushed: BTreeMap<BlockNumber, Vec<u8>>,
}

impl Served {
    fn new(world: &World, rollback: Rollback, flushed: Vec<u8>) -> Self {
        let mut plan = RoaringBitmap::new();
        rollback.runs().iter().for_each(|run| _ = plan.insert_range(run.blocks()));
        Self { rollback, image: world.image.clone(), plan, filled: RoaringBitmap::new(), flushed, unflushed: BTreeMap::new() }
    }

    fn fill(&mut self, block: BlockNumber) {
        let run = Run { start: block, len: 1 };
        let mut content = vec![0; BLOCK_BYTES];
        self.rollback.read(run, &mut content).unwrap();
        assert_eq!(content[0], self.flushed[block as usize], "block {block}");
        self.image.write(run, &content).unwrap();
        self.filled.insert(block);
    }

    fn record(&mut self, blocks: RoaringBitmap) {
        self.flush();
        self.rollback.record(&blocks).unwrap();
        self.plan -= &blocks;
        self.filled -= blocks;
    }

    fn write(&mut self, block: BlockNumber, byte: u8) {
        if self.plan.contains(block) {
            self.fill(block);
            self.record(RoaringBitmap::from_iter([block]));
        }
        self.image.write(Run { start: block, len: 1 }, &[byte; BLOCK_BYTES]).unwrap();
        self.unflushed.entry(block).or_default().push(byte);
    }

    fn flush(&mut self) {
        self.image.sync().unwrap();
        for (block, bytes) in std::mem::take(&mut self.unflushed) {
            self.flushed[block as usize] = *bytes.last().unwrap();
        }
    }

    /// Some of the writes that were not flushed are there after a crash.
    fn crash(&mut self, rng: &mut StdRng) {
        self.image.crash(rng);
        let shown = self.image.blocks();
        for (block, bytes) in std::mem::take(&mut self.unflushed) {
            let (shown, flushed) = (shown[block as usize], self.flushed[block as usize]);
            assert!(shown == flushed || bytes.contains(&shown), "block {block} is {shown}, and was {flushed}, then {bytes:?}");
            self.flushed[block as usize] = shown;
        }
        self.filled.clear();
    }
}

fn world(seed: u64) -> (World, Epoch) {
    let mut world = World::new(seed, keep());
    for _ in 0..20 {
        world.send_epoch(1500);
    }
    // A frame of the next epoch is there while the points are listed, as under load: the journal keeps its segment.
    let blocks = world.encoder.encode(&[Run { start: 0, len: 1 }], &[9; BLOCK_BYTES]);
    world.standby.handle_frame(frame(Message::Blocks(blocks))).unwrap();
    let points = world.standby.points().unwrap();
    let target = points[world.rng.random_range(0..points.len() - 1)].point.epoch;
    (world, target)
}

fn serve(seed: u64) {
    let (mut world, target) = world(seed);
    let mut rollback = world.standby.go_back_to(target).unwrap().unwrap();
    let promoted = lineage().promoted(Id([9; 16]), target);
    rollback.begin(promoted.current()).unwrap();
    let (content, mut rng) = (world.cuts[&target].0.clone(), StdRng::seed_from_u64(seed));
    let blocks = content.len() as u32;
    let point = rollback.point();
    let mut served = Served::new(&world, rollback, content);
    while !served.plan.is_empty() {
        let some: Vec<u32> = (&served.plan - &served.filled).iter().collect();
        match rng.random_range(0..100) {
            0..30 if !some.is_empty() => served.fill(some[rng.random_range(0..some.len())]),
            0..50 => served.write(rng.random_range(0..blocks), rng.random_range(100..200)),
            50..60 => served.flush(),
            60..80 => {
                let some: RoaringBitmap = served.filled.iter().filter(|_| rng.random_bool(0.5)).collect();
                served.record(some);
            }
            80..90 => {
                served.crash(&mut rng);
                let undo = world.undo.clone();
                served.rollback = Rollback::resume_from(VOLUME, point, Ok(undo), world.catalogue.clone()).unwrap();
                let mut left = RoaringBitmap::new();
                served.rollback.runs().iter().for_each(|run| _ = left.insert_range(run.blocks()));
                assert_eq!(runs(&left).collect::<Vec<_>>(), runs(&served.plan).collect::<Vec<_>>(), "seed {seed}");
            }
            _ => {}
        }
    }
    served.flush();
    assert_eq!(world.image.blocks()[..blocks as usize], served.flushed, "seed {seed}");
    served.rollback.finish().unwrap();
    assert_eq!(Rollback::image_bytes(VOLUME, &promoted, &*world.catalogue).unwrap(), None);
    assert!(world.catalogue.scan(b"standby/07070707070707070707070707070707/done").unwrap().is_empty());
    assert!(world.undo.iter().all(|files| files.used_bytes() < BLOCK));
}

/// `SEEDS=n` runs more.
#[test]
fn an_image_that_is_led_back_is_the_point_and_what_was_written_since_whenever_it_crashes() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(200);
    (0..seeds).for_each(serve);
}

/// Whatever the undo has lost by the time of a restart, a block is the point's, or an error; and nothing is thrown away.
#[test]
fn undo_that_rots_while_an_image_is_led_back_costs_its_blocks_and_shows_no_others() {
    let (mut world, _) = world(6);
    let target = world.standby.points().unwrap()[8].point.epoch;
    while world.standby.tidy_points(u64::MAX) {}
    let mut rollback = world.standby.go_back_to(target).unwrap().unwrap();
    rollback.begin(lineage().promoted(Id([9; 16]), target).current()).unwrap();
    let (point, plan) = (rollback.point(), Served::new(&world, rollback, Vec::new()).plan);
    let expected = world.cuts[&target].0.clone();
    let resume = || Rollback::resume_from(VOLUME, point, Ok(world.undo.clone()), world.catalogue.clone()).unwrap();
    let mut costs = Vec::new();
    for level in world.undo.iter().filter(|level| level.used_bytes() > 0) {
        for at in level.records() {
            level.rot_at(at);
            let before = level.bytes();
            let mut rollback = resume();
            let mut left = RoaringBitmap::new();
            rollback.runs().iter().for_each(|run| _ = left.insert_range(run.blocks()));
            assert_eq!(left, plan, "rotten at {at}");
            let mut lost = 0;
            for block in &plan {
                let mut content = vec![0; BLOCK_BYTES];
                match rollback.read(Run { start: block, len: 1 }, &mut content) {
                    Ok(()) => assert_eq!(content[0], expected[block as usize], "block {block}, rotten at {at}"),
                    Err(_) => lost += 1,
                }
            }
            costs.push(lost);
            assert_eq!(level.bytes(), before);
            level.rot_at(at);
        }
    }
    assert!(costs.contains(&0) && costs.iter().any(|lost| *lost > 0 && *lost < plan.len()), "{costs:?}");
    // All of it is gone: what is to be led back is known even so.
    let lost = Rollback::resume_from(VOLUME, point, Ok(<[Files; LEVELS]>::default()), world.catalogue.clone()).unwrap();
    assert_eq!(Served::new(&world, lost, Vec::new()).plan, plan);
}

#[test]
fn a_promotion_that_did_not_come_about_leaves_the_copy_and_its_points_as_they_were() {
    let (mut world, target) = world(4);
    let points = world.check();
    let mut rollback = world.standby.go_back_to(target).unwrap().unwrap();
    rollback.begin(lineage().promoted(Id([9; 16]), target).current()).unwrap();
    rollback.record(&RoaringBitmap::from_iter([0])).unwrap();
    drop(rollback);
    world.crash();
    assert_eq!(world.check(), points);
    // Another promotion is not led back, not even one that has its generation: a handover that is asked for again does.
    for id in [9, 10] {
        let other = lineage().promoted(Id([id; 16]), world.epoch);
        assert_eq!(Rollback::image_bytes(VOLUME, &other, &*world.catalogue).unwrap(), None);
    }
    assert!(world.catalogue.scan(b"standby/07070707070707070707070707070707/done").unwrap().is_empty());
    assert!(world.standby.go_back_to(world.epoch).unwrap().is_none());
    assert!(matches!(world.standby.go_back_to(world.epoch + 1), Err(PastError::NotKept(_))));
}

#[test]
fn many_records_of_what_is_led_back_are_put_together() {
    let (mut world, target) = world(5);
    let mut rollback = world.standby.go_back_to(target).unwrap().unwrap();
    rollback.begin(lineage().promoted(Id([9; 16]), target).current()).unwrap();
    let done = RoaringBitmap::from_iter(0..600);
    for block in &done {
        rollback.record(&RoaringBitmap::from_iter([block])).unwrap();
    }
    let kept = world.catalogue.scan(b"standby/07070707070707070707070707070707/done").unwrap();
    assert!(kept.len() < 300, "{}", kept.len());
    let found = kept.iter().map(|(_, blocks)| RoaringBitmap::deserialize_from(&**blocks).unwrap());
    assert_eq!(found.fold(RoaringBitmap::new(), |all, some| all | some), done);
}
