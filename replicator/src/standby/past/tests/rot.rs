//! A disk that does not give back what was written.

use super::*;
use crate::standby::Round;
use replicator_engine::wire::{Against, Compare};

impl World {
    fn send_block(&mut self, block: u32, byte: u8) {
        self.send_blocks(block, &[byte]);
    }

    /// The primary writes neighbouring blocks in an epoch of their own.
    fn send_blocks(&mut self, start: u32, bytes: &[u8]) {
        self.now[start as usize..][..bytes.len()].copy_from_slice(bytes);
        let mut digest = EpochDigest::default();
        let content: Vec<u8> = bytes.iter().flat_map(|byte| [*byte; BLOCK_BYTES]).collect();
        let blocks = self.encoder.encode(&[Run { start, len: bytes.len() as u32 }], &content);
        digest.add(&blocks);
        self.standby.handle_frame(frame(Message::Blocks(blocks))).unwrap();
        (self.epoch, self.clock_ms) = (self.epoch + 1, self.clock_ms + 1500);
        let (blocks, digest) = digest.value();
        let size_bytes = self.now.len() as u64 * BLOCK;
        let commit = Commit { epoch: self.epoch, blocks, digest, size_bytes, cut_unix_ms: self.clock_ms, group: None };
        self.standby.handle_frame(frame(Message::Commit(commit))).unwrap();
        self.cuts.insert(self.epoch, (self.now.clone(), self.clock_ms));
    }

    /// A whole round.
    pub(super) fn scrub(&mut self) {
        self.standby.begin_scrub();
        let mut round = Round::Image;
        while round != Round::Ended {
            assert!(self.standby.can_scrub());
            let done = self.standby.scrub_one(round, 1).map(|step| step.next);
            round = done.unwrap_or_else(|error| self.standby.give_up_unreadable(round, &error));
        }
    }

    fn fold(&mut self) {
        while self.standby.fold_one().unwrap() {}
    }

    fn damaged(&self) -> Vec<u32> {
        self.standby.damaged().iter().collect()
    }

    /// A primary that has the volume as it is compares all of it.
    fn verify(&mut self) -> Vec<Run> {
        let mut question = Compare::new(1, Against::Point);
        let content: Vec<u8> = self.now.iter().flat_map(|byte| [*byte; BLOCK_BYTES]).collect();
        crate::codec::add_content(&mut question, 0..self.now.len() as u32, &content);
        match self.standby.handle_frame(frame(Message::Compare(question))).unwrap() {
            Some(Message::Compared(compared)) => compared.different,
            other => panic!("{other:?}"),
        }
    }
}

fn world() -> World {
    let mut world = World::new(7, keep());
    (0..6).for_each(|block| world.send_block(block, 10 + block as u8));
    world.fold();
    world
}

#[test]
fn a_damaged_block_is_found_and_a_repair_mends_the_older_points_with_it() {
    let mut world = world();
    let older = world.check();
    [3, 20].iter().for_each(|block| world.image.rot(*block));
    world.scrub();
    assert_eq!(world.damaged(), [3, 20], "what was written, and what never was");
    world.standby.remember_health();
    world.crash();
    assert_eq!(world.damaged(), [3, 20], "a restart remembers");
    world.send_block(3, 13);
    world.send_block(20, 0);
    world.fold();
    assert_eq!(world.damaged(), [0; 0]);
    let health = world.standby.health().unwrap();
    assert_eq!((health.found, health.repaired, health.unknown), (2, 2, 0));
    assert!(world.check().starts_with(&older), "no point was lost, and each is right");
}

impl World {
    /// Holds every point but the newest against the model, but for a block that is lost to some of them; returns how many those are.
    fn check_but(&mut self, lost: u32) -> usize {
        let points = self.standby.points().unwrap();
        for kept in &points {
            let (blocks, _) = self.cuts[&kept.point.epoch].clone();
            let mut view = self.standby.open_view(kept.point.epoch).unwrap();
            for (block, expected) in (0..).zip(&blocks) {
                let mut content = [0; BLOCK_BYTES];
                let read = self.standby.read_view(&mut view, Run { start: block, len: 1 }, &mut content);
                match read {
                    Ok(()) => assert_eq!(content[0], *expected, "block {block} of point {}", kept.point.epoch),
                    Err(_) => assert!(block == lost && kept.lost_blocks == 1, "block {block} of point {}", kept.point.epoch),
                }
            }
            self.standby.close_view(&view);
        }
        points.iter().filter(|kept| kept.lost_blocks > 0).count()
    }
}

#[test]
fn a_damaged_block_that_is_overwritten_is_lost_to_the_points_that_need_it_and_costs_nothing_else() {
    let mut world = world();
    world.send_block(3, 50);
    world.fold();
    let before = world.check().len();
    world.image.rot(3);
    // The guest has written there since, and the disk had lost what was there before.
    world.send_block(3, 99);
    world.send_block(3, 98);
    world.fold();
    assert_eq!(world.damaged(), [0; 0]);
    assert!(world.standby.lost_points().unwrap().contains("block 3"));
    assert_eq!(world.check_but(3), 1, "older ones have it in their undo");
    assert_eq!(world.standby.points().unwrap().len(), before + 2);
    world.crash();
    assert_eq!(world.check_but(3), 1);
    // Thinned, scrubbed, and one day gone.
    world.clock_ms += 200_000;
    world.send_epoch(1500);
    while world.standby.tidy_points(u64::MAX) {}
    world.scrub();
    assert!(world.check_but(3) <= 1 && world.standby.points().unwrap().len() > 1);
}

#[test]
fn a_block_that_cannot_be_read_and_that_nobody_knows_is_not_saved_as_zeroes() {
    for content in [&[99, 44][..], &[99]] {
        let mut world = world();
        world.place_anew();
        world.image.0.lock().unwrap().unreadable = vec![3];
        world.send_blocks(3, content);
        world.fold();
        world.image.0.lock().unwrap().unreadable.clear();
        assert!(world.check_but(3) > 0, "no older point shows what could not be read");
        assert!(world.standby.lost_points().unwrap().contains("block 3"));
    }
}

#[test]
fn digests_that_somebody_removed_make_no_block_wrong() {
    let mut world = world();
    let before = world.check();
    world.digests.remove();
    world.crash();
    assert_eq!(world.standby.health().unwrap().unknown, world.now.len() as u64);
    world.scrub();
    assert_eq!(world.damaged(), [0; 0]);
    world.send_block(3, 99);
    world.fold();
    assert!(world.check().starts_with(&before));
}

#[test]
fn a_block_that_was_mended_before_a_crash_is_not_called_damaged_after_the_next_round() {
    let mut world = world();
    world.image.rot(3);
    world.scrub();
    world.standby.remember_health();
    world.send_block(3, 13);
    world.fold();
    world.crash();
    assert_eq!(world.damaged(), [3], "what is recorded is older");
    world.scrub();
    let health = world.standby.health().unwrap();
    assert_eq!((health.damaged, health.found, health.repaired), (0, 1, 1));
}

#[test]
fn one_wrong_answer_of_the_disk_costs_no_point() {
    let mut world = world();
    let before = world.check();
    world.image.0.lock().unwrap().wrong_once = Some(3);
    world.send_block(3, 99);
    world.fold();
    assert!(world.check().starts_with(&before));
    assert_eq!(world.standby.health().unwrap().found, 0);
}

#[test]
fn damage_is_not_shown_to_whoever_reads_a_point() {
    let mut world = world();
    world.image.rot(3);
    let mut view = world.standby.open_view(world.epoch).unwrap();
    assert!(matches!(world.try_shown_at(&mut view), Err(PastError::Disk(_))));
    assert_eq!(world.damaged(), [3]);
    world.send_block(3, 13);
    world.fold();
    let (blocks, _) = world.cuts[&view.point.epoch].clone();
    assert_eq!(world.shown_at(&mut view), blocks);
}

#[test]
fn undo_that_cannot_be_read_costs_the_points_that_need_it_before_somebody_does() {
    let mut world = world();
    let before = world.check();
    world.undo[0].rot();
    world.scrub();
    let after = world.check();
    assert!(before.ends_with(&after) && after.len() < before.len(), "{after:?}");
    assert!(world.standby.lost_points().unwrap().contains("cannot be read"));
}

#[test]
fn what_rots_in_the_newest_undo_looks_like_no_crash() {
    let mut world = world();
    let before = world.check();
    world.undo[0].rot_at(world.undo[0].last_content());
    world.crash();
    let points: Vec<_> = world.standby.points().unwrap().iter().map(|kept| kept.point.epoch).collect();
    assert_eq!(points, before, "only who needs it fails");
}

#[test]
fn a_copy_that_brings_its_content_is_checked_once_the_primary_has_confirmed_it() {
    let mut world = world();
    // An old primary has other blocks, and a name of its own as a copy.
    world.place_anew();
    let blocks = world.now.len() as u64;
    assert_eq!(world.standby.health().unwrap().unknown, blocks);
    world.image.rot(3);
    world.scrub();
    assert_eq!(world.damaged(), [0; 0], "nobody has said what should be there");
    assert_eq!(world.verify(), [Run { start: 3, len: 1 }]);
    assert_eq!(world.standby.health().unwrap().unknown, 1);
    world.image.rot(5);
    assert_eq!(world.verify(), [Run { start: 3, len: 1 }, Run { start: 5, len: 1 }]);
    assert_eq!(world.damaged(), [5], "a comparison tells damage from a copy that is wrong");
    world.standby.remember_health();
    world.crash();
    assert_eq!((world.standby.health().unwrap().unknown, world.damaged()), (1, vec![5]));
}

#[test]
fn digests_that_cannot_be_written_are_void_and_stop_nothing() {
    let mut world = world();
    world.digests.fail();
    world.send_block(1, 50);
    world.fold();
    assert!(world.standby.health().unwrap().void.is_some());
    world.image.rot(2);
    world.scrub();
    assert_eq!(world.damaged(), [0; 0]);
    world.image.rot(2);
    world.crash();
    let health = world.standby.health().unwrap();
    assert_eq!((health.void, health.unknown), (None, world.now.len() as u64), "they begin anew");
    world.check();
}

impl World {
    /// The copy is another one from now on, at the same point.
    fn place_anew(&mut self) {
        let place = Place { replica: Id([9; 16]), ..self.standby.place().clone() };
        place.store(&*self.catalogue, Persist::Synced).unwrap();
        self.crash();
    }
}
