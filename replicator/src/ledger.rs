//! A set of blocks that only grows, and is durable.

use crate::catalogue::{Catalogue, Change, Persist};
use roaring::RoaringBitmap;
use std::io;
use std::sync::Arc;

/// Records, until they are put together.
const MAX_RECORDS: u64 = 256;

/// See the module's documentation: a record for what was added together, under a prefix and its number.
pub struct Ledger {
    catalogue: Arc<dyn Catalogue>,
    prefix: Vec<u8>,
    blocks: RoaringBitmap,
    records: u64,
}

impl Ledger {
    /// Reads what stands under `prefix`.
    pub fn open(catalogue: Arc<dyn Catalogue>, prefix: Vec<u8>) -> io::Result<Self> {
        let (mut blocks, mut records) = (RoaringBitmap::new(), 0);
        for (key, some) in catalogue.scan(&prefix)? {
            let damaged =
                || io::Error::new(io::ErrorKind::InvalidData, format!("catalogue: {} has no number", String::from_utf8_lossy(&key)));
            let number: Option<u64> = std::str::from_utf8(&key[prefix.len()..]).ok().and_then(|number| number.parse().ok());
            blocks |= RoaringBitmap::deserialize_from(&*some)?;
            records = number.ok_or_else(damaged)? + 1;
        }
        Ok(Self { catalogue, prefix, blocks, records })
    }

    /// One that is empty, whatever stands under `prefix`: that has to go before anything is added.
    pub fn empty(catalogue: Arc<dyn Catalogue>, prefix: Vec<u8>) -> Self {
        Self { catalogue, prefix, blocks: RoaringBitmap::new(), records: 0 }
    }

    /// The blocks.
    pub fn blocks(&self) -> &RoaringBitmap {
        &self.blocks
    }

    /// Adds blocks. Durable on return.
    pub fn add(&mut self, blocks: &RoaringBitmap) -> io::Result<()> {
        let mut all = &self.blocks | blocks;
        let (mut changes, mut value) = (Vec::new(), Vec::new());
        if self.records > 0 && self.records.is_multiple_of(MAX_RECORDS) {
            all.optimize();
            changes = gone(&*self.catalogue, &self.prefix)?;
            all.serialize_into(&mut value)?;
        } else {
            blocks.serialize_into(&mut value)?;
        }
        changes.push(([&*self.prefix, format!("{:016}", self.records).as_bytes()].concat(), Some(value)));
        self.catalogue.apply(&changes, Persist::Synced)?;
        self.blocks = all;
        self.records += 1;
        Ok(())
    }
}

/// What removes everything that stands under a prefix.
pub fn gone(catalogue: &dyn Catalogue, prefix: &[u8]) -> io::Result<Vec<Change>> {
    Ok(catalogue.scan(prefix)?.into_iter().map(|(key, _)| (key, None)).collect())
}
