//! Whatever crashes and fails, the old state is shown as it was, or an error.

use super::super::past::tests::disks::{Files, Image};
use super::*;
use crate::pairing::tests::MemoryCatalogue;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use replicator_engine::block::BLOCK_BYTES;
use replicator_engine::generation::{Id, Lineage};

const BLOCKS: u32 = 24;

/// A volume that keeps an old state.
struct World {
    files: Files,
    image: Arc<Image>,
    catalogue: Arc<MemoryCatalogue>,
}

fn point() -> Point {
    Point { epoch: 7, size_bytes: u64::from(BLOCKS) * BLOCK_BYTES as u64, cut_unix_ms: 1, group: None }
}

impl World {
    /// Blocks of 1, 2, 3 … of which nothing is overwritten yet.
    fn begin() -> Self {
        let world = Self { files: Files::default(), image: Image::new(BLOCKS as usize), catalogue: Arc::default() };
        (0..BLOCKS).for_each(|block| write(&*world.image, block, block as u8 + 1).unwrap());
        world.image.sync().unwrap();
        OldState::begin(world.files.clone(), &world.marks(), point(), &Lost::default()).unwrap();
        world
    }

    fn marks(&self) -> OldMarks {
        OldMarks::new(Id([7; 16]), Lineage::first(Id([1; 16])).current(), self.catalogue.clone())
    }

    fn open(&self) -> Arc<OldState<Files>> {
        OldState::open(self.files.clone(), self.marks(), self.image.clone()).unwrap().expect("something is kept")
    }
}

fn write(image: &dyn BlockDevice, block: u32, byte: u8) -> io::Result<()> {
    image.write(Run { start: block, len: 1 }, &[byte; BLOCK_BYTES])
}

fn kept(old: &OldState<Files>) -> KeptOld {
    old.kept().as_ref().unwrap().describe()
}

fn read(old: &OldState<Files>, run: Run) -> io::Result<Pages> {
    old.kept().as_mut().unwrap().read(&*old.image, run)
}

fn shown(old: &OldState<Files>) -> Vec<u8> {
    let content = read(old, Run { start: 0, len: BLOCKS }).unwrap();
    content.chunks_exact(BLOCK_BYTES).map(|block| block[0]).collect()
}

fn run(seed: u64) {
    let (mut rng, world) = (StdRng::seed_from_u64(seed), World::begin());
    let (files, image) = (&world.files, &world.image);
    let page = |byte| Pages::new(1).iter().map(|_| byte).collect::<Vec<u8>>();
    let before = image.blocks();
    let mut old = world.open();
    for _ in 0..200 {
        let start = rng.random_range(0..BLOCKS);
        let run = Run { start, len: rng.random_range(1..=(BLOCKS - start).min(5)) };
        match rng.random_range(0..20) {
            0..10 => {
                let content: Vec<u8> = run.blocks().flat_map(|_| page(rng.random_range(10..200))).collect();
                let _ = old.write(run, &content);
            }
            10..13 => drop(old.zero(run)),
            13 | 14 => image.sync().unwrap(),
            15 => files.1.lock().unwrap().fails ^= true,
            16 => files.1.lock().unwrap().room = (rng.random_bool(0.5)).then(|| files.used_bytes() + 3000),
            17 => {
                *files.1.lock().unwrap() = Default::default();
                image.crash(&mut rng);
                files.crash(&mut rng);
                old = world.open();
            }
            _ => assert_eq!(shown(&old), before, "seed {seed}"),
        }
    }
    assert_eq!((shown(&old), kept(&old).point), (before, point()), "seed {seed}");
    assert_eq!(kept(&old).lost_blocks, 0, "seed {seed}");
}

/// `SEEDS=n` runs more.
#[test]
fn the_old_state_stays_what_it_was_over_crashes_and_disks_that_fail_and_are_full() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    (0..seeds).for_each(run);
}

#[test]
fn a_log_that_is_shorter_than_it_was_shows_nothing_and_is_left_as_it_is() {
    let world = World::begin();
    let old = world.open();
    (0..6).for_each(|block| write(&*old, block, 99).unwrap());
    drop(old);
    // The header of a record in the middle: all that is behind looks as if a crash had torn it.
    world.files.rot_at(world.files.middle_record());
    let before = world.files.bytes();
    let old = world.open();
    assert_eq!(kept(&old).lost_blocks, u64::from(BLOCKS));
    assert!(kept(&old).why_lost.unwrap().contains("segment 1 cannot be read from byte"));
    assert!(read(&old, Run { start: 20, len: 1 }).is_err(), "nobody knows which blocks the rest had");
    // Replication goes on without it, and what is overwritten now is not kept: it stays lost even if the disk thinks better of it.
    write(&*old, 20, 99).unwrap();
    assert_eq!(world.files.bytes(), before, "it is the evidence");
    drop(old);
    world.files.rot_at(world.files.middle_record());
    let old = world.open();
    assert_eq!((kept(&old).lost_blocks, kept(&old).point), (u64::from(BLOCKS), point()));
    world.files.clone().delete(1).unwrap();
    drop(old);
    assert_eq!(kept(&world.open()).lost_blocks, u64::from(BLOCKS));
    world.marks().clear().unwrap();
    assert!(OldState::open(world.files.clone(), world.marks(), world.image).unwrap().is_none());
}

#[test]
fn content_that_rots_in_the_last_record_costs_its_blocks_and_no_others() {
    let world = World::begin();
    let old = world.open();
    (0..3).for_each(|block| write(&*old, block, 99).unwrap());
    drop(old);
    world.files.rot_at(world.files.last_content());
    let old = world.open();
    assert_eq!(kept(&old).lost_blocks, 0, "nobody has looked at it yet");
    assert!(read(&old, Run { start: 2, len: 1 }).is_err());
    assert_eq!(read(&old, Run { start: 1, len: 1 }).unwrap()[0], 2);
    let last = std::iter::successors(Some(None), |after| old.kept().as_ref()?.aside.as_ref()?.piece_after(*after).map(Some));
    let last = last.last().flatten().unwrap();
    assert!(old.kept().as_mut().unwrap().aside.as_mut().unwrap().check_piece(last).is_err());
}

#[test]
fn a_block_that_the_disk_does_not_give_is_lost_and_stops_nothing() {
    let world = World::begin();
    let old = world.open();
    world.image.0.lock().unwrap().unreadable = vec![3];
    old.write(Run { start: 2, len: 3 }, &[99; 3 * BLOCK_BYTES]).unwrap();
    write(&*old, 3, 98).unwrap();
    world.image.0.lock().unwrap().unreadable.clear();
    for old in [old, world.open()] {
        assert_eq!((kept(&old).lost_blocks, kept(&old).why_lost.is_some()), (1, true));
        assert!(read(&old, Run { start: 3, len: 1 }).is_err());
        assert_eq!([2, 4].map(|start| read(&old, Run { start, len: 1 }).unwrap()[0]), [3, 5]);
    }
}

#[test]
fn a_disk_that_answers_nowhere_has_lost_nothing_yet() {
    let world = World::begin();
    let old = world.open();
    world.image.0.lock().unwrap().unreadable = (0..BLOCKS).collect();
    assert!(write(&*old, 3, 99).is_err());
    world.image.0.lock().unwrap().unreadable.clear();
    write(&*old, 3, 99).unwrap();
    assert_eq!((kept(&old).lost_blocks, read(&old, Run { start: 3, len: 1 }).unwrap()[0]), (0, 4));
}
