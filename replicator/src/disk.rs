//! What replication needs of storage, as narrow traits, so that the simulator can put a disk that loses power behind the real code.

use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run, block_count, runs};
use roaring::RoaringBitmap;
use std::io;
use std::ops::{Deref, DerefMut, Range};

/// A volume's content at this site. Buffers are page aligned ([`Pages`]), so that direct I/O can take them as they are.
pub trait BlockDevice: Send + Sync {
    /// Reads the blocks of `run` into `content`, which has exactly their length.
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()>;
    /// Writes the blocks of `run`.
    fn write(&self, run: Run, content: &[u8]) -> io::Result<()>;
    /// Makes the blocks read as zeroes, and frees their space where that is possible.
    fn zero(&self, run: Run) -> io::Result<()>;
    /// Makes every write that was finished before durable.
    fn sync(&self) -> io::Result<()>;
    /// The first run of blocks at or after `from` that may hold something other than zeroes; it may end early.
    fn allocated(&self, from: BlockNumber) -> io::Result<Option<Run>>;
    /// Size in bytes, a multiple of a block.
    fn size_bytes(&self) -> u64;
    /// Grows to `size_bytes`, durably.
    fn grow(&self, size_bytes: u64) -> io::Result<()>;
}

/// A directory of append-only files, named by number.
pub trait SegmentFiles: Send {
    /// The numbers of the files there, ascending.
    fn list(&self) -> io::Result<Vec<u64>>;
    /// Makes an empty file; its name is durable on return.
    fn create(&mut self, number: u64) -> io::Result<()>;
    /// Appends to the file that was created last. After an error, some of it may be there.
    fn append(&mut self, number: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was appended durable.
    fn sync(&mut self, number: u64) -> io::Result<()>;
    /// Length of the file in bytes.
    fn len_bytes(&self, number: u64) -> io::Result<u64>;
    /// What is read from here on of this range is as it is on the disk, and not in memory. A hint for files that are not kept in memory.
    fn forget_cached(&self, _number: u64, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }
    /// Reads exactly `content.len()` bytes at `offset`.
    fn read(&self, number: u64, offset: u64, content: &mut [u8]) -> io::Result<()>;
    /// Cuts the file off at `len_bytes`, durably.
    fn truncate(&mut self, number: u64, len_bytes: u64) -> io::Result<()>;
    /// Removes the file, durably; it may be gone already.
    fn delete(&mut self, number: u64) -> io::Result<()>;
}

/// A digest for each block of an image, 0 where there is none. What was not synced may be lost, entry by entry.
pub trait DigestFile: Send + Sync {
    /// Whether [`Self::begin`] was called ever: a file that is gone is not.
    fn is_begun(&self) -> io::Result<bool>;
    /// Removes every entry, durably.
    fn begin(&self) -> io::Result<()>;
    /// Reads the entries of the blocks from `start` on; behind the end there are none.
    fn load(&self, start: BlockNumber, digests: &mut [u64]) -> io::Result<()>;
    /// Writes the entries of the blocks from `start` on.
    fn store(&self, start: BlockNumber, digests: &[u64]) -> io::Result<()>;
    /// Removes the entries of the blocks from `start` up to `end`.
    fn clear(&self, start: BlockNumber, end: BlockNumber) -> io::Result<()>;
    /// The first block at or after `from` that may have an entry.
    fn next(&self, from: BlockNumber) -> io::Result<Option<BlockNumber>>;
    /// Makes every entry durable.
    fn sync(&self) -> io::Result<()>;
}

/// What is left of some blocks on a disk that does not give all of them.
pub struct ReadEach {
    /// What the others hold, one after the other.
    pub content: Vec<u8>,
    /// These cannot be read.
    pub unreadable: RoaringBitmap,
}

/// Reads blocks together, or each by itself where that fails. An error if the disk answers nowhere else, either: then nothing is lost yet.
pub fn read_each(image: &dyn BlockDevice, blocks: &RoaringBitmap) -> io::Result<ReadEach> {
    let mut read = ReadEach { content: Vec::with_capacity(blocks.len() as usize * BLOCK_BYTES), unreadable: RoaringBitmap::new() };
    let content = |run: Run| {
        let mut pages = Pages::new(run.len);
        image.read(run, &mut pages).map(|()| pages)
    };
    let mut failure = None;
    for run in runs(blocks) {
        if let Ok(pages) = content(run) {
            read.content.extend_from_slice(&pages);
            continue;
        }
        for start in run.blocks() {
            match content(Run { start, len: 1 }) {
                Ok(pages) => read.content.extend_from_slice(&pages),
                Err(error) => {
                    read.unreadable.insert(start);
                    failure = Some(error);
                }
            }
        }
    }
    let last = (block_count(image.size_bytes()) as BlockNumber).saturating_sub(1);
    let answers = |block: BlockNumber| !blocks.contains(block) && content(Run { start: block, len: 1 }).is_ok();
    match failure {
        Some(error) if read.content.is_empty() && ![0, last / 2, last].into_iter().any(answers) => Err(error),
        _ => Ok(read),
    }
}

/// A page-aligned buffer of whole blocks.
pub struct Pages {
    bytes: Vec<u8>,
    start: usize,
    len_bytes: usize,
}

impl Pages {
    /// A zeroed buffer of `blocks` blocks.
    pub fn new(blocks: u32) -> Self {
        let len_bytes = blocks as usize * BLOCK_BYTES;
        let bytes = vec![0; len_bytes + BLOCK_BYTES];
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES);
        Self { bytes, start, len_bytes }
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len_bytes]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len_bytes]
    }
}
