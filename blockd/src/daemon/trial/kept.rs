//! What an image held before a trial changed it.
//!
//! ```text
//!   image ──► a file beside it, synced ──► recorded as kept ──► (the trial may change the block)
//! ```
//!
//! The file has each block at its own place, and another one beside it the block's digest. A block is kept once, and what is kept is never changed:
//! putting it back may be done again after a crash, as often as it takes. What is not what was kept is not put back.

use crate::daemon::drills::leave_room;
use crate::daemon::volumes::if_there;
use crate::store::Image;
use replicator::catalogue::{Catalogue, Persist};
use replicator::codec::{digest_of, fingerprint};
use replicator::disk::{BlockDevice, DigestFile, Pages};
use replicator::ledger::{self, Ledger};
use replicator::standby::DigestsOnDisk;
use replicator_engine::block::{BLOCK_BYTES, Run, runs};
use roaring::RoaringBitmap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Blocks that are moved at once.
const PIECE_BLOCKS: u32 = 256;

/// Where a volume's is.
pub(super) struct KeptPlace {
    pub path: PathBuf,
    pub prefix: Vec<u8>,
    pub catalogue: Arc<dyn Catalogue>,
}

/// See the module's documentation.
pub(super) struct Kept {
    file: File,
    digests: DigestsOnDisk,
    dir: PathBuf,
    ledger: Ledger,
}

impl KeptPlace {
    /// Begins anew: what an earlier trial has left goes.
    pub fn begin(&self) -> io::Result<Kept> {
        self.forget()?;
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path)?.sync_all()?;
        DigestsOnDisk::open(&self.digests())?.begin()?;
        File::open(self.dir())?.sync_all()?;
        self.open()
    }

    /// Opens what was begun.
    pub fn open(&self) -> io::Result<Kept> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        // What was read of it before a sync that failed is not what is on the disk.
        let _ = file.sync_data();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let ledger = Ledger::open(self.catalogue.clone(), self.prefix.clone())?;
        Ok(Kept { file, digests: DigestsOnDisk::open(&self.digests())?, dir: self.dir().to_owned(), ledger })
    }

    /// Forgets it.
    pub fn forget(&self) -> io::Result<()> {
        let gone = ledger::gone(&*self.catalogue, &self.prefix)?;
        if !gone.is_empty() {
            self.catalogue.apply(&gone, Persist::Synced)?;
        }
        if_there(std::fs::remove_file(self.digests()))?;
        if_there(std::fs::remove_file(&self.path))
    }

    fn digests(&self) -> PathBuf {
        self.path.with_extension("digests")
    }

    fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }
}

impl Kept {
    /// The blocks that may have changed.
    pub fn blocks(&self) -> &RoaringBitmap {
        self.ledger.blocks()
    }

    /// Keeps what the image holds of these blocks, unless that was done. Durable on return. Where there is no room, nothing has changed.
    pub fn keep(&mut self, image: &Image, blocks: &RoaringBitmap) -> io::Result<()> {
        let fresh = blocks - self.ledger.blocks();
        if fresh.is_empty() {
            return Ok(());
        }
        leave_room(&self.dir, "the trial")?;
        for run in runs(&fresh).flat_map(pieces) {
            let mut content = Pages::new(run.len);
            BlockDevice::read(image, run, &mut content)?;
            // What is not written reads as zeroes.
            if content.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(&content, run.offset())?;
            }
            self.digests.store(run.start, &content.chunks_exact(BLOCK_BYTES).map(digest).collect::<Vec<_>>())?;
        }
        let end = fresh.max().map_or(0, |last| Run { start: last, len: 1 }.offset() + Run { start: last, len: 1 }.len_bytes());
        if self.file.metadata()?.len() < end {
            self.file.set_len(end)?;
        }
        self.file.sync_data()?;
        self.digests.sync()?;
        self.ledger.add(&fresh)
    }

    /// The blocks that are not what was kept.
    pub fn damaged(&self) -> io::Result<RoaringBitmap> {
        let mut damaged = RoaringBitmap::new();
        for run in runs(self.ledger.blocks()).flat_map(pieces) {
            damaged |= self.read(run, &mut Pages::new(run.len))?;
        }
        Ok(damaged)
    }

    /// Puts everything back, durably, but for blocks that are not what was kept: says which.
    pub fn put_back(&self, image: &Image, mut told: impl FnMut(u64)) -> io::Result<RoaringBitmap> {
        let (mut done, mut damaged) = (0, RoaringBitmap::new());
        for run in runs(self.ledger.blocks()).flat_map(pieces) {
            let mut content = Pages::new(run.len);
            let wrong = self.read(run, &mut content)?;
            if !wrong.is_empty() {
                let sound: RoaringBitmap = run.blocks().filter(|block| !wrong.contains(*block)).collect();
                for part in runs(&sound) {
                    let mut pages = Pages::new(part.len);
                    pages.copy_from_slice(&content[(part.offset() - run.offset()) as usize..][..part.len_bytes() as usize]);
                    BlockDevice::write(image, part, &pages)?;
                }
            } else if content.iter().all(|byte| *byte == 0) {
                BlockDevice::zero(image, run)?;
            } else {
                BlockDevice::write(image, run, &content)?;
            }
            damaged |= wrong;
            done += run.len_bytes();
            told(done);
        }
        image.sync_data()?;
        Ok(damaged)
    }

    /// Reads what was kept; says which blocks are not that.
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<RoaringBitmap> {
        let mut digests = vec![0; run.len as usize];
        self.digests.load(run.start, &mut digests)?;
        let mut wrong = RoaringBitmap::new();
        let whole = self.file.read_exact_at(content, run.offset()).is_ok();
        for ((block, content), expected) in run.blocks().zip(content.chunks_exact_mut(BLOCK_BYTES)).zip(digests) {
            // What can be read by itself is not lost with its neighbours.
            let start = Run { start: block, len: 1 }.offset();
            let is_read = whole || self.file.read_exact_at(content, start).is_ok();
            if !is_read || digest(content) != expected {
                wrong.insert(block);
            }
        }
        Ok(wrong)
    }
}

/// Never 0: an entry that is gone is no digest.
fn digest(block: &[u8]) -> u64 {
    digest_of(&fingerprint(block))
}

fn pieces(run: Run) -> impl Iterator<Item = Run> {
    run.blocks().step_by(PIECE_BLOCKS as usize).map(move |start| Run { start, len: PIECE_BLOCKS.min(run.end() - start) })
}

#[cfg(test)]
mod tests;
