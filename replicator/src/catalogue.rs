//! A small ordered store of keys and values that survives crashes. The daemon puts RocksDB behind it, the simulator a map that forgets
//! what was not synced.

use std::io;

/// Whether a change must be durable on return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persist {
    /// It is durable, with every change before it.
    Synced,
    /// It may be lost in a crash, together with the changes after it.
    Eventually,
}

/// One key's new value; `None` removes it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// See the module's documentation.
pub trait Catalogue: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// Applies all changes or none.
    fn apply(&self, changes: &[Change], persist: Persist) -> io::Result<()>;
    /// Every pair whose key begins with `prefix`, in the order of the keys.
    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>>;
}
