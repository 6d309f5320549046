//! Cut at every byte, the journal opens at the last commit that is whole.

use super::*;
use replicator_engine::block::Run;
use replicator_engine::generation::{Generation, Id};
use replicator_engine::wire::{Blocks, Commit, Content, Encoding};
use std::collections::BTreeMap;

#[derive(Clone, Default)]
struct Memory(BTreeMap<u64, Vec<u8>>, Disk);

#[derive(Clone, Copy, Default, PartialEq)]
enum Disk {
    #[default]
    Good,
    Full {
        room_bytes: usize,
    },
    /// Names go, but nobody knows whether for good.
    CannotSync,
}

impl SegmentFiles for Memory {
    fn list(&self) -> io::Result<Vec<u64>> {
        Ok(self.0.keys().copied().collect())
    }
    fn create(&mut self, number: u64) -> io::Result<()> {
        self.0.insert(number, Vec::new());
        Ok(())
    }
    fn append(&mut self, number: u64, bytes: &[u8]) -> io::Result<()> {
        let room_bytes = if let Disk::Full { room_bytes } = self.1 { room_bytes } else { bytes.len() };
        self.0.get_mut(&number).unwrap().extend_from_slice(&bytes[..room_bytes.min(bytes.len())]);
        if room_bytes < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
    fn sync(&mut self, _number: u64) -> io::Result<()> {
        Ok(())
    }
    fn len_bytes(&self, number: u64) -> io::Result<u64> {
        Ok(self.0[&number].len() as u64)
    }
    fn read(&self, number: u64, offset: u64, content: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        content.copy_from_slice(&self.0[&number][at..at + content.len()]);
        Ok(())
    }
    fn truncate(&mut self, number: u64, len_bytes: u64) -> io::Result<()> {
        self.0.get_mut(&number).unwrap().truncate(len_bytes as usize);
        Ok(())
    }
    fn delete(&mut self, number: u64) -> io::Result<()> {
        self.0.remove(&number);
        if self.1 == Disk::CannotSync { Err(io::Error::other("the disk fails")) } else { Ok(()) }
    }
}

fn frame(message: Message) -> Bytes {
    Envelope { generation: Generation { counter: 1, id: Id([1; 16]), branch_epoch: 0 }, message }.encode()
}

fn blocks(start: u32) -> Message {
    let runs = vec![(Run::new(start, 1).unwrap(), Content::Zero)];
    Message::Blocks(Blocks { runs, encoding: Encoding::Plain, digest: [0; 32], payload: Bytes::new() })
}

fn commit(epoch: Epoch) -> Message {
    Message::Commit(Commit { epoch, blocks: 1, digest: [0; 32], size_bytes: 4096, cut_unix_ms: 0, group: None })
}

fn open(files: Memory) -> (Journal<Memory>, Option<Epoch>) {
    let (journal, last) = Journal::open(files, 1 << 30, 0, 0).unwrap();
    (journal, last.map(|commit| commit.epoch))
}

fn fold_all(journal: &mut Journal<Memory>) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(message) = journal.next_to_fold().unwrap() {
        messages.push(message);
        journal.folded_one().unwrap();
    }
    messages
}

/// Two committed epochs, and the ends of their records, then a staged block.
fn written() -> (Journal<Memory>, [u64; 2]) {
    let mut journal = open(Memory::default()).0;
    let ends = [1, 2].map(|epoch| {
        journal.append(&frame(blocks(epoch))).unwrap();
        journal.commit(&frame(commit(epoch.into()))).unwrap();
        journal.end.offset
    });
    journal.append(&frame(blocks(9))).unwrap();
    (journal, ends)
}

#[test]
fn a_journal_cut_at_any_byte_opens_at_the_last_whole_commit() {
    let (journal, ends) = written();
    let whole = journal.files.0[&1].clone();
    for len in 0..=whole.len() {
        let (mut reopened, last) = open(Memory(BTreeMap::from([(1, whole[..len].to_vec())]), Disk::Good));
        let expected = ends.iter().filter(|end| **end <= len as u64).count();
        assert_eq!(last.unwrap_or(0), expected as u64, "cut at {len}");
        assert_eq!(fold_all(&mut reopened).len(), expected * 2, "cut at {len}");
        reopened.append(&frame(blocks(3))).unwrap();
        reopened.commit(&frame(commit(7))).unwrap();
        assert_eq!(open(reopened.files).1, Some(7), "cut at {len}, then written again");
    }
}

#[test]
fn a_flipped_bit_in_a_committed_epoch_is_not_overlooked() {
    let (journal, ends) = written();
    for at in SEGMENT_HEADER_BYTES..ends[1] {
        let mut files = journal.files.clone();
        files.0.get_mut(&1).unwrap()[at as usize] ^= 4;
        let error = Journal::open(files, 1 << 30, 0, 2).map(drop).unwrap_err();
        assert!(matches!(error, JournalError::CommitMissing { expected: 2, .. }), "flipped at {at}");
    }
}

#[test]
fn staged_content_is_seen_in_order_and_can_be_dropped() {
    let (mut journal, ends) = written();
    let mut staged = Vec::new();
    journal.for_each_staged(|message| staged.push(message)).unwrap();
    assert_eq!(staged, [blocks(9)]);
    journal.drop_staged().unwrap();
    assert!(!journal.has_staged());
    assert_eq!(journal.end.offset, ends[1]);
    assert_eq!(journal.used_bytes().0, ends[1]);
}

#[test]
fn what_is_folded_is_forgotten_and_the_rest_stays() {
    let (mut journal, _) = written();
    assert_eq!(fold_all(&mut journal), [blocks(1), commit(1), blocks(2), commit(2)]);
    journal.forget_folded().unwrap();
    assert_eq!(journal.files.0.len(), 1, "staged content keeps its segment");
    journal.commit(&frame(commit(3))).unwrap();
    assert_eq!(fold_all(&mut journal), [blocks(9), commit(3)]);
    journal.forget_folded().unwrap();
    assert_eq!(journal.used_bytes().0, SEGMENT_HEADER_BYTES);
    assert_eq!(open(journal.files).1, None);
}

#[test]
fn a_full_journal_says_so_and_keeps_what_it_has() {
    let mut journal = Journal::open(Memory::default(), 200, 0, 0).unwrap().0;
    journal.append(&frame(blocks(1))).unwrap();
    let error = journal.append(&frame(blocks(2))).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(error.to_string().contains("quota of 200 bytes") && error.to_string().contains("`[journal]`"), "{error}");
    assert_eq!(open(journal.files).0.used_bytes().0, journal.end.offset);
}

#[test]
fn half_a_record_on_a_full_disk_is_neither_counted_nor_read() {
    for room_bytes in 0..frame(blocks(2)).len() {
        let mut journal = open(Memory::default()).0;
        journal.append(&frame(blocks(1))).unwrap();
        journal.commit(&frame(commit(1))).unwrap();
        let fail = |journal: &mut Journal<Memory>| {
            journal.files.1 = Disk::Full { room_bytes };
            journal.append(&frame(blocks(2))).unwrap_err();
            journal.files.1 = Disk::Good;
        };
        // What follows takes its place.
        fail(&mut journal);
        journal.commit(&frame(commit(2))).unwrap();
        assert_eq!(open(journal.files.clone()).1, Some(2), "{room_bytes} bytes of it");
        // Or its segment goes.
        fail(&mut journal);
        assert_eq!(fold_all(&mut journal), [blocks(1), commit(1), commit(2)]);
        journal.forget_folded().unwrap();
        assert_eq!(journal.used_bytes().0, SEGMENT_HEADER_BYTES, "{room_bytes} bytes of it");
        journal.commit(&frame(commit(3))).unwrap();
        assert_eq!(fold_all(&mut journal), [commit(3)]);
    }
}

#[test]
fn a_segment_whose_deletion_failed_is_counted_once_and_not_read_again() {
    let (mut journal, _) = written();
    journal.commit(&frame(commit(3))).unwrap();
    fold_all(&mut journal);
    journal.files.1 = Disk::CannotSync;
    for _ in 0..3 {
        journal.forget_folded().unwrap_err();
    }
    journal.fold_again();
    assert_eq!(fold_all(&mut journal), []);
    journal.files.1 = Disk::Good;
    journal.forget_folded().unwrap();
    assert_eq!(journal.used_bytes().0, SEGMENT_HEADER_BYTES);
}

#[test]
fn nothing_but_strangers_segments_is_an_empty_journal() {
    let files = Memory(BTreeMap::from([(u64::MAX, record::segment_header(7))]), Disk::Good);
    let (mut journal, last) = open(files);
    assert_eq!((last, journal.used_bytes().0), (None, SEGMENT_HEADER_BYTES));
    journal.commit(&frame(commit(1))).unwrap();
    fold_all(&mut journal);
    journal.forget_folded().unwrap();
    assert_eq!(journal.files.list().unwrap(), [2]);
}
