//! A disk that loses power: what was not synced may be there afterwards or not, block by block.

use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use replicator::catalogue::{Catalogue, Change, Persist};
use replicator::disk::{BlockDevice, SegmentFiles};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

type Content = Box<[u8]>;

/// A volume's image.
#[derive(Default)]
pub struct SimImage {
    blocks: Mutex<Blocks>,
    size_bytes: AtomicU64,
}

#[derive(Default)]
struct Blocks {
    /// What a read sees; a block that is not there is all zeroes.
    visible: BTreeMap<BlockNumber, Content>,
    /// Content before the first write since the last sync.
    unsynced: BTreeMap<BlockNumber, Option<Content>>,
}

impl SimImage {
    /// An image of zeroes.
    pub fn new(size_blocks: u32) -> Arc<Self> {
        Arc::new(Self { size_bytes: AtomicU64::new(u64::from(size_blocks) * BLOCK_BYTES as u64), ..Self::default() })
    }

    /// What a daemon that starts again finds: a file that is long enough, and a record of its size.
    pub fn reopen(&self, size_blocks: u32) {
        self.size_bytes.store(u64::from(size_blocks) * BLOCK_BYTES as u64, SeqCst);
    }

    fn check(&self, run: Run) -> io::Result<()> {
        let inside = run.offset() + run.len_bytes() <= self.size_bytes();
        if inside { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the image")) }
    }

    /// The power goes: each unsynced block keeps its new content or falls back to its old one.
    pub fn crash(&self, rng: &mut StdRng) {
        let mut blocks = self.blocks.lock().unwrap();
        for (block, old) in std::mem::take(&mut blocks.unsynced) {
            if rng.random_bool(0.5) {
                blocks.set(block, old);
            }
        }
    }

    /// Writes one block without the tracker, as the guest's controller would.
    pub fn put(&self, block: BlockNumber, content: &[u8]) {
        self.blocks.lock().unwrap().write(block, Some(content.into()));
    }

    /// All blocks that are not zero.
    pub fn content(&self) -> BTreeMap<BlockNumber, Content> {
        self.blocks.lock().unwrap().visible.clone()
    }
}

impl Blocks {
    fn set(&mut self, block: BlockNumber, content: Option<Content>) {
        match content.filter(|content| content.iter().any(|byte| *byte != 0)) {
            Some(content) => self.visible.insert(block, content),
            None => self.visible.remove(&block),
        };
    }

    fn write(&mut self, block: BlockNumber, content: Option<Content>) {
        let old = self.visible.get(&block).cloned();
        self.unsynced.entry(block).or_insert(old);
        self.set(block, content);
    }
}

impl BlockDevice for SimImage {
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()> {
        self.check(run)?;
        let blocks = self.blocks.lock().unwrap();
        for (block, content) in run.blocks().zip(content.chunks_exact_mut(BLOCK_BYTES)) {
            match blocks.visible.get(&block) {
                Some(stored) => content.copy_from_slice(stored),
                None => content.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, run: Run, content: &[u8]) -> io::Result<()> {
        self.check(run)?;
        for (block, content) in run.blocks().zip(content.chunks_exact(BLOCK_BYTES)) {
            self.put(block, content);
        }
        Ok(())
    }

    fn zero(&self, run: Run) -> io::Result<()> {
        self.check(run)?;
        let mut blocks = self.blocks.lock().unwrap();
        run.blocks().for_each(|block| blocks.write(block, None));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.blocks.lock().unwrap().unsynced.clear();
        Ok(())
    }

    fn allocated(&self, from: BlockNumber) -> io::Result<Option<Run>> {
        Ok(self.blocks.lock().unwrap().visible.range(from..).next().map(|(block, _)| Run { start: *block, len: 1 }))
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(SeqCst)
    }

    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.size_bytes.fetch_max(size_bytes, SeqCst);
        Ok(())
    }
}

#[derive(Default)]
struct Segment {
    bytes: Vec<u8>,
    synced_bytes: usize,
}

/// The standby's journal files; clones share them, as a restarted process shares its directory.
#[derive(Clone, Default)]
pub struct SimFiles(Arc<Mutex<BTreeMap<u64, Segment>>>);

impl SimFiles {
    /// The power goes: an unsynced tail is cut at any byte, or part of it is garbage.
    pub fn crash(&self, rng: &mut StdRng) {
        for segment in self.0.lock().unwrap().values_mut() {
            let keep = rng.random_range(segment.synced_bytes..=segment.bytes.len());
            segment.bytes.truncate(keep);
            if keep > segment.synced_bytes && rng.random_bool(0.5) {
                let torn = rng.random_range(segment.synced_bytes..keep);
                rng.fill_bytes(&mut segment.bytes[torn..]);
            }
            segment.synced_bytes = segment.bytes.len();
        }
    }
}

impl SegmentFiles for SimFiles {
    fn list(&self) -> io::Result<Vec<u64>> {
        Ok(self.0.lock().unwrap().keys().copied().collect())
    }

    fn create(&mut self, number: u64) -> io::Result<()> {
        self.0.lock().unwrap().insert(number, Segment::default());
        Ok(())
    }

    fn append(&mut self, number: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().get_mut(&number).unwrap().bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self, number: u64) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        let segment = files.get_mut(&number).unwrap();
        segment.synced_bytes = segment.bytes.len();
        Ok(())
    }

    fn len_bytes(&self, number: u64) -> io::Result<u64> {
        Ok(self.0.lock().unwrap()[&number].bytes.len() as u64)
    }

    fn read(&self, number: u64, offset: u64, content: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        content.copy_from_slice(&self.0.lock().unwrap()[&number].bytes[at..at + content.len()]);
        Ok(())
    }

    fn truncate(&mut self, number: u64, len_bytes: u64) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        let segment = files.get_mut(&number).unwrap();
        segment.bytes.truncate(len_bytes as usize);
        segment.synced_bytes = segment.bytes.len();
        Ok(())
    }

    fn delete(&mut self, number: u64) -> io::Result<()> {
        self.0.lock().unwrap().remove(&number);
        Ok(())
    }
}

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A catalogue: a log of changes, of which a crash keeps the synced part and some of the rest.
#[derive(Default)]
pub struct SimCatalogue(Mutex<(Pairs, Vec<Pairs>)>);

impl SimCatalogue {
    /// The power goes: changes since the last sync are lost from some point on.
    pub fn crash(&self, rng: &mut StdRng) {
        let (now, since_sync) = &mut *self.0.lock().unwrap();
        let lost_from = rng.random_range(0..=since_sync.len());
        if let Some(before) = since_sync.get(lost_from) {
            *now = before.clone();
        }
        since_sync.clear();
    }
}

impl Catalogue for SimCatalogue {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().0.get(key).cloned())
    }

    fn apply(&self, changes: &[Change], persist: Persist) -> io::Result<()> {
        let (now, since_sync) = &mut *self.0.lock().unwrap();
        since_sync.push(now.clone());
        for (key, value) in changes {
            match value {
                Some(value) => now.insert(key.clone(), value.clone()),
                None => now.remove(key),
            };
        }
        if persist == Persist::Synced {
            since_sync.clear();
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let now = &self.0.lock().unwrap().0;
        let from = now.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(from.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
