//! A standby's image that knows its blocks again: whatever is written to it leaves a digest, made from what came and not from what the disk
//! gives back.
//!
//! Invariants:
//! - An entry of a block that is neither unknown nor damaged is the digest of what was written there last.
//! - It is durable when the image is: both are before the journal lets go of what was written. What a crash leaves in between is written
//!   again from the journal before anybody looks.
//! - Before the first recovery point nothing is written again, so what is there when the copy is opened counts for nothing.
//! - Digests that cannot be written are void, and known to be before the image goes on without them; replication never waits for that.

mod file;
mod marks;

pub use file::{DIGEST_BYTES, DigestsOnDisk};

use super::WRITE_BLOCKS;
use super::place::{Place, key};
use crate::catalogue::{Catalogue, Persist};
use crate::codec::{digest, digest_of, is_zero};
use crate::disk::{BlockDevice, DigestFile, Pages};
use marks::Marks;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run, block_count, runs};
use replicator_engine::generation::Id;
use replicator_engine::wire::{Base, Fingerprint};
use roaring::RoaringBitmap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where [`Marks`] are in the catalogue.
pub(super) const KEY: &str = "digests";

/// Logged of the first of several.
const DAMAGED: &str = "the standby's disk does not give back what was written: the primary is asked for it";

/// See the module's documentation.
pub(super) struct Checked {
    image: Arc<dyn BlockDevice>,
    digests: Box<dyn DigestFile>,
    catalogue: Arc<dyn Catalogue>,
    volume: Id,
    state: Mutex<State>,
}

struct State {
    marks: Marks,
    /// The catalogue has older ones.
    is_dirty: bool,
    /// Why there are no digests: all blocks are unknown, for good.
    void: Option<String>,
    /// The catalogue knows.
    is_void_recorded: bool,
}

/// How a standby's image fares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// When the last round ended, in milliseconds since 1970; 0 if none has.
    pub ended_unix_ms: u64,
    /// Damaged blocks that were found, ever.
    pub found: u64,
    /// Those of them that were written anew since.
    pub repaired: u64,
    /// Those that are to be.
    pub damaged: u64,
    /// The first of them.
    pub first_damaged: Option<BlockNumber>,
    /// Blocks that cannot be checked, because nobody has said what they should hold.
    pub unknown: u64,
    /// Why none can.
    pub void: Option<String>,
}

impl Checked {
    /// The image of the copy at `place`, and the digests that belong to it; they begin anew if they are another copy's.
    pub fn open(
        place: &Place,
        image: Arc<dyn BlockDevice>,
        digests: Box<dyn DigestFile>,
        catalogue: Arc<dyn Catalogue>,
    ) -> io::Result<Self> {
        let recorded = catalogue.get(&key(place.volume, KEY))?.and_then(|bytes| Marks::decode(&bytes).ok());
        let recorded = recorded.filter(|marks| marks.replica == place.replica);
        let is_valid = recorded.is_some() && place.base == Base::Point && digests.is_begun().unwrap_or(false);
        let mut marks = Marks { replica: place.replica, ..recorded.unwrap_or_default() };
        if !is_valid {
            (marks.unknown, marks.damaged, marks.cursor) = Default::default();
            if place.base != Base::Blank {
                marks.unknown.insert_range(0..block_count(image.size_bytes()) as BlockNumber);
            }
        }
        let state = State { marks, is_dirty: false, void: None, is_void_recorded: false };
        let checked = Self { image, digests, catalogue, volume: place.volume, state: Mutex::new(state) };
        if is_valid {
            // A promotion that failed may have cut the image off there.
            let end = block_count(place.size_bytes) as BlockNumber;
            checked.try_digests(|digests| digests.clear(end, BlockNumber::MAX));
        } else {
            checked.begin_anew()?;
        }
        Ok(checked)
    }

    /// In this order: until the old entries are gone, nobody may find marks that say they count.
    fn begin_anew(&self) -> io::Result<()> {
        self.catalogue.apply(&[(key(self.volume, KEY), None)], Persist::Synced)?;
        self.try_digests(|digests| digests.begin());
        let state = self.state();
        if state.void.is_some() {
            Ok(())
        } else {
            self.catalogue.apply(&[(key(self.volume, KEY), Some(state.marks.encode()))], Persist::Synced)
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the digests; if that fails they are void.
    fn try_digests<T>(&self, work: impl FnOnce(&dyn DigestFile) -> io::Result<T>) -> Option<T> {
        if self.state().void.is_some() {
            return None;
        }
        match work(&*self.digests) {
            Ok(done) => Some(done),
            Err(error) => {
                tracing::error!(volume = %self.volume, %error, "the digests of the image cannot be kept: it is not checked until blockd is restarted");
                self.state().void = Some(error.to_string());
                None
            }
        }
    }

    /// How it fares.
    pub fn health(&self) -> Health {
        let state = self.state();
        let Marks { ended_unix_ms, found, repaired, unknown, damaged, .. } = &state.marks;
        let blocks = block_count(self.image.size_bytes());
        Health {
            ended_unix_ms: *ended_unix_ms,
            found: *found,
            repaired: *repaired,
            damaged: damaged.len(),
            first_damaged: damaged.min(),
            unknown: if state.void.is_some() { blocks } else { unknown.range_cardinality(..blocks as BlockNumber) },
            void: state.void.clone(),
        }
    }

    /// The blocks that do not hold what they should.
    pub fn damaged(&self) -> RoaringBitmap {
        self.state().marks.damaged.clone()
    }

    /// Where the round that is under way goes on.
    pub fn cursor(&self) -> BlockNumber {
        self.state().marks.cursor
    }

    /// The round that is under way goes on there; `ended_unix_ms` if it has ended now.
    pub fn set_cursor(&self, cursor: BlockNumber, ended_unix_ms: Option<u64>) {
        let mut state = self.state();
        state.marks.cursor = cursor;
        state.marks.ended_unix_ms = ended_unix_ms.unwrap_or(state.marks.ended_unix_ms);
        state.is_dirty = true;
    }

    /// Records what is known by now. An older record is no lie: it knows less.
    pub fn remember(&self) -> io::Result<()> {
        let is_dirty = { self.state().is_dirty };
        if !is_dirty || self.try_digests(|digests| digests.sync()).is_none() {
            return Ok(());
        }
        let encoded = self.state().marks.encode();
        self.catalogue.apply(&[(key(self.volume, KEY), Some(encoded))], Persist::Eventually)?;
        self.state().is_dirty = false;
        Ok(())
    }

    /// The next blocks at or after `from` that a round has to look at, at most `most` of them; `None` at the end.
    pub fn next(&self, from: BlockNumber, most: u32) -> io::Result<Option<Run>> {
        let end = block_count(self.image.size_bytes()) as BlockNumber;
        let from = self.skip_unknown(from);
        let data = self.image.allocated(from)?.map(|run| run.start.max(from));
        let entry = self.try_digests(|digests| digests.next(from)).flatten().map(|next| next.max(from));
        let Some(start) = data.into_iter().chain(entry).min().filter(|start| *start < end) else { return Ok(None) };
        Ok(Run::new(start, most.min(end - start)))
    }

    fn skip_unknown(&self, from: BlockNumber) -> BlockNumber {
        let state = self.state();
        let mut at = from;
        for len in [1 << 24, 1 << 16, 1 << 8, 1] {
            while at.checked_add(len).is_some_and(|end| state.marks.unknown.contains_range(at..end)) {
                at += len;
            }
        }
        at
    }

    /// Reads the blocks, and takes note of those that the disk does not give back as they came.
    pub fn check(&self, run: Run) {
        let end = run.end().min(block_count(self.image.size_bytes()) as BlockNumber);
        for start in (run.start..end).step_by(WRITE_BLOCKS as usize) {
            self.check_piece(Run { start, len: WRITE_BLOCKS.min(end - start) });
        }
    }

    fn check_piece(&self, run: Run) {
        let mut content = Pages::new(run.len);
        let wrong = match self.image.read(run, &mut content) {
            Ok(()) => self.mismatches(run, &content),
            // One that cannot be read makes the whole fail.
            Err(_) => run.blocks().collect(),
        };
        // Once more, each by itself, before anything is said of it.
        let wrong = wrong.into_iter().filter(|block| self.read_again(*block).is_none()).collect();
        self.note_damaged(&wrong);
        self.note_sound(run, &wrong);
    }

    /// What a block holds, if it can be read and is not known to be wrong.
    pub fn read_again(&self, block: BlockNumber) -> Option<Pages> {
        let (run, mut content) = (Run { start: block, len: 1 }, Pages::new(1));
        self.image.read(run, &mut content).ok().filter(|()| self.mismatches(run, &content).is_empty()).map(|()| content)
    }

    /// The blocks of `run` whose content is not what was written; of those that are unknown nobody can say that.
    pub fn mismatches(&self, run: Run, content: &[u8]) -> RoaringBitmap {
        let mut digests = vec![0; run.len as usize];
        if self.try_digests(|file| file.load(run.start, &mut digests)).is_none() {
            return RoaringBitmap::new();
        }
        let blocks = run.blocks().zip(content.chunks_exact(BLOCK_BYTES)).zip(digests);
        let wrong: RoaringBitmap =
            blocks.filter(|((_, content), expected)| digest(content) != *expected).map(|((block, _), _)| block).collect();
        wrong - &self.state().marks.unknown
    }

    /// What should be in a block, by its digest.
    pub fn expected(&self, block: BlockNumber) -> Option<u64> {
        let mut digests = [0];
        self.try_digests(|file| file.load(block, &mut digests))?;
        (!self.state().marks.unknown.contains(block)).then_some(digests[0])
    }

    /// The disk does not give these blocks back as they came.
    pub fn note_damaged(&self, blocks: &RoaringBitmap) {
        let mut state = self.state();
        let fresh = blocks - &state.marks.damaged;
        if fresh.is_empty() {
            return;
        }
        let (count, first) = (fresh.len(), fresh.min());
        if state.marks.damaged.is_empty() {
            tracing::error!(volume = %self.volume, blocks = count, first, "{DAMAGED}");
        }
        state.marks.damaged |= fresh;
        state.marks.found += count;
        state.is_dirty = true;
    }

    /// The blocks of `run` are as they came, but for those that are `wrong`: what was recorded before a crash may have been mended since.
    fn note_sound(&self, run: Run, wrong: &RoaringBitmap) {
        let mut state = self.state();
        let mut sound = RoaringBitmap::new();
        sound.insert_range(run.blocks());
        sound = (sound & &state.marks.damaged) - wrong - &state.marks.unknown;
        if state.void.is_none() && !sound.is_empty() {
            state.marks.damaged -= &sound;
            state.marks.repaired += sound.len();
            state.is_dirty = true;
        }
    }

    /// The primary has the same in this block as the image.
    pub fn confirm(&self, block: BlockNumber, fingerprint: &Fingerprint, content: &[u8]) {
        let digest = if is_zero(content) { 0 } else { digest_of(fingerprint) };
        let in_doubt = {
            let marks = &self.state().marks;
            marks.unknown.contains(block) || marks.damaged.contains(block)
        };
        if in_doubt {
            self.record(Run { start: block, len: 1 }, |digests| digests.store(block, &[digest]));
        }
    }

    /// The primary has zeroes in these blocks, and so has the image.
    pub fn confirm_zeroes(&self, run: Run) {
        let is_known = { self.state().marks.unknown.range_cardinality(run.blocks()) == 0 };
        if !is_known {
            self.record(run, |digests| digests.clear(run.start, run.end()));
        }
    }

    /// Takes over what the image holds now.
    fn record(&self, run: Run, store: impl FnOnce(&dyn DigestFile) -> io::Result<()>) {
        if self.try_digests(store).is_none() {
            return;
        }
        let mut state = self.state();
        let repaired = state.marks.damaged.range_cardinality(run.blocks());
        let was_unknown = state.marks.unknown.range_cardinality(run.blocks()) > 0;
        state.marks.damaged.remove_range(run.blocks());
        state.marks.unknown.remove_range(run.blocks());
        state.marks.repaired += repaired;
        state.is_dirty |= was_unknown || repaired > 0;
    }

    /// Nobody knows what became of these blocks until they are written again.
    fn doubt(&self, run: Run) {
        self.state().marks.unknown.insert_range(run.blocks());
    }
}

/// Blocks of a copy that is not open do not hold what they should: it asks its primary for them. Durable on return; says whether that is remembered, which
/// it is not where nobody knows the copy's blocks.
pub fn note_damaged(volume: Id, catalogue: &dyn Catalogue, blocks: &RoaringBitmap) -> io::Result<bool> {
    let Some(mut marks) = catalogue.get(&key(volume, KEY))?.map(|bytes| Marks::decode(&bytes)).transpose()? else { return Ok(false) };
    marks.found += (blocks - &marks.damaged).len();
    marks.damaged |= blocks;
    catalogue.apply(&[(key(volume, KEY), Some(marks.encode()))], Persist::Synced)?;
    Ok(true)
}

impl BlockDevice for Checked {
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()> {
        self.image.read(run, content)
    }

    fn write(&self, run: Run, content: &[u8]) -> io::Result<()> {
        self.image.write(run, content).inspect_err(|_| self.doubt(run))?;
        let digests: Vec<u64> = content.chunks_exact(BLOCK_BYTES).map(digest).collect();
        self.record(run, |file| file.store(run.start, &digests));
        Ok(())
    }

    fn zero(&self, run: Run) -> io::Result<()> {
        self.image.zero(run).inspect_err(|_| self.doubt(run))?;
        self.record(run, |file| file.clear(run.start, run.end()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.image.sync()?;
        self.try_digests(|digests| digests.sync());
        let unrecorded = {
            let state = self.state();
            state.void.is_some() && !state.is_void_recorded
        };
        if unrecorded {
            self.catalogue.apply(&[(key(self.volume, KEY), None)], Persist::Synced)?;
            self.state().is_void_recorded = true;
        }
        Ok(())
    }

    fn allocated(&self, from: BlockNumber) -> io::Result<Option<Run>> {
        self.image.allocated(from)
    }

    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.image.grow(size_bytes)
    }
}

/// The damaged blocks as the primary is told of them, as many as fit a message.
pub(super) fn told(damaged: &RoaringBitmap, most: usize) -> Vec<Run> {
    runs(damaged).take(most).collect()
}
