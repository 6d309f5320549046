//! The digests of an image as a file: 8 bytes a block, little-endian, in the order of the blocks; holes where there are none.
//!
//! Written through the page cache: neighbours go to the disk together, at a sync.

use crate::disk::DigestFile;
use replicator_engine::block::BlockNumber;
use rustix::fs::{FallocateFlags, SeekFrom};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of an entry.
pub const DIGEST_BYTES: u64 = 8;
/// Zeroes that are written at once where a file system cannot make holes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// See the module's documentation.
pub struct DigestsOnDisk(File);

impl DigestsOnDisk {
    /// Opens the file, which is made if it is missing: empty then, which it is never again once it was begun.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map(Self)
    }
}

fn offset(block: BlockNumber) -> u64 {
    u64::from(block) * DIGEST_BYTES
}

impl DigestFile for DigestsOnDisk {
    fn is_begun(&self) -> io::Result<bool> {
        Ok(self.0.metadata()?.len() > 0)
    }

    fn begin(&self) -> io::Result<()> {
        self.0.set_len(0)?;
        self.0.set_len(DIGEST_BYTES)?;
        self.0.sync_all()
    }

    fn load(&self, start: BlockNumber, digests: &mut [u64]) -> io::Result<()> {
        let mut bytes = vec![0; digests.len() * DIGEST_BYTES as usize];
        let mut read = 0;
        while read < bytes.len() {
            match self.0.read_at(&mut bytes[read..], offset(start) + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        for (digest, bytes) in digests.iter_mut().zip(bytes.chunks_exact(DIGEST_BYTES as usize)) {
            *digest = u64::from_le_bytes(bytes.try_into().expect("chunks of this length"));
        }
        Ok(())
    }

    fn store(&self, start: BlockNumber, digests: &[u64]) -> io::Result<()> {
        let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.to_le_bytes()).collect();
        self.0.write_all_at(&bytes, offset(start))
    }

    fn clear(&self, start: BlockNumber, end: BlockNumber) -> io::Result<()> {
        let end = offset(end).min(self.0.metadata()?.len());
        let len_bytes = end.saturating_sub(offset(start));
        if len_bytes == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.0, flags, offset(start), len_bytes) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => (offset(start)..end).step_by(ZEROES.len()).try_for_each(|at| {
                let some = ZEROES.len().min((end - at) as usize);
                self.0.write_all_at(&ZEROES[..some], at)
            }),
            Err(error) => Err(error.into()),
        }
    }

    fn next(&self, from: BlockNumber) -> io::Result<Option<BlockNumber>> {
        match rustix::fs::seek(&self.0, SeekFrom::Data(offset(from))) {
            Ok(at) => Ok(u32::try_from(at / DIGEST_BYTES).ok()),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_again_and_holes_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("digests");
        let file = DigestsOnDisk::open(&path).unwrap();
        assert!(!file.is_begun().unwrap());
        file.begin().unwrap();
        assert_eq!((file.is_begun().unwrap(), file.next(0).unwrap()), (true, None));
        file.store(1 << 20, &[7, 8, 9]).unwrap();
        assert!(file.next(5).unwrap().is_some_and(|next| next > 5 && next <= 1 << 20));
        file.clear((1 << 20) + 1, u32::MAX).unwrap();
        file.sync().unwrap();
        let mut digests = [1; 4];
        DigestsOnDisk::open(&path).unwrap().load(1 << 20, &mut digests).unwrap();
        assert_eq!(digests, [7, 0, 0, 0]);
    }
}
