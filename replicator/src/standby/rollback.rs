//! Leading an image back to an older point while it is served already.
//!
//! ```text
//!   begun (recorded) ──► the site is primary (recorded), served ──► block by block: undo ──► image, synced ──► done (recorded) ──► undo forgotten
//! ```
//!
//! A block that is not recorded as done is led back again after a crash. So nobody may write to one before it is recorded, and it is not
//! recorded before it is durable in the image. What is begun counts only for the generation that it was begun for: a promotion that did not
//! come about leaves the image as it was.

use super::place::{Place, back_key, done_prefix, load_back};
use super::{GroupPlace, PastError, SegmentDir, Standby};
use crate::catalogue::{Catalogue, Persist};
use crate::disk::SegmentFiles;
use crate::ledger::{self, Ledger};
use crate::undo::{Keep, LEVELS, Point, Undo, View};
use replicator_engine::block::{Run, block_count};
use replicator_engine::generation::{Generation, Id, Lineage};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Commit, Envelope, Message};
use roaring::RoaringBitmap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// See the module's documentation.
pub struct Rollback {
    volume: Id,
    way: Box<dyn Way>,
    point: Point,
    /// Blocks that were led back, and may have been written to since.
    done: Ledger,
    catalogue: Arc<dyn Catalogue>,
}

/// The undo, whichever disk it is on.
trait Way: Send {
    fn changed(&self) -> Vec<Run>;
    fn read(&mut self, run: Run, content: &mut [u8]) -> io::Result<()>;
    fn forget(&mut self) -> io::Result<()>;
}

struct UndoWay<F> {
    undo: Undo<F>,
    view: View,
}

impl<F: SegmentFiles> Way for UndoWay<F> {
    fn changed(&self) -> Vec<Run> {
        self.view.changed()
    }

    fn read(&mut self, run: Run, content: &mut [u8]) -> io::Result<()> {
        self.undo.read(&mut self.view, run, content)
    }

    fn forget(&mut self) -> io::Result<()> {
        self.undo.clear()
    }
}

impl<F: SegmentFiles + 'static> Standby<F> {
    /// Drops what is staged, and gives up the undo to what leads the image back to an older point; `None` if it is there already. This copy is
    /// of no use then: it is opened anew, and is as it was, unless [`Rollback::begin`] follows.
    pub fn go_back_to(&mut self, epoch: Epoch) -> Result<Option<Rollback>, PastError> {
        self.settle()?;
        if self.fold.shown().is_some_and(|shown| shown.epoch == epoch) {
            return Ok(None);
        }
        let undo = self.fold.undo.take_if(|undo| undo.sealed() == Some(self.place.committed)).ok_or(PastError::NotKept(epoch))?;
        Rollback::of(undo, epoch, &self.place, self.catalogue.clone()).map(Some)
    }
}

impl Rollback {
    fn of<F: SegmentFiles + 'static>(undo: Undo<F>, epoch: Epoch, place: &Place, catalogue: Arc<dyn Catalogue>) -> Result<Self, PastError> {
        let view = undo.view(epoch).ok_or(PastError::NotKept(epoch))?;
        let point = view.point;
        let way = Box::new(UndoWay { undo, view });
        // What an earlier one has left is forgotten when this one begins.
        let done = Ledger::empty(catalogue.clone(), done_prefix(place.volume));
        Ok(Self { volume: place.volume, way, point, done, catalogue })
    }

    /// Records that the image is led back for this generation, which is about to be recorded, too. Durable on return.
    pub fn begin(&mut self, generation: Generation) -> io::Result<()> {
        let Point { epoch, size_bytes, cut_unix_ms, group } = self.point;
        let point = Message::Commit(Commit { epoch, blocks: 0, digest: [0; 32], size_bytes, cut_unix_ms, group });
        let begun = Envelope { generation, message: point }.encode().to_vec();
        let mut changes = ledger::gone(&*self.catalogue, &done_prefix(self.volume))?;
        changes.push((back_key(self.volume), Some(begun)));
        self.catalogue.apply(&changes, Persist::Synced)
    }

    /// Goes on with the one that was begun for a generation of this lineage, if there is one that has not finished. `dirs` hold the undo.
    pub fn resume(
        volume: Id,
        lineage: &Lineage,
        dirs: &[PathBuf; LEVELS],
        catalogue: &Arc<dyn Catalogue>,
    ) -> Result<Option<Self>, PastError> {
        let Some(point) = load_begun(volume, lineage, &**catalogue)? else { return Ok(None) };
        let [all, fewer, fewest] = dirs;
        let files = [SegmentDir::open(all)?, SegmentDir::open(fewer)?, SegmentDir::open(fewest)?];
        Self::resume_from(volume, point, files, catalogue.clone()).map(Some)
    }

    pub(super) fn resume_from<F: SegmentFiles + 'static>(
        volume: Id,
        point: Point,
        files: [F; LEVELS],
        catalogue: Arc<dyn Catalogue>,
    ) -> Result<Self, PastError> {
        let place = Place::load(volume, &*catalogue)?.ok_or(PastError::NotKept(point.epoch))?;
        let undo = Undo::open(files, Keep::default(), GroupPlace::default(), place.lineage.current(), place.folded, place.committed)?;
        let mut rollback = Self::of(undo, point.epoch, &place, catalogue)?;
        rollback.done = Ledger::open(rollback.catalogue.clone(), done_prefix(volume))?;
        Ok(rollback)
    }

    /// Size of the image of a volume, of which a part may have to go yet, if it is being led back.
    pub fn image_bytes(volume: Id, lineage: &Lineage, catalogue: &dyn Catalogue) -> io::Result<Option<u64>> {
        match load_begun(volume, lineage, catalogue)? {
            Some(_) => Ok(Place::load(volume, catalogue)?.map(|place| place.size_bytes)),
            None => Ok(None),
        }
    }

    /// Where it leads.
    pub fn point(&self) -> Point {
        self.point
    }

    /// What is to be led back, in the order in which its content lies.
    pub fn runs(&self) -> Vec<Run> {
        let end = block_count(self.point.size_bytes) as u32;
        let inside = |run: &Run| Run::new(run.start, run.end().min(end).saturating_sub(run.start));
        let mut left = RoaringBitmap::new();
        let runs: Vec<Run> = self.way.changed().iter().filter_map(inside).collect();
        if self.done.blocks().is_empty() {
            return runs;
        }
        let without_done = |run: &Run| {
            left.clear();
            left.insert_range(run.blocks());
            left -= self.done.blocks();
            replicator_engine::block::runs(&left).collect::<Vec<_>>()
        };
        runs.iter().flat_map(without_done).collect()
    }

    /// Reads what `run`, a part of [`Self::runs`], held at the point.
    pub fn read(&mut self, run: Run, content: &mut [u8]) -> io::Result<()> {
        self.way.read(run, content)
    }

    /// These blocks are in the image, durably: they are not touched again. Durable on return.
    pub fn record(&mut self, blocks: &RoaringBitmap) -> io::Result<()> {
        self.done.add(blocks)
    }

    /// All of it is in the image, durably: forgets the undo.
    pub fn finish(&mut self) -> io::Result<()> {
        Self::forget(self.volume, &*self.catalogue)?;
        if let Err(error) = self.way.forget() {
            tracing::warn!(volume = %self.volume, %error, "the older recovery points take room although they lead nowhere");
        }
        Ok(())
    }

    /// Forgets that an image is led back.
    pub fn forget(volume: Id, catalogue: &dyn Catalogue) -> io::Result<()> {
        let mut changes = ledger::gone(catalogue, &done_prefix(volume))?;
        changes.push((back_key(volume), None));
        catalogue.apply(&changes, Persist::Synced)
    }
}

/// Where an unfinished one leads, if it was begun for a generation of this lineage.
fn load_begun(volume: Id, lineage: &Lineage, catalogue: &dyn Catalogue) -> io::Result<Option<Point>> {
    let Some((generation, point)) = load_back(volume, catalogue)? else { return Ok(None) };
    let is_ours = lineage.generations().iter().any(|mine| mine.id == generation.id);
    Ok(is_ours.then_some(point))
}
