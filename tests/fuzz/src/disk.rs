//! A disk, a directory and a catalogue in memory. They keep to what the real ones promise, ends and errors included.

use replicator::catalogue::{Catalogue, Change, Persist};
use replicator::codec::fingerprint;
use replicator::disk::{BlockDevice, SegmentFiles};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, MAX_BLOCKS, Run};
use replicator_engine::wire::Fingerprint;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// An image; a block that is not there is all zeroes.
pub struct Image {
    blocks: Mutex<BTreeMap<BlockNumber, Box<[u8]>>>,
    size_bytes: AtomicU64,
}

impl Image {
    /// An image of zeroes.
    pub fn new(size_bytes: u64) -> Arc<Self> {
        Arc::new(Self { blocks: Mutex::default(), size_bytes: AtomicU64::new(size_bytes) })
    }

    /// What a daemon that starts again finds: the size that its record says.
    pub fn reopen(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, SeqCst);
    }

    /// What the blocks hold that are not known to be zeroes.
    pub fn content(&self) -> BTreeMap<BlockNumber, Fingerprint> {
        self.blocks.lock().unwrap().iter().map(|(block, content)| (*block, fingerprint(content))).collect()
    }

    fn check(&self, run: Run) -> io::Result<()> {
        let inside = run.offset() + run.len_bytes() <= self.size_bytes();
        if inside { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the image")) }
    }
}

impl BlockDevice for Image {
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()> {
        self.check(run)?;
        let blocks = self.blocks.lock().unwrap();
        for (block, content) in run.blocks().zip(content.chunks_exact_mut(BLOCK_BYTES)) {
            match blocks.get(&block) {
                Some(stored) => content.copy_from_slice(stored),
                None => content.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, run: Run, content: &[u8]) -> io::Result<()> {
        self.check(run)?;
        assert_eq!(content.len() as u64, run.len_bytes());
        let mut blocks = self.blocks.lock().unwrap();
        blocks.extend(run.blocks().zip(content.chunks_exact(BLOCK_BYTES).map(Box::from)));
        Ok(())
    }

    fn zero(&self, run: Run) -> io::Result<()> {
        self.check(run)?;
        self.blocks.lock().unwrap().extract_if(run.blocks(), |_, _| true).for_each(drop);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocated(&self, from: BlockNumber) -> io::Result<Option<Run>> {
        Ok(self.blocks.lock().unwrap().range(from..).next().map(|(block, _)| Run { start: *block, len: 1 }))
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(SeqCst)
    }

    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        if !size_bytes.is_multiple_of(BLOCK_BYTES as u64) || size_bytes / BLOCK_BYTES as u64 > MAX_BLOCKS {
            return Err(io::Error::other("no image has that size"));
        }
        self.size_bytes.fetch_max(size_bytes, SeqCst);
        Ok(())
    }
}

/// A directory of segments; clones are the same one.
#[derive(Clone, Default)]
pub struct Files(pub Arc<Mutex<Directory>>);

/// What is in a directory of segments.
#[derive(Default)]
pub struct Directory {
    /// What they hold.
    pub segments: BTreeMap<u64, Vec<u8>>,
    /// What those held that were deleted.
    pub deleted: Vec<(u64, Vec<u8>)>,
    /// What the next append finds room for, if that is less than it needs.
    pub room_bytes: Option<usize>,
}

impl Files {
    fn of<T>(&self, number: u64, work: impl FnOnce(&mut Vec<u8>) -> T) -> io::Result<T> {
        self.0.lock().unwrap().segments.get_mut(&number).map(work).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl SegmentFiles for Files {
    fn list(&self) -> io::Result<Vec<u64>> {
        Ok(self.0.lock().unwrap().segments.keys().copied().collect())
    }

    fn create(&mut self, number: u64) -> io::Result<()> {
        self.0.lock().unwrap().segments.insert(number, Vec::new());
        Ok(())
    }

    fn append(&mut self, number: u64, bytes: &[u8]) -> io::Result<()> {
        let room_bytes = self.0.lock().unwrap().room_bytes.take().unwrap_or(usize::MAX);
        self.of(number, |file| file.extend_from_slice(&bytes[..bytes.len().min(room_bytes)]))?;
        if room_bytes < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self, number: u64) -> io::Result<()> {
        self.of(number, |_| ())
    }

    fn len_bytes(&self, number: u64) -> io::Result<u64> {
        self.of(number, |file| file.len() as u64)
    }

    fn read(&self, number: u64, offset: u64, content: &mut [u8]) -> io::Result<()> {
        let found =
            self.of(number, |file| file.get(offset as usize..offset as usize + content.len()).map(|part| content.copy_from_slice(part)))?;
        found.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn truncate(&mut self, number: u64, len_bytes: u64) -> io::Result<()> {
        self.of(number, |file| file.truncate(len_bytes as usize))
    }

    fn delete(&mut self, number: u64) -> io::Result<()> {
        let mut directory = self.0.lock().unwrap();
        let segment = directory.segments.remove(&number);
        directory.deleted.extend(segment.map(|content| (number, content)));
        Ok(())
    }
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// A catalogue: what it holds, and what of that survives a loss of power.
#[derive(Default)]
pub struct Pairs(Mutex<(Map, Map)>);

impl Pairs {
    /// The power goes.
    pub fn crash(&self) {
        let (now, synced) = &mut *self.0.lock().unwrap();
        now.clone_from(synced);
    }
}

impl Catalogue for Pairs {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().0.get(key).cloned())
    }

    fn apply(&self, changes: &[Change], persist: Persist) -> io::Result<()> {
        let (now, synced) = &mut *self.0.lock().unwrap();
        for (key, value) in changes {
            match value {
                Some(value) => now.insert(key.clone(), value.clone()),
                None => now.remove(key),
            };
        }
        if persist == Persist::Synced {
            synced.clone_from(now);
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let now = &self.0.lock().unwrap().0;
        let from = now.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(from.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
