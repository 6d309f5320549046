//! Every point that is shown is the volume as it was at that cut, whatever crashed, was thinned or went for want of room.

use super::*;
use crate::catalogue::Persist;
use crate::codec::Encoder;
use crate::pairing::tests::MemoryCatalogue;
use crate::standby::Place;
use crate::undo::{Point, Thin};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::wire::{Attach, Commit, Envelope, EpochDigest, Message};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(in crate::standby) mod disks;
mod going_back;
mod rot;
use disks::{Digests, Disk, Files, Image};

const BLOCK: u64 = BLOCK_BYTES as u64;
const VOLUME: Id = Id([7; 16]);

struct World {
    rng: StdRng,
    image: Arc<Image>,
    journal: Files,
    undo: [Files; LEVELS],
    catalogue: Arc<MemoryCatalogue>,
    digests: Digests,
    keep: Keep,
    standby: Standby<Files>,
    encoder: Encoder,
    /// The volume at each cut, and when that was.
    cuts: BTreeMap<Epoch, (Vec<u8>, u64)>,
    now: Vec<u8>,
    epoch: Epoch,
    clock_ms: u64,
}

fn lineage() -> Lineage {
    Lineage::first(Id([1; 16]))
}

fn frame(message: Message) -> bytes::Bytes {
    Envelope { generation: lineage().current(), message }.encode()
}

impl World {
    fn new(seed: u64, keep: Keep) -> Self {
        let catalogue = Arc::new(MemoryCatalogue::default());
        let place = Place::blank(VOLUME, Id([8; 16]), lineage(), 24 * BLOCK);
        place.store(&*catalogue, Persist::Synced).unwrap();
        let (image, journal) = (Image::new(24), Files::default());
        let mut undo: [Files; LEVELS] = Default::default();
        let disk = undo[0].1.clone();
        undo.iter_mut().for_each(|level| level.1 = disk.clone());
        let digests = Digests::default();
        let standby = open(&image, &journal, &undo, &digests, &catalogue, keep);
        let rng = StdRng::seed_from_u64(seed);
        let encoder = Encoder::new().unwrap();
        let (cuts, now) = (BTreeMap::new(), vec![0; 24]);
        let mut world =
            Self { rng, image, journal, undo, catalogue, digests, keep, standby, encoder, cuts, now, epoch: 0, clock_ms: 1_000_000 };
        world.attach();
        world.send_epoch(1);
        world
    }

    fn attach(&mut self) {
        let attach = Attach { volume: VOLUME, size_bytes: self.now.len() as u64 * BLOCK, lineage: lineage() };
        self.standby.handle_frame(frame(Message::Attach(attach))).unwrap();
    }

    /// An epoch of some blocks, `later_ms` after the last.
    fn send_epoch(&mut self, later_ms: u64) {
        if self.rng.random_bool(0.05) && self.now.len() < 40 {
            self.now.push(0);
        }
        let mut digest = EpochDigest::default();
        for _ in 0..self.rng.random_range(0..5) {
            let start = self.rng.random_range(0..self.now.len());
            let len = self.rng.random_range(1..=(self.now.len() - start).min(3));
            let bytes: Vec<u8> = (0..len).map(|_| self.rng.random_range(0..4_u8) * self.rng.random_range(1..50)).collect();
            self.now[start..start + len].copy_from_slice(&bytes);
            let content: Vec<u8> = bytes.iter().flat_map(|byte| [*byte; BLOCK_BYTES]).collect();
            let blocks = self.encoder.encode(&[Run { start: start as u32, len: len as u32 }], &content);
            digest.add(&blocks);
            self.standby.handle_frame(frame(Message::Blocks(blocks))).unwrap();
        }
        self.epoch += self.rng.random_range(1..3);
        self.clock_ms += later_ms;
        let (blocks, digest) = digest.value();
        let size_bytes = self.now.len() as u64 * BLOCK;
        let commit = Commit { epoch: self.epoch, blocks, digest, size_bytes, cut_unix_ms: self.clock_ms, group: None };
        assert_eq!(self.standby.handle_frame(frame(Message::Commit(commit))).unwrap(), Some(Message::Committed(self.epoch)));
        self.cuts.insert(self.epoch, (self.now.clone(), self.clock_ms));
    }

    fn crash(&mut self) {
        self.image.crash(&mut self.rng);
        self.journal.crash(&mut self.rng);
        self.undo.iter().for_each(|files| files.crash(&mut self.rng));
        self.digests.crash(&mut self.rng);
        *self.undo[0].1.lock().unwrap() = Disk::default();
        self.standby = open(&self.image, &self.journal, &self.undo, &self.digests, &self.catalogue, self.keep);
        self.attach();
    }

    fn try_shown_at(&mut self, view: &mut View) -> Result<Vec<u8>, PastError> {
        let run = Run::covering(0, view.point.size_bytes).unwrap();
        let mut content = vec![0; run.len_bytes() as usize];
        self.standby.read_view(view, run, &mut content)?;
        Ok(content.chunks_exact(BLOCK_BYTES).map(|block| block[0]).collect())
    }

    fn shown_at(&mut self, view: &mut View) -> Vec<u8> {
        self.try_shown_at(view).unwrap()
    }

    /// Holds every point against the model; returns them.
    fn check(&mut self) -> Vec<Epoch> {
        let points = self.standby.points().unwrap();
        assert_eq!(points.last().unwrap().point.epoch, self.epoch);
        for kept in &points {
            if self.standby.fold.undo.is_none() {
                break;
            }
            let (blocks, cut_ms) = self.cuts[&kept.point.epoch].clone();
            let mut view = self.standby.open_view(kept.point.epoch).unwrap();
            assert_eq!(
                view.point,
                Point { epoch: kept.point.epoch, size_bytes: blocks.len() as u64 * BLOCK, cut_unix_ms: cut_ms, group: None }
            );
            assert_eq!(self.shown_at(&mut view), blocks, "point {}", kept.point.epoch);
            self.standby.close_view(&view);
        }
        self.scrub();
        assert!(self.standby.damaged().is_empty(), "nobody has damaged anything");
        points.iter().map(|kept| kept.point.epoch).collect()
    }

    /// Points that nothing may have taken away yet: young, and a while after the one before.
    fn owed(&self) -> Vec<Epoch> {
        let mut before_ms = 0;
        let mut owed = Vec::new();
        for (epoch, (_, cut_ms)) in &self.cuts {
            if *cut_ms >= before_ms + 1000 && cut_ms + self.keep.thin[0].after_ms >= self.clock_ms {
                owed.push(*epoch);
            }
            before_ms = *cut_ms;
        }
        owed
    }
}

fn open(
    image: &Arc<Image>,
    journal: &Files,
    undo: &[Files; LEVELS],
    digests: &Digests,
    catalogue: &Arc<MemoryCatalogue>,
    keep: Keep,
) -> Standby<Files> {
    let place = Place::load(VOLUME, &**catalogue).unwrap().unwrap();
    let mut standby = Standby::open(place, journal.clone(), 1 << 30, image.clone(), catalogue.clone()).unwrap();
    standby.check_digests(Box::new(digests.clone())).unwrap();
    standby.keep_points(undo.clone(), keep).unwrap();
    standby
}

/// All for a minute, then one in ten seconds, then one a minute, for half an hour.
fn keep() -> Keep {
    let thin = [Thin { after_ms: 60_000, every_ms: 10_000 }, Thin { after_ms: 300_000, every_ms: 60_000 }];
    Keep { span_ms: 1_800_000, max_bytes: u64::MAX, thin, crowd: 1 }
}

fn run(seed: u64) {
    let mut world = World::new(seed, keep());
    for _ in 0..300 {
        match world.rng.random_range(0..100) {
            0..40 => {
                let later_ms = [4, 1500, 30_000][world.rng.random_range(0..3)];
                world.send_epoch(later_ms);
            }
            40..70 => drop(world.standby.fold_one().unwrap()),
            70..95 => drop(world.standby.tidy_points(u64::MAX)),
            95..98 => world.crash(),
            _ => drop(world.check()),
        }
    }
    let points = world.check();
    for epoch in world.owed() {
        assert!(points.contains(&epoch), "seed {seed}: point {epoch} is gone: {points:?}");
    }
    assert_eq!(world.standby.lost_points(), None);
}

/// The undo's disk and the image's fail, are full and work again; points are kept or not; views stay open all the time.
fn run_on_bad_disks(seed: u64) {
    let mut world = World::new(seed, keep());
    let mut views: Vec<(View, Vec<u8>)> = Vec::new();
    for _ in 0..300 {
        match world.rng.random_range(0..100) {
            0..30 => world.send_epoch(1500),
            30..60 => drop(world.standby.fold_one()),
            60..70 => drop(world.standby.tidy_points(u64::MAX)),
            70..80 => {
                let Some(chosen) = (!views.is_empty()).then(|| world.rng.random_range(0..views.len())) else { continue };
                let (view, blocks) = &mut views[chosen];
                match world.try_shown_at(view) {
                    Ok(shown) => assert_eq!(shown, *blocks, "seed {seed}: point {}", view.point.epoch),
                    Err(PastError::Disk(_)) => {}
                    Err(PastError::NotKept(_)) => world.standby.close_view(&views.swap_remove(chosen).0),
                }
            }
            80..84 => {
                let epoch = *world.cuts.keys().nth_back(world.rng.random_range(0..world.cuts.len().min(5))).unwrap();
                views.extend(world.standby.open_view(epoch).ok().map(|view| (view, world.cuts[&epoch].0.clone())));
            }
            84..90 => world.undo[0].1.lock().unwrap().fails ^= true,
            90..92 => world.undo[0].1.lock().unwrap().room = Some(world.undo[0].used_bytes()),
            92..95 => world.image.0.lock().unwrap().sync_fails ^= true,
            95..98 => {
                views.clear();
                let span_ms = [0, keep().span_ms, keep().span_ms][world.rng.random_range(0..3)];
                world.keep = Keep { span_ms, ..keep() };
                world.crash();
            }
            _ => {
                *world.undo[0].1.lock().unwrap() = Disk::default();
                world.image.0.lock().unwrap().sync_fails = false;
                world.check();
            }
        }
    }
    world.crash();
    world.check();
}

/// `SEEDS=n` runs more.
#[test]
fn whatever_fails_no_point_is_shown_as_it_was_not() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(40);
    (0..seeds).for_each(run_on_bad_disks);
}

/// `SEEDS=n` runs more.
#[test]
fn every_point_is_the_volume_at_its_cut_after_crashes_and_thinning() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(20);
    (0..seeds).for_each(run);
}

#[test]
fn points_get_fewer_as_they_age_and_end() {
    let mut world = World::new(1, keep());
    for _ in 0..2000 {
        world.send_epoch(2000);
        while world.standby.fold_one().unwrap() || world.standby.tidy_points(u64::MAX) {}
    }
    let points = world.check();
    let ages: Vec<u64> = points.iter().map(|epoch| world.clock_ms - world.cuts[epoch].1).collect();
    let within = |from, to| ages.iter().filter(|age| (from..to).contains(*age)).count();
    assert_eq!(within(0, 60_000), 30);
    assert!((23..=30).contains(&within(70_000, 300_000)), "{ages:?}");
    assert!((23..=26).contains(&within(360_000, 1_800_000)), "{ages:?}");
    assert_eq!(within(1_800_001, u64::MAX), 0);
}

#[test]
fn a_primary_whose_clock_is_ahead_ends_and_thins_no_point() {
    let mut world = World::new(4, keep());
    for _ in 0..20 {
        world.send_epoch(2000);
        while world.standby.fold_one().unwrap() {}
    }
    let (points, here_ms) = (world.check(), world.clock_ms);
    for ahead_ms in [3 * 3_600_000, 10 * 365 * 86_400_000, u64::MAX - 100_000_000_000_000] {
        world.clock_ms = here_ms;
        world.send_epoch(ahead_ms);
        while world.standby.fold_one().unwrap() || world.standby.tidy_points(here_ms) {}
        assert_eq!(world.check()[..points.len()], points);
    }
}

/// Lesson: a snapshot in use is pruned (ceph#39155).
#[test]
fn a_view_that_is_read_stays_what_it_was_while_replication_goes_on() {
    let mut world = World::new(2, keep());
    let mut views = Vec::new();
    for _ in 0..200 {
        world.send_epoch(5000);
        if world.rng.random_bool(0.1) {
            views.push((world.standby.open_view(world.epoch).unwrap(), world.now.clone()));
        }
        for (view, blocks) in &mut views {
            world.standby.fold_one().unwrap();
            assert_eq!(world.shown_at(view), *blocks);
        }
        world.standby.tidy_points(u64::MAX);
    }
}

#[test]
fn a_full_disk_takes_the_oldest_points_and_stops_nothing() {
    let mut world = World::new(3, keep());
    for _ in 0..60 {
        world.send_epoch(1500);
        while world.standby.fold_one().unwrap() {}
    }
    let before = world.check();
    world.undo[0].1.lock().unwrap().room = Some(world.undo[0].used_bytes() / 4);
    let mut was_told = false;
    for _ in 0..60 {
        world.send_epoch(1500);
        while world.standby.fold_one().unwrap() {}
        was_told |= world.standby.lost_points().is_some_and(|why| why.contains("full"));
    }
    let after = world.check();
    assert!(!after.contains(&before[0]) && was_told, "{after:?}");
    world.undo[0].1.lock().unwrap().room = None;
    world.send_epoch(1500);
    assert!(world.check().len() >= 2);
    assert_eq!(world.standby.lost_points(), None);
}

#[test]
fn a_full_image_takes_older_points_only_where_that_frees_room_for_it() {
    for (disk, are_kept) in [(UndoDisk::Apart, true), (UndoDisk::WithImage, false)] {
        let mut world = World::new(5, keep());
        for _ in 0..20 {
            world.send_epoch(1500);
        }
        let before = world.check();
        world.standby.set_undo_disk(disk);
        {
            let mut image = world.image.0.lock().unwrap();
            (image.writes_left, image.is_full) = (Some(0), true);
        }
        (0..5).for_each(|_| world.send_epoch(1500));
        let error = (0..1000).find_map(|_| world.standby.fold_one().err()).expect("an image without room");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        world.image.0.lock().unwrap().writes_left = None;
        let after = world.check();
        assert_eq!(after.starts_with(&before), are_kept, "{disk:?}: {after:?}");
    }
}

#[test]
fn what_a_merge_moved_whose_end_found_no_room_is_in_no_other_point() {
    for seed in 0..8 {
        let mut world = World::new(5 + seed, keep());
        for _ in 0..120 {
            world.send_epoch(1500);
            while world.standby.fold_one().unwrap() {}
        }
        let mut has_failed = false;
        for _ in 0..400 {
            let at_end = world.standby.fold.undo.as_ref().unwrap().is_merge_at_end();
            if at_end && !has_failed {
                has_failed = true;
                world.undo[0].1.lock().unwrap().room = Some(world.undo[1].used_bytes());
                world.standby.tidy_points(u64::MAX);
                world.undo[0].1.lock().unwrap().room = None;
            } else if !world.standby.tidy_points(u64::MAX) {
                break;
            }
        }
        assert!(has_failed);
        for _ in 0..120 {
            world.send_epoch(1500);
            while world.standby.fold_one().unwrap() || world.standby.tidy_points(u64::MAX) {}
        }
        world.check();
    }
}
