//! A volume's totals, since it was made.

use crate::catalogue::{Catalogue, Persist};
use replicator_engine::generation::Id;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// See the module's documentation. A crash loses what was counted since they were last stored.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Bytes that clients wrote.
    pub changed_bytes: AtomicU64,
    /// Bytes that went out, headers included.
    pub wire_bytes_sent: AtomicU64,
    /// Bytes that came in, headers included.
    pub wire_bytes_received: AtomicU64,
    /// Blocks that were sent as zeroes.
    pub zero_blocks: AtomicU64,
    /// Blocks that the standby had already.
    pub duplicate_blocks: AtomicU64,
    /// Blocks that were sent as a difference.
    pub delta_blocks: AtomicU64,
    /// Blocks that were sent whole.
    pub full_blocks: AtomicU64,
}

impl Counters {
    /// The totals of a volume; zeroes if it has none yet.
    pub fn load(catalogue: &dyn Catalogue, volume: Id) -> io::Result<Self> {
        let Some(value) = catalogue.get(&key(volume))? else { return Ok(Self::default()) };
        serde_json::from_slice(&value).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("catalogue: counters: {error}")))
    }

    /// Remembers them.
    pub fn store(&self, catalogue: &dyn Catalogue, volume: Id) -> io::Result<()> {
        let value = serde_json::to_vec(self).map_err(io::Error::other)?;
        catalogue.apply(&[(key(volume), Some(value))], Persist::Eventually)
    }

    /// Forgets the totals of a volume that is deleted.
    pub fn forget(catalogue: &dyn Catalogue, volume: Id) -> io::Result<()> {
        catalogue.apply(&[(key(volume), None)], Persist::Eventually)
    }
}

/// Adds to a total.
pub fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Relaxed);
}

/// Reads a total.
pub fn read(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

fn key(volume: Id) -> Vec<u8> {
    format!("counters/{volume}").into_bytes()
}
