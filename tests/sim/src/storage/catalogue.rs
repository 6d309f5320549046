//! A catalogue: a log of changes, of which a power loss keeps the synced part and some of the rest.

use super::{Access, Faults};
use crate::plant::Plant;
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::catalogue::{Catalogue, Change, Persist};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Default)]
struct Log {
    now: Pairs,
    /// What was there before each change since the last sync.
    since_sync: Vec<Pairs>,
}

/// See the module's documentation.
pub struct SimCatalogue {
    log: Mutex<Log>,
    faults: Arc<Faults>,
}

impl SimCatalogue {
    /// An empty one.
    pub fn new(faults: Arc<Faults>) -> Self {
        Self { log: Mutex::default(), faults }
    }

    /// A copy that goes its own way.
    pub fn fork(&self, faults: Arc<Faults>) -> Self {
        Self { log: Mutex::new(self.log.lock().unwrap().clone()), faults }
    }

    /// The same catalogue, read by somebody who sees everything.
    pub fn unfailing(&self) -> Unfailing<'_> {
        Unfailing(self)
    }

    /// The power goes: changes since the last sync are lost from some point on.
    pub fn lose_power(&self, rng: &mut StdRng) {
        let log = &mut *self.log.lock().unwrap();
        let lost_from = rng.random_range(0..=log.since_sync.len());
        if let Some(before) = log.since_sync.drain(..).nth(lost_from) {
            log.now = before;
        }
    }
}

impl Catalogue for SimCatalogue {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.faults.meet(Access::Read)?;
        Ok(self.log.lock().unwrap().now.get(key).cloned())
    }

    fn apply(&self, changes: &[Change], persist: Persist) -> io::Result<()> {
        self.faults.meet(if persist == Persist::Synced { Access::Sync } else { Access::Write })?;
        let log = &mut *self.log.lock().unwrap();
        log.since_sync.push(log.now.clone());
        for (key, value) in changes {
            let plant = self.faults.plant();
            match value {
                Some(_) if plant == Some(Plant::SkipActivityLog) && key.starts_with(b"al/") => log.now.remove(key),
                Some(value) => log.now.insert(key.clone(), value.clone()),
                None if plant == Some(Plant::KeepPromise) && key.starts_with(b"promise/") => None,
                None => log.now.remove(key),
            };
        }
        if persist == Persist::Synced {
            log.since_sync.clear();
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.faults.meet(Access::Read)?;
        let now = &self.log.lock().unwrap().now;
        let from = now.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(from.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// See [`SimCatalogue::unfailing`].
pub struct Unfailing<'a>(&'a SimCatalogue);

impl Catalogue for Unfailing<'_> {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.log.lock().unwrap().now.get(key).cloned())
    }

    fn apply(&self, _: &[Change], _: Persist) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn scan(&self, _: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
