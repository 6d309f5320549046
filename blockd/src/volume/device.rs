//! An image as replication sees it: whole blocks.

use crate::store::Image;
use replicator::disk::BlockDevice;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use std::io;

impl BlockDevice for Image {
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()> {
        self.read_at(content, run.offset())
    }

    fn write(&self, run: Run, content: &[u8]) -> io::Result<()> {
        self.write_at(content, run.offset())
    }

    fn zero(&self, run: Run) -> io::Result<()> {
        self.punch(run.offset(), run.len_bytes())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn allocated(&self, from: BlockNumber) -> io::Result<Option<Run>> {
        let from = u64::from(from) * BLOCK_BYTES as u64;
        let found = Image::allocated(self, from..self.size_bytes()).next().transpose()?;
        Ok(found.and_then(|bytes| Run::covering(bytes.start, bytes.end - bytes.start)))
    }

    fn size_bytes(&self) -> u64 {
        Image::size_bytes(self)
    }

    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        Image::grow(self, size_bytes).map_err(io::Error::other)
    }
}
