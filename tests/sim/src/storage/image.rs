//! A volume's image. Each sector is written with a stamp of its own, so that a block can be told from its parts.
//!
//! A sync that fails leaves what was written in the disk's cache, where a later sync finds it: images are written past the page cache.

use super::{Access, Faults};
use crate::plant::Plant;
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::codec::is_zero;
use replicator::disk::BlockDevice;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run, block_count};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

const SECTOR_BYTES: usize = 512;
/// Sectors of a block.
pub const SECTORS: usize = BLOCK_BYTES / SECTOR_BYTES;
/// Writes that a planted bug holds back.
const HELD_WRITES: usize = 16;
/// Stamps from here on stand for content that does not compress.
pub const NOISE: u64 = 1 << 63;

/// What the sectors of a block hold: 0 is zeroes.
pub type Stamps = [u64; SECTORS];

/// What a volume looks like: its blocks that are not zero.
pub type View = BTreeMap<BlockNumber, Stamps>;

/// See the module's documentation.
pub struct SimImage {
    blocks: Mutex<Blocks>,
    size_bytes: AtomicU64,
    faults: Arc<Faults>,
}

#[derive(Clone, Default)]
struct Blocks {
    /// What a read sees.
    visible: View,
    /// What each block held since the last sync, the synced content first.
    unsynced: BTreeMap<BlockNumber, Vec<Stamps>>,
    /// Held back by a planted bug.
    held: Vec<(BlockNumber, Stamps)>,
}

fn word(stamp: u64, index: usize) -> u64 {
    if stamp < NOISE || index == 0 { stamp } else { (stamp ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) }
}

fn fill(stamp: u64, sector: &mut [u8]) {
    for (index, bytes) in sector.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(stamp, index).to_le_bytes());
    }
}

fn stamp(sector: &[u8]) -> u64 {
    let mut words = sector.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).enumerate();
    let stamp = words.next().expect("a sector is not empty").1;
    assert!(words.all(|(index, found)| found == word(stamp, index)), "a sector holds what nobody wrote");
    stamp
}

fn stamps(block: &[u8]) -> Stamps {
    let mut sectors = block.chunks_exact(SECTOR_BYTES).map(stamp);
    std::array::from_fn(|_| sectors.next().expect("a whole block"))
}

/// What a volume with this content looks like.
pub fn view_of(content: &[u8]) -> View {
    let blocks = (0..).zip(content.chunks_exact(BLOCK_BYTES)).filter(|(_, block)| !is_zero(block));
    blocks.map(|(number, block)| (number, stamps(block))).collect()
}

impl SimImage {
    /// An image of zeroes.
    pub fn new(size_bytes: u64, faults: Arc<Faults>) -> Self {
        Self { blocks: Mutex::default(), size_bytes: AtomicU64::new(size_bytes), faults }
    }

    /// A copy that goes its own way.
    pub fn fork(&self, faults: Arc<Faults>) -> Self {
        let blocks = Mutex::new(self.blocks.lock().unwrap().clone());
        Self { blocks, size_bytes: AtomicU64::new(self.size_bytes()), faults }
    }

    /// What a daemon that starts finds: a file that is long enough, and a record of its size.
    pub fn reopen(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, SeqCst);
    }

    /// What is beyond this size is gone, durably.
    pub fn go_back_to(&self, size_bytes: u64) -> io::Result<()> {
        let tail = Run::covering(size_bytes, self.size_bytes().saturating_sub(size_bytes));
        if let Some(tail) = tail {
            self.zero(tail)?;
            self.sync()?;
            self.reopen(size_bytes);
        }
        Ok(())
    }

    /// Writes sectors one by one, as a guest does; a stamp for each.
    pub fn put(&self, first_sector: u64, stamps: &[u64]) {
        let blocks = &mut *self.blocks.lock().unwrap();
        for (sector, stamp) in (first_sector as usize..).zip(stamps) {
            let block = (sector / SECTORS) as BlockNumber;
            let mut content = blocks.visible.get(&block).copied().unwrap_or_default();
            content[sector % SECTORS] = *stamp;
            blocks.write(block, content);
        }
    }

    /// All blocks that are not zero.
    pub fn view(&self) -> View {
        let mut blocks = self.blocks.lock().unwrap();
        blocks.let_go();
        blocks.visible.clone()
    }

    /// The power goes: each block falls back as a whole, or sector by sector, or not at all.
    pub fn lose_power(&self, rng: &mut StdRng) {
        let blocks = &mut *self.blocks.lock().unwrap();
        blocks.let_go();
        for (block, mut versions) in std::mem::take(&mut blocks.unsynced) {
            versions.push(blocks.visible.get(&block).copied().unwrap_or_default());
            let whole = versions[rng.random_range(0..versions.len())];
            let torn = rng.random_bool(0.3);
            let content =
                std::array::from_fn(|sector| if torn { versions[rng.random_range(0..versions.len())][sector] } else { whole[sector] });
            blocks.set(block, content);
        }
    }

    fn check(&self, run: Run) -> io::Result<()> {
        let inside = run.offset() + run.len_bytes() <= self.size_bytes();
        if inside { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the image")) }
    }

    /// Writes the blocks; after an error, some of them.
    fn write_blocks(&self, written: Vec<(BlockNumber, Stamps)>) -> io::Result<()> {
        let met = self.faults.meet(Access::Write);
        let take = if met.is_ok() { written.len() } else { self.faults.part_of(written.len()) };
        let blocks = &mut *self.blocks.lock().unwrap();
        for (block, content) in written.into_iter().take(take) {
            if self.faults.plant() == Some(Plant::FoldOutOfOrder) {
                blocks.held.push((block, content));
                if blocks.held.len() > HELD_WRITES {
                    blocks.let_go();
                }
            } else {
                blocks.write(block, content);
            }
        }
        met
    }
}

impl Blocks {
    fn set(&mut self, block: BlockNumber, content: Stamps) {
        if content == Stamps::default() {
            self.visible.remove(&block);
        } else {
            self.visible.insert(block, content);
        }
    }

    fn write(&mut self, block: BlockNumber, content: Stamps) {
        let old = self.visible.get(&block).copied().unwrap_or_default();
        self.unsynced.entry(block).or_default().push(old);
        self.set(block, content);
    }

    /// What is held back is written, the last first.
    fn let_go(&mut self) {
        while let Some((block, content)) = self.held.pop() {
            self.write(block, content);
        }
    }
}

impl BlockDevice for SimImage {
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()> {
        self.check(run)?;
        self.faults.meet(Access::Read)?;
        let mut blocks = self.blocks.lock().unwrap();
        blocks.let_go();
        for (block, content) in run.blocks().zip(content.chunks_exact_mut(BLOCK_BYTES)) {
            match blocks.visible.get(&block) {
                Some(stored) => stored.iter().zip(content.chunks_exact_mut(SECTOR_BYTES)).for_each(|(stamp, sector)| fill(*stamp, sector)),
                None => content.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, run: Run, content: &[u8]) -> io::Result<()> {
        self.check(run)?;
        self.write_blocks(run.blocks().zip(content.chunks_exact(BLOCK_BYTES).map(stamps)).collect())
    }

    fn zero(&self, run: Run) -> io::Result<()> {
        self.check(run)?;
        let data: Vec<BlockNumber> = self.view().range(run.blocks()).map(|(block, _)| *block).collect();
        self.write_blocks(data.into_iter().map(|block| (block, Stamps::default())).collect())
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.meet(Access::Sync)?;
        let mut blocks = self.blocks.lock().unwrap();
        blocks.let_go();
        blocks.unsynced.clear();
        Ok(())
    }

    fn allocated(&self, from: BlockNumber) -> io::Result<Option<Run>> {
        self.faults.meet(Access::Read)?;
        let mut blocks = self.blocks.lock().unwrap();
        blocks.let_go();
        let end = block_count(self.size_bytes()) as BlockNumber;
        let mut data = blocks.visible.range(from..end.max(from)).map(|(block, _)| *block);
        let Some(start) = data.next() else { return Ok(None) };
        let more = data.zip(start + 1..).take_while(|(block, next)| block == next).count() as u32;
        Ok(Some(Run { start, len: 1 + more }))
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(SeqCst)
    }

    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.faults.meet(Access::Write)?;
        self.size_bytes.fetch_max(size_bytes, SeqCst);
        Ok(())
    }
}
