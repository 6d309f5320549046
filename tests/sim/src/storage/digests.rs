//! The digests of an image's blocks, in a page cache: of what was not synced, each entry may be lost. After a sync that failed the pages
//! count as clean, and a later sync does not write them.

use super::{Access, Faults};
use crate::plant::Plant;
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::disk::DigestFile;
use replicator_engine::block::BlockNumber;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Entries {
    /// What a read sees.
    visible: BTreeMap<BlockNumber, u64>,
    /// What the disk may hold of an entry that differs from that, or did: the synced one first.
    on_disk: BTreeMap<BlockNumber, Vec<u64>>,
    /// The file has been begun.
    is_begun: bool,
}

impl Entries {
    fn set(&mut self, block: BlockNumber, digest: u64) {
        let old = if digest == 0 { self.visible.remove(&block) } else { self.visible.insert(block, digest) };
        let versions = self.on_disk.entry(block).or_insert_with(|| vec![old.unwrap_or(0)]);
        versions.push(digest);
    }
}

/// Clones share the file, as a restarted process does.
#[derive(Clone)]
pub struct SimDigests {
    entries: Arc<Mutex<Entries>>,
    faults: Arc<Faults>,
}

impl SimDigests {
    /// An empty file.
    pub fn new(faults: Arc<Faults>) -> Self {
        Self { entries: Arc::default(), faults }
    }

    /// A copy that goes its own way.
    pub fn fork(&self, faults: Arc<Faults>) -> Self {
        Self { entries: Arc::new(Mutex::new(self.entries.lock().unwrap().clone())), faults }
    }

    /// The file is removed, durably.
    pub fn remove(&self) -> io::Result<()> {
        self.faults.meet(Access::Write)?;
        *self.entries.lock().unwrap() = Entries::default();
        Ok(())
    }

    /// The power goes.
    pub fn lose_power(&self, rng: &mut StdRng) {
        let entries = &mut *self.entries.lock().unwrap();
        for (block, versions) in std::mem::take(&mut entries.on_disk) {
            entries.set(block, versions[rng.random_range(0..versions.len())]);
        }
        entries.on_disk.clear();
    }
}

impl DigestFile for SimDigests {
    fn is_begun(&self) -> io::Result<bool> {
        self.faults.meet(Access::Read)?;
        Ok(self.entries.lock().unwrap().is_begun)
    }

    fn begin(&self) -> io::Result<()> {
        self.faults.meet(Access::Sync)?;
        *self.entries.lock().unwrap() = Entries { is_begun: true, ..Entries::default() };
        Ok(())
    }

    fn load(&self, start: BlockNumber, digests: &mut [u64]) -> io::Result<()> {
        self.faults.meet(Access::Read)?;
        let entries = self.entries.lock().unwrap();
        for (block, digest) in (start..).zip(digests) {
            *digest = entries.visible.get(&block).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn store(&self, start: BlockNumber, digests: &[u64]) -> io::Result<()> {
        let met = self.faults.meet(Access::Write);
        let take = if met.is_ok() { digests.len() } else { self.faults.part_of(digests.len()) };
        let mut entries = self.entries.lock().unwrap();
        (start..).zip(&digests[..take]).for_each(|(block, digest)| entries.set(block, *digest));
        met
    }

    fn clear(&self, start: BlockNumber, end: BlockNumber) -> io::Result<()> {
        self.faults.meet(Access::Write)?;
        let mut entries = self.entries.lock().unwrap();
        let there: Vec<BlockNumber> = entries.visible.range(start..end.max(start)).map(|(block, _)| *block).collect();
        there.into_iter().for_each(|block| entries.set(block, 0));
        Ok(())
    }

    fn next(&self, from: BlockNumber) -> io::Result<Option<BlockNumber>> {
        self.faults.meet(Access::Read)?;
        Ok(self.entries.lock().unwrap().visible.range(from..).next().map(|(block, _)| *block))
    }

    fn sync(&self) -> io::Result<()> {
        let met = self.faults.meet(Access::Sync);
        let mut entries = self.entries.lock().unwrap();
        if self.faults.plant() == Some(Plant::ForgetDigests) {
            return met;
        }
        if met.is_ok() {
            entries.on_disk.retain(|_, versions| versions.len() == 1);
        } else {
            // Written or not, nobody writes them again.
            entries.on_disk.values_mut().for_each(|versions| versions.truncate(1));
        }
        met
    }
}
