//! The journal's files, in a page cache: what was not synced may be lost, torn, full of holes or of garbage. After a sync that failed the
//! pages count as clean, and a later sync does not write them.

use super::{Access, Faults};
use crate::plant::Plant;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use replicator::disk::SegmentFiles;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

const SECTOR_BYTES: usize = 512;
/// Of a segment and of a record; see docs/formats.md.
const SEGMENT_HEADER_BYTES: usize = 32;
const RECORD_HEADER_BYTES: usize = 16;

#[derive(Clone, Default)]
struct Segment {
    bytes: Vec<u8>,
    /// What is before is on the disk.
    durable_bytes: usize,
    /// A sync failed: what follows is in the page cache, but will not be written.
    is_given_up: bool,
}

/// Clones share the files, as a restarted process shares its directory.
#[derive(Clone)]
pub struct SimFiles {
    segments: Arc<Mutex<BTreeMap<u64, Segment>>>,
    faults: Arc<Faults>,
}

impl SimFiles {
    /// An empty directory.
    pub fn new(faults: Arc<Faults>) -> Self {
        Self { segments: Arc::default(), faults }
    }

    /// A copy that goes its own way.
    pub fn fork(&self, faults: Arc<Faults>) -> Self {
        Self { segments: Arc::new(Mutex::new(self.segments.lock().unwrap().clone())), faults }
    }

    /// A daemon opens the directory: what is there is synced, and what cannot be is read from the disk again.
    pub fn reopen(&self) {
        for segment in self.segments.lock().unwrap().values_mut() {
            let is_synced = segment.bytes.len() == segment.durable_bytes || self.faults.meet(Access::Sync).is_ok();
            if !is_synced || segment.is_given_up {
                segment.bytes[segment.durable_bytes..].fill(0);
            }
            (segment.durable_bytes, segment.is_given_up) = (segment.bytes.len(), false);
        }
    }

    /// All files are removed, durably.
    pub fn remove_all(&self) -> io::Result<()> {
        self.faults.meet(Access::Write)?;
        self.segments.lock().unwrap().clear();
        Ok(())
    }

    /// The disk forgets what it was told. Says whether there was anything.
    pub fn flip_bit(&self, rng: &mut StdRng) -> bool {
        let mut segments = self.segments.lock().unwrap();
        let mut filled: Vec<_> = segments.values_mut().filter(|segment| !segment.bytes.is_empty()).collect();
        if filled.is_empty() {
            return false;
        }
        let segment = rng.random_range(0..filled.len());
        let bytes = &mut filled[segment].bytes;
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << rng.random_range(0..8);
        true
    }

    /// The power goes.
    pub fn lose_power(&self, rng: &mut StdRng) {
        for segment in self.segments.lock().unwrap().values_mut() {
            let len_bytes = rng.random_range(segment.durable_bytes..=segment.bytes.len());
            segment.bytes.truncate(len_bytes);
            let (mut from, was_torn) = (segment.durable_bytes, len_bytes > segment.durable_bytes);
            while from < len_bytes {
                let to = (from / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES).min(len_bytes);
                match rng.random_range(0..8) {
                    0 => segment.bytes[from..to].fill(0),
                    1 => rng.fill_bytes(&mut segment.bytes[from..to]),
                    _ => {}
                }
                from = to;
            }
            if was_torn && self.faults.plant() == Some(Plant::LoseTornTail) {
                segment.lose_last_record();
            }
            (segment.durable_bytes, segment.is_given_up) = (segment.bytes.len(), false);
        }
    }
}

impl Segment {
    /// As though the end had been looked for one record too early.
    fn lose_last_record(&mut self) {
        let (mut last, mut at) = (SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES);
        while at + RECORD_HEADER_BYTES <= self.durable_bytes {
            last = at;
            let len_bytes = self.bytes[at + 4..at + 8].try_into().map(u32::from_le_bytes).unwrap();
            at += RECORD_HEADER_BYTES + len_bytes as usize;
        }
        self.bytes.truncate(last);
    }
}

impl SegmentFiles for SimFiles {
    fn list(&self) -> io::Result<Vec<u64>> {
        self.faults.meet(Access::Read)?;
        Ok(self.segments.lock().unwrap().keys().copied().collect())
    }

    fn create(&mut self, number: u64) -> io::Result<()> {
        self.faults.meet(Access::Write)?;
        self.segments.lock().unwrap().insert(number, Segment::default());
        Ok(())
    }

    fn append(&mut self, number: u64, bytes: &[u8]) -> io::Result<()> {
        let met = self.faults.meet(Access::Write);
        let take = if met.is_ok() { bytes.len() } else { self.faults.part_of(bytes.len()) };
        self.segments.lock().unwrap().get_mut(&number).expect("a segment that was created").bytes.extend_from_slice(&bytes[..take]);
        met
    }

    fn sync(&mut self, number: u64) -> io::Result<()> {
        let met = self.faults.meet(Access::Sync);
        let mut segments = self.segments.lock().unwrap();
        let segment = segments.get_mut(&number).expect("a segment that was created");
        segment.is_given_up |= met.is_err() && segment.bytes.len() > segment.durable_bytes;
        if !segment.is_given_up && self.faults.plant() != Some(Plant::AcknowledgeBeforeCommit) {
            segment.durable_bytes = segment.bytes.len();
        }
        met
    }

    fn len_bytes(&self, number: u64) -> io::Result<u64> {
        self.faults.meet(Access::Read)?;
        self.segments.lock().unwrap().get(&number).map(|segment| segment.bytes.len() as u64).ok_or(io::ErrorKind::NotFound.into())
    }

    fn read(&self, number: u64, offset: u64, content: &mut [u8]) -> io::Result<()> {
        self.faults.meet(Access::Read)?;
        let segments = self.segments.lock().unwrap();
        let segment = segments.get(&number).ok_or(io::ErrorKind::NotFound)?;
        let found = segment.bytes.get(offset as usize..offset as usize + content.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        content.copy_from_slice(found);
        Ok(())
    }

    fn truncate(&mut self, number: u64, len_bytes: u64) -> io::Result<()> {
        self.faults.meet(Access::Write)?;
        let mut segments = self.segments.lock().unwrap();
        let segment = segments.get_mut(&number).ok_or(io::ErrorKind::NotFound)?;
        segment.bytes.truncate(len_bytes as usize);
        // What is left and was given up stays so: only the length is written.
        segment.is_given_up &= segment.bytes.len() > segment.durable_bytes;
        segment.durable_bytes = if segment.is_given_up { segment.durable_bytes } else { segment.bytes.len() };
        Ok(())
    }

    fn delete(&mut self, number: u64) -> io::Result<()> {
        self.faults.meet(Access::Write)?;
        self.segments.lock().unwrap().remove(&number);
        Ok(())
    }
}
