//! Disks that lose power, fail and get full.

use super::*;
use crate::disk::{BlockDevice, DigestFile};
use std::sync::Mutex;

/// An image that loses power: each block that was not synced is there or not. A block is filled with one byte.
#[derive(Default)]
pub struct Image(pub Mutex<State>);

#[derive(Default)]
pub struct State {
    blocks: Vec<u8>,
    unsynced: BTreeMap<BlockNumber, u8>,
    /// Writes until the disk fails.
    pub writes_left: Option<usize>,
    /// Whether it fails for want of room.
    pub is_full: bool,
    pub sync_fails: bool,
    /// Blocks that cannot be read.
    pub unreadable: Vec<BlockNumber>,
    /// A block that is read wrong, once.
    pub wrong_once: Option<BlockNumber>,
}

impl Image {
    pub fn new(blocks: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { blocks: vec![0; blocks], ..State::default() })))
    }

    pub fn crash(&self, rng: &mut StdRng) {
        let mut state = self.0.lock().unwrap();
        (state.writes_left, state.sync_fails) = (None, false);
        for (block, old) in std::mem::take(&mut state.unsynced) {
            if rng.random_bool(0.5) {
                state.blocks[block as usize] = old;
            }
        }
    }

    fn put(&self, block: BlockNumber, byte: u8) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let is_full = state.is_full;
        match &mut state.writes_left {
            Some(0) if is_full => return Err(io::Error::from_raw_os_error(28)),
            Some(0) => return Err(io::Error::other("the disk fails")),
            left => *left = left.map(|left| left - 1),
        }
        let old = std::mem::replace(state.blocks.get_mut(block as usize).ok_or(io::ErrorKind::InvalidInput)?, byte);
        state.unsynced.entry(block).or_insert(old);
        Ok(())
    }

    /// The disk loses what it had there.
    pub fn rot(&self, block: BlockNumber) {
        self.0.lock().unwrap().blocks[block as usize] ^= 0x10;
    }

    pub fn blocks(&self) -> Vec<u8> {
        self.0.lock().unwrap().blocks.clone()
    }
}

impl BlockDevice for Image {
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if run.blocks().any(|block| state.unreadable.contains(&block)) {
            return Err(io::Error::from_raw_os_error(5));
        }
        run.blocks().zip(content.chunks_exact_mut(BLOCK_BYTES)).for_each(|(block, content)| content.fill(state.blocks[block as usize]));
        if let Some(block) = state.wrong_once.take_if(|block| run.blocks().contains(block)) {
            content[(block - run.start) as usize * BLOCK_BYTES] ^= 1;
        }
        Ok(())
    }
    fn write(&self, run: Run, content: &[u8]) -> io::Result<()> {
        run.blocks().zip(content.chunks_exact(BLOCK_BYTES)).try_for_each(|(block, content)| self.put(block, content[0]))
    }
    fn zero(&self, run: Run) -> io::Result<()> {
        run.blocks().try_for_each(|block| self.put(block, 0))
    }
    /// After one that failed, what was written is gone, as it is from a page cache.
    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let unsynced = std::mem::take(&mut state.unsynced);
        if !state.sync_fails {
            return Ok(());
        }
        unsynced.into_iter().step_by(2).for_each(|(block, old)| state.blocks[block as usize] = old);
        Err(io::Error::from_raw_os_error(5))
    }
    fn allocated(&self, from: BlockNumber) -> io::Result<Option<Run>> {
        let end = self.0.lock().unwrap().blocks.len() as u32;
        Ok(Run::new(from, end.saturating_sub(from)))
    }
    fn size_bytes(&self) -> u64 {
        self.0.lock().unwrap().blocks.len() as u64 * BLOCK
    }
    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.0.lock().unwrap().blocks.resize((size_bytes / BLOCK) as usize, 0);
        Ok(())
    }
}

/// A file, and how much of it is synced.
type Segment = (Vec<u8>, usize);

/// Segments that lose power: what was not synced is cut at any byte, or garbage from there on.
#[derive(Clone, Default)]
pub struct Files(Arc<Mutex<BTreeMap<u64, Segment>>>, pub Arc<Mutex<Disk>>);

/// What is wrong with it.
#[derive(Default)]
pub struct Disk {
    pub room: Option<u64>,
    pub fails: bool,
}

impl Files {
    pub fn crash(&self, rng: &mut StdRng) {
        for (bytes, synced) in self.0.lock().unwrap().values_mut() {
            let keep = rng.random_range(*synced..=bytes.len());
            bytes.truncate(keep);
            if keep > *synced && rng.random_bool(0.5) {
                let torn = rng.random_range(*synced..keep);
                rng.fill_bytes(&mut bytes[torn..]);
            }
            *synced = keep;
        }
    }

    fn of<T>(&self, number: u64, work: impl FnOnce(&mut Segment) -> T) -> io::Result<T> {
        self.0.lock().unwrap().get_mut(&number).map(work).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change(&self) -> io::Result<()> {
        if self.1.lock().unwrap().fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    /// The disk loses a bit in the middle of the first file.
    pub fn rot(&self) {
        if let Some((bytes, _)) = self.0.lock().unwrap().values_mut().next() {
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
        }
    }

    /// It loses one there, in the first file.
    pub fn rot_at(&self, offset: usize) {
        self.0.lock().unwrap().values_mut().next().unwrap().0[offset] ^= 1;
    }

    /// What the first file has.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().values().next().unwrap().0.clone()
    }

    /// Where in the first file records begin.
    pub fn records(&self) -> Vec<usize> {
        let bytes = self.bytes();
        bytes.windows(4).enumerate().filter(|(_, four)| four == b"TJR1").map(|(at, _)| at).collect()
    }

    /// Where the record in the middle of the first file begins.
    pub fn middle_record(&self) -> usize {
        self.records()[self.records().len() / 2]
    }

    /// In the last record with content: four stand behind it, which say what it is.
    pub fn last_content(&self) -> usize {
        self.records().into_iter().rev().nth(3).unwrap() - 3
    }

    pub fn used_bytes(&self) -> u64 {
        self.0.lock().unwrap().values().map(|(bytes, _)| bytes.len() as u64).sum()
    }
}

impl SegmentFiles for Files {
    fn list(&self) -> io::Result<Vec<u64>> {
        Ok(self.0.lock().unwrap().keys().copied().collect())
    }
    fn create(&mut self, number: u64) -> io::Result<()> {
        self.change()?;
        self.0.lock().unwrap().insert(number, Segment::default());
        Ok(())
    }
    fn append(&mut self, number: u64, bytes: &[u8]) -> io::Result<()> {
        self.change()?;
        let room = self.1.lock().unwrap().room;
        if room.is_some_and(|room| self.used_bytes() + bytes.len() as u64 > room) {
            self.of(number, |(file, _)| file.extend_from_slice(&bytes[..bytes.len() / 2]))?;
            return Err(io::Error::from_raw_os_error(28));
        }
        self.of(number, |(file, _)| file.extend_from_slice(bytes))
    }
    fn sync(&mut self, number: u64) -> io::Result<()> {
        self.change()?;
        self.of(number, |(file, synced)| *synced = file.len())
    }
    fn len_bytes(&self, number: u64) -> io::Result<u64> {
        self.of(number, |(file, _)| file.len() as u64)
    }
    fn read(&self, number: u64, offset: u64, content: &mut [u8]) -> io::Result<()> {
        self.of(number, |(file, _)| content.copy_from_slice(&file[offset as usize..offset as usize + content.len()]))
    }
    fn truncate(&mut self, number: u64, len_bytes: u64) -> io::Result<()> {
        self.change()?;
        self.of(number, |(file, synced)| {
            file.truncate(len_bytes as usize);
            *synced = len_bytes as usize;
        })
    }
    fn delete(&mut self, number: u64) -> io::Result<()> {
        self.change()?;
        self.0.lock().unwrap().remove(&number);
        Ok(())
    }
}

/// Digests that lose power: each that was not synced is there or not.
#[derive(Clone, Default)]
pub struct Digests(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    digests: BTreeMap<BlockNumber, u64>,
    unsynced: BTreeMap<BlockNumber, Option<u64>>,
    fails: bool,
    is_begun: bool,
}

impl Entries {
    fn put(&mut self, block: BlockNumber, digest: u64) {
        let old = if digest == 0 { self.digests.remove(&block) } else { self.digests.insert(block, digest) };
        self.unsynced.entry(block).or_insert(old);
    }
}

impl Digests {
    pub fn crash(&self, rng: &mut StdRng) {
        let mut entries = self.0.lock().unwrap();
        entries.fails = false;
        for (block, old) in std::mem::take(&mut entries.unsynced) {
            match old {
                _ if rng.random_bool(0.5) => {}
                Some(old) => drop(entries.digests.insert(block, old)),
                None => drop(entries.digests.remove(&block)),
            }
        }
    }

    /// Somebody has removed the file.
    pub fn remove(&self) {
        *self.0.lock().unwrap() = Entries::default();
    }

    /// From now on, or not any more, the disk takes nothing.
    pub fn fail(&self) {
        self.0.lock().unwrap().fails = true;
    }

    fn change(&self, work: impl FnOnce(&mut Entries)) -> io::Result<()> {
        let mut entries = self.0.lock().unwrap();
        work(&mut entries);
        if entries.fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
}

impl DigestFile for Digests {
    fn is_begun(&self) -> io::Result<bool> {
        Ok(self.0.lock().unwrap().is_begun)
    }
    fn begin(&self) -> io::Result<()> {
        self.change(|entries| {
            if !entries.fails {
                *entries = Entries { is_begun: true, ..Entries::default() };
            }
        })
    }
    fn load(&self, start: BlockNumber, digests: &mut [u64]) -> io::Result<()> {
        let entries = self.0.lock().unwrap();
        (start..).zip(digests).for_each(|(block, digest)| *digest = entries.digests.get(&block).copied().unwrap_or(0));
        Ok(())
    }
    fn store(&self, start: BlockNumber, digests: &[u64]) -> io::Result<()> {
        self.change(|entries| (start..).zip(digests).for_each(|(block, digest)| entries.put(block, *digest)))
    }
    fn clear(&self, start: BlockNumber, end: BlockNumber) -> io::Result<()> {
        self.change(|entries| {
            let blocks: Vec<_> = entries.digests.range(start..end).map(|(block, _)| *block).collect();
            blocks.into_iter().for_each(|block| entries.put(block, 0));
        })
    }
    fn next(&self, from: BlockNumber) -> io::Result<Option<BlockNumber>> {
        Ok(self.0.lock().unwrap().digests.range(from..).next().map(|(block, _)| *block))
    }
    fn sync(&self) -> io::Result<()> {
        self.change(|entries| {
            if !entries.fails {
                entries.unsynced.clear();
            }
        })
    }
}
