//! The durable record of the regions that may differ from the standby, so that a crash costs a short compare and not a full one.
//!
//! An extent is *hot* while its key is in the catalogue. It becomes hot, durably, before the first write to it is submitted. It cools
//! once everything written to it is committed at every standby and covered by a flush of the local image: a standby may be ahead of a
//! primary that lost its power.

use crate::catalogue::{Catalogue, Change, Persist};
use replicator_engine::block::Run;
use replicator_engine::tracker::DirtyMap;
use roaring::RoaringBitmap;
use std::io;
use std::sync::{Arc, Mutex};

/// Blocks of an extent: 4 MiB of volume.
pub const EXTENT_BLOCKS: u32 = 1024;

/// See the module's documentation.
pub struct ActivityLog {
    catalogue: Arc<dyn Catalogue>,
    prefix: Vec<u8>,
    hot: DirtyMap,
    /// Held while keys and bits change together.
    changing: Mutex<()>,
}

/// The extents that `run` touches, as a run of extent numbers.
pub fn extents(run: Run) -> Run {
    let first = run.start / EXTENT_BLOCKS;
    Run { start: first, len: (run.end() - 1) / EXTENT_BLOCKS - first + 1 }
}

/// The blocks of an extent, cut off at the last block number.
pub fn blocks(extent: u32) -> Run {
    let start = extent * EXTENT_BLOCKS;
    Run { start, len: EXTENT_BLOCKS.min(u32::MAX - start) }
}

impl ActivityLog {
    /// Reads the log of the volume whose keys begin with `prefix`.
    pub fn open(catalogue: Arc<dyn Catalogue>, prefix: Vec<u8>) -> io::Result<Self> {
        let hot = DirtyMap::default();
        for (key, _) in catalogue.scan(&prefix)? {
            let number = key[prefix.len()..].try_into().map(u32::from_be_bytes);
            let number = number.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "activity log: a key is not an extent number"))?;
            hot.set(Run { start: number, len: 1 });
        }
        Ok(Self { catalogue, prefix, hot, changing: Mutex::new(()) })
    }

    /// Whether every extent that `run` touches is hot. A few loads: this is on the request path.
    pub fn covers(&self, run: Run) -> bool {
        extents(run).blocks().all(|extent| self.hot.contains(extent))
    }

    /// The hot extents.
    pub fn hot(&self) -> RoaringBitmap {
        self.hot.snapshot()
    }

    /// Makes the extents of all `runs` hot: durable on return.
    pub fn heat(&self, runs: impl IntoIterator<Item = Run>) -> io::Result<()> {
        let _changing = self.changing.lock().expect("no panic under this lock");
        let cold: RoaringBitmap =
            runs.into_iter().flat_map(|run| extents(run).blocks()).filter(|extent| !self.hot.contains(*extent)).collect();
        if cold.is_empty() {
            return Ok(());
        }
        let changes: Vec<Change> = cold.iter().map(|extent| (self.key(extent), Some(Vec::new()))).collect();
        self.catalogue.apply(&changes, Persist::Synced)?;
        self.hot.set_all(&cold);
        Ok(())
    }

    /// Lets extents cool for which `is_clean` still holds once no new write can take them for hot. `begin` is called first; nobody else cools
    /// extents meanwhile.
    pub fn cool(&self, candidates: &RoaringBitmap, begin: impl FnOnce(), is_clean: impl Fn(u32) -> bool) -> io::Result<()> {
        let _changing = self.changing.lock().expect("no panic under this lock");
        begin();
        let mut cooled = RoaringBitmap::new();
        for extent in candidates {
            // A write marks its blocks before it looks at the log: either it finds the extent cold, or `is_clean` finds its mark.
            if self.hot.clear(extent) {
                if is_clean(extent) {
                    cooled.insert(extent);
                } else {
                    self.hot.set(Run { start: extent, len: 1 });
                }
            }
        }
        let changes: Vec<Change> = cooled.iter().map(|extent| (self.key(extent), None)).collect();
        let done = if changes.is_empty() { Ok(()) } else { self.catalogue.apply(&changes, Persist::Eventually) };
        if done.is_err() {
            self.hot.set_all(&cooled);
        }
        done
    }

    /// Lets every extent cool, durably.
    pub fn clear(&self) -> io::Result<()> {
        let _changing = self.changing.lock().expect("no panic under this lock");
        let hot = self.hot.snapshot();
        let changes: Vec<Change> = hot.iter().map(|extent| (self.key(extent), None)).collect();
        self.catalogue.apply(&changes, Persist::Synced)?;
        self.hot.clear_all();
        Ok(())
    }

    fn key(&self, extent: u32) -> Vec<u8> {
        [self.prefix.as_slice(), &extent.to_be_bytes()].concat()
    }
}
