//! Moving committed epochs into the image, and what was there before into the undo.
//!
//! ```text
//!   waiting epochs ──► batch: save what the image holds ──► seal ──► write ──► (all written) sync, record, forget the journal
//! ```
//!
//! All of it may be repeated after a crash: what is sealed is not saved again, because the image may have been overwritten since.

use super::scrub::ToSave;
use super::{GroupPlace, Standby, payload_to_io};
use crate::disk::SegmentFiles;
use crate::undo::{Point, Undo};
use replicator_engine::block::{BlockNumber, runs};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Message;
use roaring::RoaringBitmap;
use std::collections::VecDeque;
use std::io;

/// Blocks that are saved at once.
const SAVE_BLOCKS: u64 = 128;

/// Where the undo lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UndoDisk {
    /// On the image's disk: older points make room for the image.
    #[default]
    WithImage,
    /// On another: an image that finds no room gets none by them.
    Apart,
}

/// What is being folded.
pub(super) struct Fold<F> {
    /// `None` while its disk fails.
    pub(super) undo: Option<Undo<F>>,
    pub(super) undo_disk: UndoDisk,
    /// With whom points belong together.
    pub(super) place: GroupPlace,
    /// Committed epochs that are not in the image yet, and their blocks.
    waiting: VecDeque<(Point, RoaringBitmap)>,
    batch: Option<Batch>,
    /// What the image holds, but for the batch that is being written; `None` if nobody wrote down when it was cut.
    shown: Option<Point>,
    /// What it holds durably.
    durable: Option<Point>,
    /// Epochs up to this one may be in the image in part, without undo where none is sealed: the daemon ended, or a sync failed, while they
    /// were folded.
    unsure_until: Epoch,
    /// Which epochs wait is still to be read from the journal: nothing is folded before.
    is_unread: bool,
    /// What is left of the undo must not be found again, and that is still to be recorded.
    pub(super) is_void: bool,
    /// Why points were lost that the policy would have kept, and the newest epoch then; until the undo of a later one found room.
    lost: Option<(String, Epoch)>,
}

/// Epochs that are folded together.
struct Batch {
    /// Where undo leads back to.
    point: Option<Point>,
    until: Epoch,
    /// Blocks that are to be saved before anything is written; `None` once they are.
    to_save: Option<RoaringBitmap>,
}

impl<F> Fold<F> {
    pub fn new(durable: Option<Point>) -> Self {
        Self {
            undo: None,
            undo_disk: UndoDisk::default(),
            place: GroupPlace::default(),
            waiting: VecDeque::new(),
            batch: None,
            shown: durable,
            durable,
            unsure_until: 0,
            is_unread: false,
            is_void: false,
            lost: None,
        }
    }

    /// What the image holds.
    pub fn shown(&self) -> Option<Point> {
        self.shown
    }

    /// Why points were lost that the policy would have kept, until that is over.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_ref().map(|(why, _)| why.as_str())
    }

    fn lose(&mut self, why: String) {
        let newest = self.waiting.back().map(|(point, _)| *point).or(self.shown);
        self.lost = Some((why, newest.map_or(0, |point| point.epoch)));
    }

    /// The image holds its first recovery point, durably.
    pub fn begin_at(&mut self, point: Point) {
        (self.shown, self.durable) = (Some(point), Some(point));
    }
}

impl<F: SegmentFiles> Fold<F> {
    /// An epoch was committed.
    pub fn add(&mut self, point: Point, blocks: &RoaringBitmap) {
        self.waiting.push_back((point, blocks.clone()));
    }

    /// The epoch whose state the image holds where no undo says otherwise; `None` while it is a mix that no undo leads out of.
    pub fn state(&self) -> Option<Epoch> {
        let is_mixed = self.batch.as_ref().is_some_and(|batch| {
            let sealed = self.undo.as_ref().and_then(Undo::sealed);
            batch.to_save.is_none() && sealed.is_none_or(|sealed| sealed < batch.until)
        });
        self.shown.filter(|_| !is_mixed).map(|point| point.epoch)
    }

    /// The epochs to be folded next, and what has to be saved before.
    fn next_batch(&self) -> Option<Batch> {
        let (first, _) = self.waiting.front()?;
        let alone = Batch { point: self.shown, until: first.epoch, to_save: None };
        let (Some(undo), Some(shown)) = (self.undo.as_ref().filter(|undo| undo.is_wanted()), self.shown) else { return Some(alone) };
        if first.epoch <= undo.sealed().unwrap_or(self.unsure_until) {
            return Some(alone);
        }
        let (point, saved) = undo.point_of(shown);
        let (mut until, mut to_save) = (first.epoch, RoaringBitmap::new());
        for (next, blocks) in &self.waiting {
            until = next.epoch;
            to_save |= blocks;
            if undo.is_apart(point, *next) || undo.is_held(*next) {
                break;
            }
        }
        Some(Batch { point: Some(point), until, to_save: Some(to_save - saved) })
    }

    /// What is folded next, if it is part of a cut of the group whose other parts are still to come.
    pub fn awaits_group(&self) -> Option<Epoch> {
        self.waiting.front().filter(|(point, _)| self.place.awaits(point.group)).map(|(point, _)| point.epoch)
    }

    /// Tells the other members of the group what there is.
    pub fn tell_group(&self) {
        let older = self.undo.iter().flat_map(Undo::points).map(|kept| kept.point);
        let points: Vec<_> = older.chain(self.shown).chain(self.waiting.iter().map(|(point, _)| *point)).collect();
        self.place.has(points.into_iter());
    }

    /// Whether the image is still to become what it is said to hold, after a crash or a failed sync.
    pub fn is_unsure(&self) -> bool {
        self.is_unread || self.waiting.front().is_some_and(|(point, _)| point.epoch <= self.unsure_until)
    }

    /// A batch whose end failed may have lost its pieces. Nothing is overwritten yet: it begins anew.
    fn save_again(&mut self) {
        self.batch = None;
        if let Some(Err(error)) = self.undo.as_mut().map(Undo::abandon) {
            self.give_up(&error);
        }
    }

    /// No older points from here on, until the next epoch: `why` is told.
    pub fn give_up(&mut self, why: &io::Error) {
        tracing::warn!(error = %why, "the older recovery points are given up: replication goes on without them");
        self.clear_undo();
        let cure = if self.is_void { ": none are kept until its disk works and blockd is restarted" } else { "" };
        self.lose(format!("the older recovery points were given up{cure}: {why}"));
    }

    /// Nobody knows what a block held that is overwritten now: points that would show it give an error there.
    fn miss(&mut self, block: BlockNumber) {
        let why = format!("block {block} was damaged here before it was overwritten: older recovery points give an error there");
        tracing::error!(block, "{why}");
        self.lose(why);
    }

    /// The points up to this one cannot be shown: `why` is told.
    pub fn give_up_until(&mut self, epoch: Epoch, why: &io::Error) {
        tracing::error!(epoch, error = %why, "what leads back to older recovery points cannot be read: they are given up up to this one");
        match self.undo.as_mut().map(|undo| undo.drop_until(epoch)) {
            Some(Err(error)) => self.give_up(&error),
            _ => self.lose(format!("the recovery points up to {epoch} cannot be read any more: {why}")),
        }
    }

    /// A point is not read any more. What was kept for it alone goes.
    pub fn unpin(&mut self, epoch: Epoch) {
        self.undo.iter_mut().for_each(|undo| undo.unpin(epoch));
        self.drop_unwanted();
    }

    /// Forgets older points that nobody wants.
    pub fn drop_unwanted(&mut self) {
        if self.undo.as_ref().is_some_and(|undo| !undo.is_wanted()) {
            self.clear_undo();
        }
    }

    /// Forgets every older point.
    pub fn clear_undo(&mut self) {
        if self.undo.as_mut().is_none_or(|undo| undo.clear().is_err()) {
            (self.undo, self.is_void) = (None, true);
        }
        if let Some(batch) = &mut self.batch {
            batch.to_save = None;
        }
    }

    /// An error of the image's disk. Where the undo lies on another, it is not one that [`Self::make_room`] can mend.
    fn of_image(&self, error: io::Error) -> io::Error {
        let in_vain = self.undo_disk == UndoDisk::Apart && error.kind() == io::ErrorKind::StorageFull;
        if in_vain { io::Error::new(io::ErrorKind::StorageFull, error) } else { error }
    }

    /// The disk is full: the oldest points go until there is room. Says whether one went.
    pub fn make_room(&mut self, error: &io::Error) -> bool {
        // Our own quotas are no full disk.
        if error.kind() != io::ErrorKind::StorageFull || error.raw_os_error().is_none() {
            return false;
        }
        let Some(undo) = &mut self.undo else { return false };
        match undo.make_room() {
            Ok(true) => {
                if self.lost.is_none() {
                    tracing::warn!("{DISK_IS_FULL}");
                }
                self.lose(DISK_IS_FULL.into());
                true
            }
            Ok(false) => false,
            Err(error) => {
                self.give_up(&error);
                false
            }
        }
    }
}

impl<F: SegmentFiles> Standby<F> {
    /// Folds a part of what is committed, if there is something; says whether there is more to do. Once all is folded, that is made durable.
    pub fn fold_one(&mut self) -> io::Result<bool> {
        match self.try_fold_one() {
            Err(error) if self.fold.make_room(&error) => Ok(true),
            done => done,
        }
    }

    fn try_fold_one(&mut self) -> io::Result<bool> {
        if self.journal.is_folded() {
            return Ok(false);
        }
        if self.fold.is_void {
            self.place.store_void(&*self.catalogue)?;
            self.fold.is_void = false;
        }
        if self.fold.is_unread {
            self.begin_fold()?;
        }
        if self.save_one()? {
            return Ok(true);
        }
        match self.journal.next_to_fold()? {
            Some(Message::Blocks(blocks)) => self.write_blocks(&blocks).map_err(|error| self.fold.of_image(payload_to_io(error)))?,
            // The image has had its size since before it was committed.
            Some(Message::Commit(commit)) => self.epoch_is_written(commit.epoch),
            _ => {}
        }
        self.journal.folded_one()?;
        if self.journal.is_folded()
            && let Err(error) = self.finish_fold()
        {
            // What was written may not have reached the disk.
            self.journal.fold_again();
            (self.fold.shown, self.fold.is_unread) = (self.fold.durable, true);
            return Err(error);
        }
        Ok(!self.journal.is_folded())
    }

    /// Reads which epochs wait in the journal.
    pub(super) fn begin_fold(&mut self) -> io::Result<()> {
        let (mut waiting, mut blocks) = (VecDeque::new(), RoaringBitmap::new());
        self.journal.for_each_unfolded(|message| match &message {
            Message::Commit(commit) => waiting.push_back((Point::of(commit), std::mem::take(&mut blocks))),
            _ => super::staged::add_blocks(&mut blocks, &message),
        })?;
        self.fold.unsure_until = waiting.back().map_or(0, |(point, _): &(Point, _)| point.epoch);
        (self.fold.waiting, self.fold.batch, self.fold.is_unread) = (waiting, None, false);
        Ok(())
    }

    /// Saves a part of what the next batch overwrites; says whether there was something to do.
    fn save_one(&mut self) -> io::Result<bool> {
        if self.fold.batch.is_none() {
            self.fold.batch = self.fold.next_batch();
        }
        let Some(Batch { point: Some(point), until, to_save: Some(to_save) }) = &self.fold.batch else { return Ok(false) };
        let (point, until, since) = (*point, *until, self.fold.shown.unwrap_or(*point).epoch);
        let some: RoaringBitmap = to_save.iter().take(SAVE_BLOCKS as usize).collect();
        let saved = self.read_to_save(&some)?;
        let Some(undo) = &mut self.fold.undo else { return Ok(false) };
        let done = if some.is_empty() { undo.seal(point, since, until) } else { save(undo, &saved) };
        if let Some(block) = saved.lost.min() {
            self.fold.miss(block);
        }
        match done {
            Ok(()) if some.is_empty() => drop(self.fold.lost.take_if(|(_, newest)| *newest < until)),
            Ok(()) => {}
            Err(error) if self.fold.make_room(&error) => {
                if some.is_empty() {
                    self.fold.save_again();
                }
                return Ok(true);
            }
            Err(error) => self.fold.give_up(&error),
        }
        if let Some(batch) = &mut self.fold.batch {
            match &mut batch.to_save {
                Some(to_save) if !some.is_empty() => *to_save -= some,
                rest => *rest = None,
            }
        }
        Ok(true)
    }

    fn epoch_is_written(&mut self, epoch: Epoch) {
        while let Some((point, _)) = self.fold.waiting.pop_front_if(|(point, _)| point.epoch <= epoch) {
            // Within a batch there is no point.
            if self.fold.batch.as_ref().is_none_or(|batch| batch.until <= point.epoch) {
                self.fold.shown = Some(point);
                self.fold.batch = None;
            }
        }
    }

    fn finish_fold(&mut self) -> io::Result<()> {
        self.image.sync().map_err(|error| self.fold.of_image(error))?;
        let folded = super::Place { folded: self.place.committed, ..self.place.clone() };
        folded.store_folded(self.fold.shown, &*self.catalogue)?;
        self.place = folded;
        self.fold.durable = self.fold.shown;
        self.journal.forget_folded()
    }

    /// Records that the image holds the newest recovery point.
    pub(super) fn store_folded(&self) -> io::Result<()> {
        self.place.store_folded(self.fold.shown, &*self.catalogue)
    }
}

/// Into the batch that is being written.
fn save<F: SegmentFiles>(undo: &mut Undo<F>, saved: &ToSave) -> io::Result<()> {
    if !saved.which.is_empty() {
        undo.save(&runs(&saved.which).collect::<Vec<_>>(), &saved.content)?;
    }
    if saved.lost.is_empty() { Ok(()) } else { undo.save_lost(&runs(&saved.lost).collect::<Vec<_>>()) }
}

/// What the operator is told of points that went.
const DISK_IS_FULL: &str = "the disk is full: the oldest recovery points are dropped to go on";
