//! What the catalogue remembers of an old state: how far its log goes, and what of it is lost.

use super::super::place::key;
use crate::catalogue::{Catalogue, Persist};
use crate::undo::Point;
use replicator_engine::generation::{Generation, Id};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Commit, Envelope, Message};
use roaring::RoaringBitmap;
use std::io;
use std::sync::Arc;

/// The first byte of what is lost: all of it, or the blocks of a set.
const ALL: u8 = 1;
const SOME: u8 = 2;

/// What an old state does not show any more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lost {
    /// None of it can be told from what came later.
    pub all: bool,
    /// Else these blocks.
    pub blocks: RoaringBitmap,
    /// Why, for people; empty if nothing is lost.
    pub why: String,
}

impl Lost {
    /// Everything.
    pub fn all(why: String) -> Self {
        Self { all: true, blocks: RoaringBitmap::new(), why }
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let mut out = vec![if self.all { ALL } else { SOME }];
        self.blocks.serialize_into(&mut out)?;
        out.extend_from_slice(self.why.as_bytes());
        Ok(out)
    }

    fn decode(bytes: &[u8]) -> io::Result<Self> {
        let (kind, mut rest) = bytes.split_first().ok_or(io::ErrorKind::InvalidData)?;
        let blocks = RoaringBitmap::deserialize_from(&mut rest)?;
        let why = String::from_utf8_lossy(rest).into_owned();
        if matches!(*kind, ALL | SOME) { Ok(Self { all: *kind == ALL, blocks, why }) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// See the module's documentation.
pub struct OldMarks {
    volume: Id,
    generation: Generation,
    catalogue: Arc<dyn Catalogue>,
}

impl OldMarks {
    /// Those of a volume; `generation` goes into what is written.
    pub fn new(volume: Id, generation: Generation, catalogue: Arc<dyn Catalogue>) -> Self {
        Self { volume, generation, catalogue }
    }

    /// Whether something is to be kept.
    pub fn are_there(&self) -> io::Result<bool> {
        self.sealed().map(|sealed| sealed.is_some())
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    fn of<T>(&self, part: &str, decode: impl FnOnce(Vec<u8>) -> Option<T>) -> io::Result<Option<T>> {
        let Some(bytes) = self.catalogue.get(&key(self.volume, part))? else { return Ok(None) };
        let damaged = || format!("catalogue: standby/{}/{part} cannot be read", self.volume);
        decode(bytes).map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, damaged()))
    }

    /// The point, and up to where its log is sealed at least.
    pub(super) fn sealed(&self) -> io::Result<Option<(Point, Epoch)>> {
        self.of("old", |bytes| match Envelope::decode(bytes.into()).ok()?.message {
            Message::Commit(commit) => Some((Point::of(&commit), commit.blocks)),
            _ => None,
        })
    }

    /// The log is sealed up to there, durably. Not synced, it costs no wait: it becomes durable with whatever is synced next, and what is known
    /// before that stays true.
    pub(super) fn store_sealed(&self, point: Point, until: Epoch, persist: Persist) -> io::Result<()> {
        let Point { epoch, size_bytes, cut_unix_ms, group } = point;
        let sealed = Message::Commit(Commit { epoch, blocks: until, digest: [0; 32], size_bytes, cut_unix_ms, group });
        let value = Envelope { generation: self.generation, message: sealed }.encode().to_vec();
        self.catalogue.apply(&[(key(self.volume, "old"), Some(value))], persist)
    }

    /// What is lost of it.
    pub(super) fn lost(&self) -> io::Result<Lost> {
        self.of("old-lost", |bytes| Lost::decode(&bytes).ok()).map(Option::unwrap_or_default)
    }

    /// Durable on return: what is not saved may be overwritten.
    pub(super) fn store_lost(&self, lost: &Lost) -> io::Result<()> {
        self.catalogue.apply(&[(key(self.volume, "old-lost"), Some(lost.encode()?))], Persist::Synced)
    }

    /// Nothing is kept of this volume any more. To be called once the log is gone: without this, what is left of it would count as whole.
    pub fn forget(volume: Id, catalogue: &dyn Catalogue) -> io::Result<()> {
        let changes = KEYS.map(|part| (key(volume, part), None));
        catalogue.apply(&changes, Persist::Synced)
    }

    pub(super) fn clear(&self) -> io::Result<()> {
        Self::forget(self.volume, &*self.catalogue)
    }
}

/// What is remembered of an old state.
pub(in crate::standby) const KEYS: [&str; 2] = ["old", "old-lost"];
