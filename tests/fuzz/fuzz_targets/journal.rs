//! A journal that is written, folded, damaged and opened again, on a disk that may be full: an error is fine. While nothing is damaged, what
//! was committed is there; and it never counts what it does not hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use replicator::journal::Journal;
use replicator_engine::wire::{Envelope, Message};
use tern_fuzz::Bytes;
use tern_fuzz::disk::Files;
use tern_fuzz::messages::Writer;

/// Room for a few records, so that it gets full.
const QUOTA_BYTES: u64 = 64 << 10;

struct World {
    files: Files,
    journal: Journal<Files>,
    writer: Writer,
    /// The last commit, until something was damaged.
    committed: Option<Option<u64>>,
    /// What was folded and deleted: a crash may bring it back.
    deleted: Vec<(u64, Vec<u8>)>,
}

impl World {
    fn new() -> Self {
        let files = Files::default();
        let (journal, _) = Journal::open(files.clone(), QUOTA_BYTES, 0, 0).expect("an empty directory");
        Self { files, journal, writer: Writer::new(), committed: Some(None), deleted: Vec::new() }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.u8() % 16 {
            0..6 => {
                let frame = self.writer.primary(bytes);
                match Envelope::decode(frame.clone()).map(|envelope| envelope.message) {
                    Ok(Message::Commit(commit)) if self.journal.commit(&frame).is_ok() => {
                        self.committed = self.committed.map(|_| Some(commit.epoch));
                    }
                    Ok(Message::Blocks(_)) => drop(self.journal.append(&frame)),
                    _ => {}
                }
            }
            6 => drop(self.journal.drop_staged()),
            7 => drop(self.journal.for_each_staged(|_| ())),
            8 | 9 => self.fold(usize::from(bytes.u8() % 4)),
            10 => self.open(bytes),
            11 => self.restore(bytes),
            12 => self.files.0.lock().unwrap().room_bytes = Some(usize::from(bytes.u8())),
            _ => {
                self.damage(bytes);
                self.committed = None;
                self.open(bytes);
            }
        }
        let (used_bytes, quota_bytes) = self.journal.used_bytes();
        assert!(used_bytes <= self.held_bytes());
        // A segment's header is not worth a refusal.
        assert!(self.committed.is_none() || used_bytes <= quota_bytes + 64);
    }

    fn fold(&mut self, most: usize) {
        for _ in 0..=most {
            match self.journal.next_to_fold() {
                Ok(Some(_)) => drop(self.journal.folded_one()),
                Ok(None) => break,
                Err(_) => return assert!(self.committed.is_none(), "what was written can be read"),
            }
        }
        if self.journal.is_folded() {
            self.files.0.lock().unwrap().deleted.clear();
            let _ = self.journal.forget_folded();
            self.deleted = std::mem::take(&mut self.files.0.lock().unwrap().deleted);
            // What is staged keeps its segment, and with it the last commit.
            if !self.deleted.is_empty() && !self.journal.has_staged() {
                self.committed = self.committed.map(|_| None);
            }
        }
    }

    /// The power went before the deletion was durable.
    fn restore(&mut self, bytes: &mut Bytes<'_>) {
        let restored = std::mem::take(&mut self.deleted);
        if !restored.is_empty() {
            // With nothing behind them, their commits are the last again.
            self.committed = self.committed.filter(Option::is_some);
            self.files.0.lock().unwrap().segments.extend(restored);
            self.open(bytes);
        }
    }

    fn held_bytes(&self) -> u64 {
        self.files.0.lock().unwrap().segments.values().map(|file| file.len() as u64).sum()
    }

    fn open(&mut self, bytes: &mut Bytes<'_>) {
        let expected = if self.committed.is_some() { 0 } else { u64::from(bytes.u8() % 4) };
        match Journal::open(self.files.clone(), QUOTA_BYTES, u64::from(bytes.u8() % 4), expected) {
            Ok((journal, found)) => {
                self.journal = journal;
                assert_eq!(self.journal.used_bytes().0, self.held_bytes());
                assert!(self.committed.is_none_or(|committed| committed == found.as_ref().map(|commit| commit.epoch)));
            }
            Err(_) => {
                assert!(self.committed.is_none(), "a journal that nobody damaged opens");
                *self = Self::new();
            }
        }
    }

    fn damage(&mut self, bytes: &mut Bytes<'_>) {
        let files = &mut self.files.0.lock().unwrap().segments;
        let which = usize::from(bytes.u8()) % files.len().max(1);
        let Some((number, file)) = files.iter_mut().nth(which).map(|(number, file)| (*number, file)) else { return };
        let at = usize::from(bytes.u16()) % (file.len() + 1);
        match bytes.u8() % 5 {
            0 => file.truncate(at),
            1 => file.extend_from_slice(bytes.slice(100)),
            2 => {
                let new = bytes.slice(40);
                let end = (at + new.len()).min(file.len());
                file[at..end].copy_from_slice(&new[..end - at]);
            }
            3 => drop(files.remove(&number)),
            _ => {
                let copy = file.clone();
                files.insert(number.wrapping_add(u64::from(bytes.u8() % 3)).wrapping_sub(1), copy);
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let mut world = World::new();
    while !bytes.0.is_empty() {
        world.step(&mut bytes);
    }
});
