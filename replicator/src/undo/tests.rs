//! Cut anywhere, undo opens with the batches that are whole.

use super::*;
use crate::standby::{Board, SegmentDir};
use replicator_engine::block::BLOCK_BYTES;
use replicator_engine::generation::{Id, Lineage};
use std::path::Path;
use std::sync::Arc;

fn generation() -> Generation {
    Lineage::first(Id([1; 16])).current()
}

fn open(dir: &Path, folded: Epoch) -> Undo<SegmentDir> {
    let files = [0, 1, 2].map(|level| SegmentDir::open(&dir.join(level.to_string())).unwrap());
    Undo::open(files, Keep::default(), GroupPlace::default(), generation(), folded, folded).unwrap()
}

fn point(epoch: Epoch) -> Point {
    Point { epoch, size_bytes: 8 * BLOCK_BYTES as u64, cut_unix_ms: epoch * 1000, group: None }
}

fn save(undo: &mut Undo<SegmentDir>, block: u32, byte: u8, from: Epoch, until: Epoch) {
    undo.save(&[Run { start: block, len: 1 }], &[byte; BLOCK_BYTES]).unwrap();
    undo.seal(point(from), from, until).unwrap();
}

fn first_bytes(undo: &mut Undo<SegmentDir>, epoch: Epoch) -> Vec<u8> {
    let mut view = undo.view(epoch).unwrap();
    let mut content = vec![0; 8 * BLOCK_BYTES];
    undo.read(&mut view, Run { start: 0, len: 8 }, &mut content).unwrap();
    content.chunks_exact(BLOCK_BYTES).map(|block| block[0]).collect()
}

fn epochs(undo: &Undo<SegmentDir>) -> Vec<Epoch> {
    undo.points().map(|kept| kept.point.epoch).collect()
}

#[test]
fn cut_anywhere_it_opens_with_the_batches_that_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let segment = dir.path().join("0/0000000000000001.seg");
    let mut undo = open(dir.path(), 0);
    let ends: Vec<u64> = [(1, 2), (2, 4), (4, 5)]
        .map(|(from, until)| {
            save(&mut undo, 3, from as u8, from, until);
            std::fs::metadata(&segment).unwrap().len()
        })
        .into();
    drop(undo);
    let whole = std::fs::read(&segment).unwrap();
    let borders = ends.iter().flat_map(|end| [end - 1, *end]).map(|len| len as usize);
    for len in (0..=whole.len()).step_by(7).chain(borders) {
        let here = tempfile::tempdir().unwrap();
        drop(open(here.path(), 0));
        std::fs::write(here.path().join("0/0000000000000001.seg"), &whole[..len]).unwrap();
        let count = ends.iter().filter(|end| **end <= len as u64).count();
        let sealed = [0, 2, 4, 5][count];
        let mut undo = open(here.path(), sealed);
        assert_eq!(epochs(&undo), [1, 2, 4][..count], "cut at {len}");
        if count > 0 {
            assert_eq!(first_bytes(&mut undo, 1)[3], 1);
            assert_eq!(undo.sealed(), Some(sealed));
            save(&mut undo, 5, 9, sealed, sealed + 1);
            assert_eq!(epochs(&open(here.path(), sealed + 1)).len(), count + 1, "cut at {len}, then written again");
        }
    }
}

/// What is folded after a crash is not saved unless undo says from where on: an idle night must not take the last of it.
#[test]
fn in_a_group_some_undo_is_left_however_old_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut undo = open(dir.path(), 0);
    undo.keep.span_ms = 0;
    undo.place = GroupPlace::new(Some((Arc::new(Board::new(Id([1; 16]), 2)), 0)));
    save(&mut undo, 3, 1, 1, 2);
    let night_ms = 12 * 3_600_000;
    while undo.tidy_one(night_ms).unwrap() {}
    assert_eq!(undo.sealed(), Some(2));
    save(&mut undo, 3, 2, 2, 3);
    while undo.tidy_one(night_ms).unwrap() {}
    assert_eq!((epochs(&undo), undo.sealed()), (vec![2], Some(3)));
}

#[test]
fn undo_that_does_not_lead_to_the_image_is_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut undo = open(dir.path(), 0);
    save(&mut undo, 3, 1, 1, 2);
    assert_eq!(epochs(&open(dir.path(), 2)), [1]);
    assert_eq!(epochs(&open(dir.path(), 3)), [0; 0]);
    assert_eq!(epochs(&open(dir.path(), 2)), [0; 0], "for good");
}

#[test]
fn the_oldest_content_since_a_point_is_what_it_shows() {
    let dir = tempfile::tempdir().unwrap();
    let mut undo = open(dir.path(), 0);
    save(&mut undo, 3, 1, 1, 2);
    save(&mut undo, 3, 2, 2, 3);
    save(&mut undo, 4, 3, 3, 4);
    assert_eq!(first_bytes(&mut undo, 1), [0, 0, 0, 1, 3, 0, 0, 0]);
    assert_eq!(first_bytes(&mut undo, 2), [0, 0, 0, 2, 3, 0, 0, 0]);
    assert_eq!(first_bytes(&mut undo, 3), [0, 0, 0, 0, 3, 0, 0, 0]);
}

#[test]
fn a_flipped_bit_is_an_error_where_it_is_read_and_not_content() {
    let dir = tempfile::tempdir().unwrap();
    let mut undo = open(dir.path(), 0);
    save(&mut undo, 3, 1, 1, 2);
    let segment = dir.path().join("0/0000000000000001.seg");
    let first_len = std::fs::metadata(&segment).unwrap().len();
    save(&mut undo, 4, 2, 2, 3);
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[100] ^= 4;
    assert!(first_len > 100);
    std::fs::write(&segment, bytes).unwrap();
    let mut undo = open(dir.path(), 3);
    let (mut view, mut content) = (undo.view(1).unwrap(), vec![0; 8 * BLOCK_BYTES]);
    let error = undo.read(&mut view, Run { start: 0, len: 8 }, &mut content).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    assert_eq!(first_bytes(&mut undo, 2)[4], 2);
}
