//! The power goes at each write, one after the other: whatever is on the disk then, it opens, and shows what it must.

use crate::history::{Cut, History};
use crate::primary::{Peer, Replica};
use crate::site::{AMPLE_BYTES, Crash, Part, Role, Site};
use crate::standby::{self, VOLUME};
use crate::storage::{Faults, SimCatalogue, SimFiles, Stamps, Storage, View, conforms};
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use replicator::catalogue::Persist;
use replicator::codec::Encoder;
use replicator::intake::{ActivityLog, EXTENT_BLOCKS};
use replicator::journal::Journal;
use replicator::primary::memory::EpochNumbers;
use replicator::standby::{Place, Standby};
use replicator_engine::acknowledgement::{OnDisconnect, Promise, Rules};
use replicator_engine::block::{BLOCK_BYTES, Run};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Attach, Commit, Envelope, EpochDigest, Message};
use std::sync::Arc;

const BLOCKS: u32 = 8;
const SIZE_BYTES: u64 = BLOCKS as u64 * BLOCK_BYTES as u64;
const EPOCHS: Epoch = 6;
const RULES: Rules = Rules { wanted: Promise::Local, on_disconnect: OnDisconnect::Continue, ack_timeout_ms: 1000 };
/// Ways in which the power takes what was not synced.
const WAYS: u64 = 8;

fn lineage() -> Lineage {
    Lineage::first(Id([1; 16]))
}

fn frame(message: Message) -> Bytes {
    Envelope { generation: lineage().current(), message }.encode()
}

/// An epoch writes two blocks, and makes zeroes of a third.
fn written(epoch: Epoch) -> [(u32, u64); 3] {
    let block = epoch as u32 % BLOCKS;
    [(block, epoch * 100), ((block + 3) % BLOCKS, epoch * 100 + 50), ((block + 5) % BLOCKS, 0)]
}

fn epoch_frames(epoch: Epoch) -> Vec<Bytes> {
    let (mut encoder, mut digest) = (Encoder::new().unwrap(), EpochDigest::default());
    let mut frames: Vec<_> = written(epoch)
        .map(|(start, stamp)| {
            let content = stamp.to_le_bytes().repeat(BLOCK_BYTES / 8);
            let blocks = encoder.encode(&[Run { start, len: 1 }], &content);
            digest.add(&blocks);
            frame(Message::Blocks(blocks))
        })
        .into();
    let (blocks, digest) = digest.value();
    frames.push(frame(Message::Commit(Commit { epoch, blocks, digest, size_bytes: SIZE_BYTES, cut_unix_ms: epoch, group: None })));
    frames
}

fn view_at(epoch: Epoch) -> View {
    let mut view = View::new();
    for (block, stamp) in (1..=epoch).flat_map(written) {
        view.insert(block, [stamp; BLOCK_BYTES / 512]);
    }
    view.retain(|_, stamps| *stamps != Stamps::default());
    view
}

fn standby_storage(rng: &mut StdRng) -> Storage {
    let storage = Storage::new(SIZE_BYTES, rng, None);
    Place::blank(VOLUME, Id([8; 16]), lineage(), SIZE_BYTES).store(&*storage.catalogue, Persist::Synced).unwrap();
    storage
}

/// Receives epochs and folds them, as far as the disk lets it: the last that was acknowledged.
fn receive(storage: &Storage) -> Epoch {
    let mut acknowledged = 0;
    let mut work = || -> Option<()> {
        let mut standby = standby::open(storage, AMPLE_BYTES).ok()?;
        let attach = Attach { volume: VOLUME, size_bytes: SIZE_BYTES, lineage: lineage() };
        standby.handle_frame(frame(Message::Attach(attach))).ok()?;
        for epoch in 1..=EPOCHS {
            for frame in epoch_frames(epoch) {
                standby.handle_frame(frame).ok()?;
            }
            acknowledged = epoch;
            if epoch % 2 == 0 {
                while standby.fold_one().ok()? {}
            }
        }
        Some(())
    };
    work();
    acknowledged
}

/// Calls `crash` with more and more writes before the power goes, until it says that it did not.
fn at_each_write(crash: impl Fn(u32, &mut StdRng) -> bool) -> u32 {
    let all_went = |writes: &u32| (0..WAYS).any(|way| crash(*writes, &mut StdRng::seed_from_u64(way)));
    let cuts = (0..10_000).take_while(all_went).count() as u32;
    assert!(cuts > 3, "nothing was written");
    cuts
}

#[test]
fn a_standby_that_loses_its_power_at_any_write_shows_what_it_acknowledged() {
    let cuts = at_each_write(|writes, rng| {
        let storage = standby_storage(rng);
        storage.faults.light_fuse(writes);
        let acknowledged = receive(&storage);
        let went = storage.faults.is_out();
        storage.faults.replace_fuse();
        storage.lose_power(rng);
        let mut standby: Standby<_> = standby::open(&storage, AMPLE_BYTES).unwrap();
        let (epoch, _) = standby.settle().unwrap();
        assert!(epoch >= acknowledged, "after {writes} writes {epoch} is shown, {acknowledged} was acknowledged");
        if epoch > 0 {
            assert_eq!(storage.image.view(), view_at(epoch), "epoch {epoch} after {writes} writes");
        }
        went
    });
    assert!(cuts > 4 * EPOCHS as u32, "{cuts} writes for {EPOCHS} epochs");
}

#[test]
fn a_promotion_that_loses_its_power_at_any_write_leaves_a_standby_or_a_primary_with_numbers_of_its_own() {
    at_each_write(|writes, rng| {
        let mut site =
            Site { storage: standby_storage(rng), ..Site::standby(SIZE_BYTES, lineage(), vec![Peer::Any], vec![RULES], rng, None) };
        receive(&site.storage);
        site.start();
        let mut history = History::default();
        history.frozen(lineage().current().id, EPOCHS, Cut { size_bytes: SIZE_BYTES, view: view_at(EPOCHS) });
        site.storage.faults.light_fuse(writes);
        let _ = site.promote(Id([2; 16]), None, &history);
        let went = site.storage.faults.is_out();
        site.crash(Crash::Power, rng);
        let first = EpochNumbers::first_unused(&site.storage.catalogue.unfailing(), VOLUME).unwrap();
        site.restart();
        match (&site.part, site.record.role) {
            (Part::Standby(_), Role::Standby) => {}
            (Part::Primary(primary), Role::Primary) => {
                assert!(first > EPOCHS, "its next epoch is {first} after {writes} writes");
                assert_eq!(primary.to(1).and_then(Replica::known).map(|known| known.acked), Some(EPOCHS));
            }
            (_, role) => panic!("{role:?} after {writes} writes"),
        }
        went
    });
}

#[test]
fn an_extent_is_hot_after_any_loss_of_power_once_it_was_written_to() {
    at_each_write(|writes, rng| {
        let storage = standby_storage(rng);
        let log = ActivityLog::open(storage.catalogue.clone(), b"al/".to_vec()).unwrap();
        storage.faults.light_fuse(writes);
        let extent = |number: u32| Run { start: number * EXTENT_BLOCKS, len: 1 };
        let heated = (0..6).take_while(|number| log.heat([extent(*number)]).is_ok()).count() as u32;
        let went = storage.faults.is_out();
        storage.faults.replace_fuse();
        storage.lose_power(rng);
        let log = ActivityLog::open(storage.catalogue.clone(), b"al/".to_vec()).unwrap();
        assert!((0..heated).all(|number| log.covers(extent(number))), "{heated} extents were hot, found {:?}", log.hot());
        went
    });
}

fn journal(storage: &Storage, expected: Epoch) -> (Journal<SimFiles>, Option<Epoch>) {
    let (journal, commit) = Journal::open(storage.files.clone(), AMPLE_BYTES, 0, expected).unwrap();
    (journal, commit.map(|commit| commit.epoch))
}

fn commit_frame(epoch: Epoch) -> Bytes {
    epoch_frames(epoch).pop().unwrap()
}

/// Its records are in the page cache only.
#[test]
fn a_commit_that_a_killed_process_left_is_durable_before_anybody_is_told_of_it() {
    for way in 0..WAYS {
        let rng = &mut StdRng::seed_from_u64(way);
        let storage = standby_storage(rng);
        let (mut killed, _) = journal(&storage, 0);
        killed.append(&commit_frame(1)).unwrap();
        let (_, found) = journal(&storage, 0);
        assert_eq!(found, Some(1));
        storage.lose_power(rng);
        assert_eq!(journal(&storage, 1).1, Some(1), "the primary knows of it");
    }
}

/// After it the page cache shows what no later sync writes.
#[test]
fn a_commit_whose_sync_failed_is_not_found_again() {
    let rng = &mut StdRng::seed_from_u64(0);
    let storage = standby_storage(rng);
    let (mut open, _) = journal(&storage, 0);
    open.commit(&commit_frame(1)).unwrap();
    storage.faults.fail_next_sync();
    open.commit(&commit_frame(2)).unwrap_err();
    assert_eq!(journal(&storage, 1).1, Some(1), "a process that begins anew reads the page cache, too");
    storage.lose_power(rng);
    assert_eq!(journal(&storage, 1).1, Some(1));
}

#[test]
fn the_simulated_catalogue_conforms() {
    let faults = Arc::new(Faults::new(0, None));
    conforms(|before: Option<SimCatalogue>| before.map_or_else(|| SimCatalogue::new(faults.clone()), |before| before.fork(faults.clone())));
}
