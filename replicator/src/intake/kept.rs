//! Old content of frozen blocks that the guest overwrote before they were shipped: in memory first, then in a bounded spill file.
//!
//! When both are full the cut is given up ([`KeptBlocks::overflowed`]) and the guest goes on: it never waits for the network.

use replicator_engine::block::{BLOCK_BYTES, BlockNumber};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// How much content may be kept of a volume, for all of its standbys: each has an equal share, so that a slow one does not use up another's.
#[derive(Clone, Debug)]
pub struct KeptLimits {
    /// In memory.
    pub memory_bytes: u64,
    /// In the spill file.
    pub spill_bytes: u64,
    /// Where the spill file is made; it has no name there.
    pub spill_dir: PathBuf,
}

enum Place {
    Memory(Box<[u8]>),
    Spill(u64),
}

#[derive(Default)]
struct Inner {
    blocks: HashMap<BlockNumber, Place>,
    memory_bytes: u64,
    spill: Option<File>,
    spill_blocks: u64,
    overflowed: bool,
}

/// See the module's documentation.
pub struct KeptBlocks {
    limits: KeptLimits,
    inner: Mutex<Inner>,
}

impl KeptBlocks {
    /// Keeps nothing yet.
    pub fn new(limits: KeptLimits) -> Self {
        Self { limits, inner: Mutex::default() }
    }

    /// Keeps the content of `block`, unless there is no room: then the epoch counts as overflowed. The limits are for so many that keep something.
    pub fn keep(&self, block: BlockNumber, content: &[u8], sharers: u64) {
        let mut inner = self.inner.lock().expect("no panic under this lock");
        match inner.store(&self.limits, sharers, content) {
            Ok(place) => drop(inner.blocks.insert(block, place)),
            Err(error) => {
                tracing::warn!(block, %error, "no room to keep the content of a frozen block: the cut is given up");
                inner.overflowed = true;
            }
        }
    }

    /// Takes the content of `block` out into `content`; says whether it was there.
    pub fn take(&self, block: BlockNumber, content: &mut [u8]) -> io::Result<bool> {
        let mut inner = self.inner.lock().expect("no panic under this lock");
        match inner.blocks.remove(&block) {
            None => return Ok(false),
            Some(Place::Memory(kept)) => {
                inner.memory_bytes -= BLOCK_BYTES as u64;
                content.copy_from_slice(&kept);
            }
            Some(Place::Spill(slot)) => {
                let spill = inner.spill.as_ref().expect("a spilled block has a spill file");
                spill.read_exact_at(content, slot * BLOCK_BYTES as u64)?;
            }
        }
        Ok(true)
    }

    /// Whether some content had no room since the last [`Self::clear`].
    pub fn overflowed(&self) -> bool {
        self.inner.lock().expect("no panic under this lock").overflowed
    }

    /// Bytes kept now, in memory and in the spill file.
    pub fn used_bytes(&self) -> (u64, u64) {
        let inner = self.inner.lock().expect("no panic under this lock");
        (inner.memory_bytes, inner.spill_blocks * BLOCK_BYTES as u64)
    }

    /// Forgets everything: the epoch is shipped or given up.
    pub fn clear(&self) {
        *self.inner.lock().expect("no panic under this lock") = Inner::default();
    }
}

impl Inner {
    fn store(&mut self, limits: &KeptLimits, sharers: u64, content: &[u8]) -> io::Result<Place> {
        if self.memory_bytes + BLOCK_BYTES as u64 <= limits.memory_bytes / sharers {
            self.memory_bytes += BLOCK_BYTES as u64;
            return Ok(Place::Memory(content.into()));
        }
        let slot = self.spill_blocks;
        if (slot + 1) * BLOCK_BYTES as u64 > limits.spill_bytes / sharers {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the spill quota is used up"));
        }
        if self.spill.is_none() {
            self.spill = Some(unnamed_file(&limits.spill_dir)?);
        }
        let spill = self.spill.as_ref().expect("just made");
        spill.write_all_at(content, slot * BLOCK_BYTES as u64)?;
        self.spill_blocks += 1;
        Ok(Place::Spill(slot))
    }
}

fn unnamed_file(dir: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    Ok(File::from(rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_goes_to_memory_then_to_the_spill_file_then_overflows_at_its_share() {
        let block = BLOCK_BYTES as u64;
        let limits = KeptLimits { memory_bytes: 2 * block, spill_bytes: 2 * block, spill_dir: std::env::temp_dir() };
        let kept = KeptBlocks::new(limits);
        for number in 0..2 {
            kept.keep(number, &[number as u8 + 1; BLOCK_BYTES], 2);
        }
        assert_eq!((kept.used_bytes(), kept.overflowed()), ((block, block), false));
        kept.keep(2, &[3; BLOCK_BYTES], 2);
        assert!(kept.overflowed());
        let mut content = vec![0; BLOCK_BYTES];
        for number in 0..2 {
            assert!(kept.take(number, &mut content).unwrap());
            assert_eq!(content, [number as u8 + 1; BLOCK_BYTES]);
        }
        assert!(!kept.take(0, &mut content).unwrap());
        kept.clear();
        assert_eq!((kept.used_bytes(), kept.overflowed()), ((0, 0), false));
    }
}
