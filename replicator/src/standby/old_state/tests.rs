//! Whatever crashes and fails, the old state is shown as it was, or an error.

use super::super::past::tests::disks::{Files, Image};
use super::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use replicator_engine::block::BLOCK_BYTES;
use replicator_engine::generation::{Id, Lineage};

const BLOCKS: u32 = 24;

fn open(files: &Files, image: &Arc<Image>) -> Arc<OldState<Files>> {
    let generation = Lineage::first(Id([1; 16])).current();
    OldState::open(files.clone(), generation, image.clone()).unwrap().expect("something is kept")
}

fn shown(old: &OldState<Files>) -> Vec<u8> {
    let content = old.read_old(Run { start: 0, len: BLOCKS }).unwrap();
    content.chunks_exact(BLOCK_BYTES).map(|block| block[0]).collect()
}

fn run(seed: u64) {
    let (mut rng, files, image) = (StdRng::seed_from_u64(seed), Files::default(), Image::new(BLOCKS as usize));
    let page = |byte| Pages::new(1).iter().map(|_| byte).collect::<Vec<u8>>();
    for block in 0..BLOCKS / 2 {
        image.write(Run { start: block, len: 1 }, &page(rng.random_range(1..9))).unwrap();
    }
    image.sync().unwrap();
    let before = image.blocks();
    let point = Point { epoch: 7, size_bytes: u64::from(BLOCKS) * BLOCK_BYTES as u64, cut_unix_ms: 1, group: None };
    Aside::begin(files.clone(), Lineage::first(Id([1; 16])).current(), point).unwrap();
    let mut old = open(&files, &image);
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
                old = open(&files, &image);
            }
            _ => assert_eq!(shown(&old), before, "seed {seed}"),
        }
    }
    assert_eq!((shown(&old), old.kept().unwrap().point), (before, point), "seed {seed}");
}

/// `SEEDS=n` runs more.
#[test]
fn the_old_state_stays_what_it_was_over_crashes_and_disks_that_fail_and_are_full() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    (0..seeds).for_each(run);
}
