//! Leading an image back to an older point while it is served already.
//!
//! ```text
//!   begun (recorded) ──► the site is primary (recorded), served ──► block by block: undo ──► image, synced ──► done (recorded) ──► undo forgotten
//! ```
//!
//! A block that is not recorded as done is led back again after a crash. So nobody may write to one before it is recorded, and it is not
//! recorded before it is durable in the image. What is begun counts only for the generation that it was begun for: a promotion that did not
//! come about leaves the image as it was. Which blocks are to be led back is recorded, too: those of which the undo is lost meanwhile are known, and
//! what the image holds of them is never taken for the point's.

use super::place::{Place, back_key, done_prefix, load_back, plan_key};
use super::{PastError, SegmentDir, Standby};
use crate::catalogue::{Catalogue, Persist};
use crate::disk::SegmentFiles;
use crate::ledger::{self, Ledger};
use crate::undo::{LEVELS, Point, Undo, View};
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
    /// `None` if nothing of the undo can be read.
    way: Option<Box<dyn Way>>,
    point: Point,
    /// All blocks that differ at the point.
    plan: RoaringBitmap,
    /// Those of them of which there is no undo any more, and why.
    lost: RoaringBitmap,
    why_lost: String,
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
        let way = UndoWay { undo, view };
        let plan = blocks_of(&way.changed());
        // What an earlier one has left is forgotten when this one begins.
        let done = Ledger::empty(catalogue.clone(), done_prefix(place.volume));
        let (lost, why_lost) = Default::default();
        Ok(Self { volume: place.volume, way: Some(Box::new(way)), point, plan, lost, why_lost, done, catalogue })
    }

    /// Records that the image is led back for this generation, which is about to be recorded, too. Durable on return.
    pub fn begin(&mut self, generation: Generation) -> io::Result<()> {
        let Point { epoch, size_bytes, cut_unix_ms, group } = self.point;
        let point = Message::Commit(Commit { epoch, blocks: 0, digest: [0; 32], size_bytes, cut_unix_ms, group });
        let begun = Envelope { generation, message: point }.encode().to_vec();
        let mut changes = ledger::gone(&*self.catalogue, &done_prefix(self.volume))?;
        let mut plan = Vec::new();
        self.plan.serialize_into(&mut plan)?;
        changes.push((back_key(self.volume), Some(begun)));
        changes.push((plan_key(self.volume), Some(plan)));
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
        let files = || Ok([SegmentDir::open(&dirs[0])?, SegmentDir::open(&dirs[1])?, SegmentDir::open(&dirs[2])?]);
        Self::resume_from(volume, point, files(), catalogue.clone()).map(Some)
    }

    pub(super) fn resume_from<F: SegmentFiles + 'static>(
        volume: Id,
        point: Point,
        files: io::Result<[F; LEVELS]>,
        catalogue: Arc<dyn Catalogue>,
    ) -> Result<Self, PastError> {
        let place = Place::load(volume, &*catalogue)?.ok_or(PastError::NotKept(point.epoch))?;
        let done = Ledger::open(catalogue.clone(), done_prefix(volume))?;
        let plan = catalogue.get(&plan_key(volume))?.map(|bytes| RoaringBitmap::deserialize_from(&*bytes)).transpose()?;
        let opened = files.and_then(|files| Undo::open_to_read(files, place.lineage.current()));
        let (way, why_lost): (Option<Box<dyn Way>>, String) = match opened.map(|undo| (undo.view(point.epoch), undo)) {
            Ok((Some(view), undo)) => (Some(Box::new(UndoWay { undo, view })), "the undo is damaged, or a part of it is gone".into()),
            Ok((None, _)) => (None, format!("the undo has no recovery point {} any more", point.epoch)),
            Err(error) => (None, format!("the undo cannot be read: {error}")),
        };
        let there = way.as_ref().map_or_else(RoaringBitmap::new, |way| blocks_of(&way.changed()));
        // One that an earlier release began.
        let plan = plan.unwrap_or_else(|| there.clone());
        if way.is_none() && plan.is_empty() {
            return Err(PastError::NotKept(point.epoch));
        }
        let lost = &plan - there - done.blocks();
        Ok(Self { volume, way, point, plan, lost, why_lost, done, catalogue })
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
        let mut rest = &self.plan - self.done.blocks();
        rest.remove_range(end..);
        let mut left = Vec::new();
        for run in self.way.iter().flat_map(|way| way.changed()) {
            if rest.contains_range(run.blocks()) {
                left.push(run);
            } else {
                let some: RoaringBitmap = run.blocks().filter(|block| rest.contains(*block)).collect();
                left.extend(replicator_engine::block::runs(&some));
            }
        }
        left.extend(replicator_engine::block::runs(&(rest & &self.lost)));
        left
    }

    /// Reads what `run`, a part of [`Self::runs`], held at the point.
    pub fn read(&mut self, run: Run, content: &mut [u8]) -> io::Result<()> {
        let is_lost = self.lost.range_cardinality(run.blocks()) > 0;
        match &mut self.way {
            Some(way) if !is_lost => way.read(run, content),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, self.why_lost.clone())),
        }
    }

    /// These blocks are in the image, durably: they are not touched again. Durable on return.
    pub fn record(&mut self, blocks: &RoaringBitmap) -> io::Result<()> {
        self.done.add(blocks)
    }

    /// All of it is in the image, durably: forgets the undo.
    pub fn finish(&mut self) -> io::Result<()> {
        Self::forget(self.volume, &*self.catalogue)?;
        if let Some(Err(error)) = self.way.as_mut().map(|way| way.forget()) {
            tracing::warn!(volume = %self.volume, %error, "the older recovery points take room although they lead nowhere");
        }
        Ok(())
    }

    /// Forgets that an image is led back.
    pub fn forget(volume: Id, catalogue: &dyn Catalogue) -> io::Result<()> {
        let mut changes = ledger::gone(catalogue, &done_prefix(volume))?;
        changes.push((back_key(volume), None));
        changes.push((plan_key(volume), None));
        catalogue.apply(&changes, Persist::Synced)
    }
}

/// Where an unfinished one leads, if it was begun for a generation of this lineage.
fn load_begun(volume: Id, lineage: &Lineage, catalogue: &dyn Catalogue) -> io::Result<Option<Point>> {
    let Some((generation, point)) = load_back(volume, catalogue)? else { return Ok(None) };
    let is_ours = lineage.generations().iter().any(|mine| mine.id == generation.id);
    Ok(is_ours.then_some(point))
}

fn blocks_of(runs: &[Run]) -> RoaringBitmap {
    let mut blocks = RoaringBitmap::new();
    runs.iter().for_each(|run| _ = blocks.insert_range(run.blocks()));
    blocks
}
