//! Older recovery points: kept and shown.

use super::{Board, GroupPlace, Standby, UndoDisk};
use crate::disk::SegmentFiles;
use crate::undo::{Keep, Kept, LEVELS, Undo, View};
use replicator_engine::block::Run;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Base;
use std::io;
use std::sync::Arc;

/// Why a point cannot be shown or gone back to.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// It is not, or no longer, among those that are kept.
    #[error("recovery point {0} is not kept here")]
    NotKept(Epoch),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

impl<F: SegmentFiles> Standby<F> {
    /// Keeps older recovery points, in a directory for each level, from here on; none if they are to be kept for no time.
    pub fn keep_points(&mut self, files: [F; LEVELS], keep: Keep) -> io::Result<()> {
        let is_void = self.place.load_void(&*self.catalogue)?;
        let generation = self.place.lineage.current();
        let undo = match Undo::open(files, keep, self.fold.place.clone(), generation, self.place.folded, self.place.committed) {
            Ok(undo) => undo,
            Err(error) => {
                self.fold.give_up(&error);
                return Ok(());
            }
        };
        let is_useless = is_void || !undo.is_wanted() || self.place.base != Base::Point || self.fold.shown().is_none();
        self.fold.undo = Some(undo);
        if is_useless {
            self.fold.clear_undo();
        }
        if is_void && !self.fold.is_void {
            self.place.forget_void(&*self.catalogue)?;
        }
        Ok(())
    }

    /// Says with whom points belong together; before [`Self::keep_points`].
    pub fn set_group_place(&mut self, place: GroupPlace) {
        self.fold.place = place;
    }

    /// With whom points belong together; it may change.
    pub fn group_place(&self) -> GroupPlace {
        self.fold.place.clone()
    }

    /// Points belong together with others, or not any more.
    pub fn regroup(&mut self, place: Option<(Arc<Board>, usize)>) {
        self.fold.place.set(place);
        self.fold.drop_unwanted();
        self.fold.tell_group();
    }

    /// Tells the other members of the group what there is here.
    pub fn tell_group(&self) {
        self.fold.tell_group();
    }

    /// The epoch whose folding had better wait for other members of the group.
    pub fn awaits_group(&self) -> Option<Epoch> {
        self.fold.awaits_group()
    }

    /// Says where the directories of [`Self::keep_points`] are; with the image, unless told otherwise.
    pub fn set_undo_disk(&mut self, disk: UndoDisk) {
        self.fold.undo_disk = disk;
    }

    /// The recovery points, the oldest first; the last is the newest, which is in the image.
    pub fn points(&mut self) -> io::Result<Vec<Kept>> {
        while self.fold_one()? {}
        let older = self.fold.undo.iter().flat_map(Undo::points);
        let newest =
            self.fold.shown().filter(|_| self.place.base == Base::Point).map(|point| Kept { point, changed_bytes: 0, lost_blocks: 0 });
        Ok(older.chain(newest).collect())
    }

    /// How many recovery points there are.
    pub fn point_count(&self) -> usize {
        self.fold.undo.as_ref().map_or(0, Undo::count) + usize::from(self.place.base == Base::Point)
    }

    /// Bytes of undo.
    pub fn undo_bytes(&self) -> u64 {
        self.fold.undo.as_ref().map_or(0, Undo::used_bytes)
    }

    /// Why points were lost that the policy would have kept, until that is over.
    pub fn lost_points(&self) -> Option<&str> {
        self.fold.lost()
    }

    /// Does a little of what the keeping policy asks for, at this time by this site's clock; says whether there is more. An error costs no recovery
    /// point but older ones.
    pub fn tidy_points(&mut self, here_unix_ms: u64) -> bool {
        let newest = self.fold.shown();
        let (Some(undo), Some(newest)) = (&mut self.fold.undo, newest) else { return false };
        let error = match undo.tidy_one(newest.cut_unix_ms.min(here_unix_ms)) {
            Ok(more) => return more,
            Err(error) => error,
        };
        if !self.fold.make_room(&error) {
            self.fold.give_up(&error);
        }
        false
    }

    /// The volume at a point, for [`Self::read_view`]; the point stays until [`Self::close_view`].
    pub fn open_view(&mut self, epoch: Epoch) -> Result<View, PastError> {
        while self.fold_one()? {}
        let shown = self.fold.shown().filter(|_| self.place.base == Base::Point).ok_or(PastError::NotKept(epoch))?;
        let undo = self.fold.undo.as_mut().ok_or(PastError::NotKept(epoch))?;
        let view = if epoch == shown.epoch { Some(undo.view_of_image(shown)) } else { undo.view(epoch) };
        let view = view.ok_or(PastError::NotKept(epoch))?;
        let pinned = undo.pin(epoch);
        pinned.map(|()| view).map_err(|error| {
            self.fold.give_up(&error);
            self.fold.unpin(epoch);
            error.into()
        })
    }

    /// Reads `run`, which lies in the view.
    pub fn read_view(&mut self, view: &mut View, run: Run, content: &mut [u8]) -> Result<(), PastError> {
        let not_kept = PastError::NotKept(view.point.epoch);
        while self.fold.is_unsure() && self.fold_one()? {}
        let state = self.fold.state();
        match (&self.fold.undo, state) {
            (Some(undo), Some(state)) if undo.refresh(view, state) => {}
            _ => return Err(not_kept),
        }
        let mut at = 0;
        self.read_pieces(run, |_, block| {
            content[at..at + block.len()].copy_from_slice(block);
            at += block.len();
        })?;
        self.check_read(run, content, |block| view.has(block))?;
        match &mut self.fold.undo {
            Some(undo) => Ok(undo.read(view, run, content)?),
            None => Err(not_kept),
        }
    }

    /// Nobody reads the view any more.
    pub fn close_view(&mut self, view: &View) {
        self.fold.unpin(view.point.epoch);
    }
}

#[cfg(test)]
pub(super) mod tests;
