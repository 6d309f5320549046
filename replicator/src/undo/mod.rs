//! The standby's older recovery points: what the image held before each epoch was folded into it.
//!
//! ```text
//!                 fewest               fewer                 all
//!   oldest ── [ level 2 ] ────── [ level 1 ] ────── [ level 0 ] ── image: the newest point
//!              one an hour        one a minute          ▲ written before the image is
//! ```
//!
//! Points p0 < p1 < … < the image. The batch of a point has, for every block that changed until the next point, the content at that point. Block
//! b at point p: the first batch from p's on that has it, else the image. So a point that is left out needs no rewriting to be right; thinning
//! only gets its space back. Invariants:
//! - A batch is durable before the image is overwritten.
//! - Batches follow each other without a gap, up to the state of the image: undo that does not is thrown away when it is opened.
//! - A batch that was merged into the next level is durable there before it goes; found in both, the merged one counts.

mod aside;
mod check;
mod keep;
mod level;
mod merge;
mod view;

pub use aside::Aside;
pub use check::PiecePlace;
pub use keep::{Keep, LEVELS, Thin};
pub use view::View;

use crate::codec::{Decoder, Encoder};
use crate::disk::SegmentFiles;
use crate::journal::SEGMENT_BYTES;
use crate::standby::GroupPlace;
use level::{Batch, Known, Level};
use merge::Merge;
use replicator_engine::block::Run;
use replicator_engine::generation::Generation;
use replicator_engine::group::GroupCut;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Commit;
use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::io;

/// Memory for a volume's list of what is where: with more, the oldest points go.
const MAX_INDEX_BYTES: u64 = 256 << 20;
/// A quota has about so many segments: what is deleted at once.
const SEGMENTS: u64 = 16;
/// For so long points are kept in a group, whatever the policy says.
const GROUP_SPAN_MS: u64 = 10 * 60_000;
const MIN_SEGMENT_BYTES: u64 = 1 << 20;

/// A recovery point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its epoch.
    pub epoch: Epoch,
    /// Size of the volume.
    pub size_bytes: u64,
    /// When it was cut, by the primary's clock, in milliseconds since 1970.
    pub cut_unix_ms: u64,
    /// The cut of a whole group that it is a part of.
    pub group: Option<GroupCut>,
}

impl Point {
    /// The point that a commit makes.
    pub fn of(commit: &Commit) -> Self {
        Self { epoch: commit.epoch, size_bytes: commit.size_bytes, cut_unix_ms: commit.cut_unix_ms, group: commit.group }
    }
}

/// A point that can be shown, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The point.
    pub point: Point,
    /// Content that changed until the next point, in bytes; 0 for the newest.
    pub changed_bytes: u64,
    /// Blocks that it does not have any more: whoever reads them gets an error.
    pub lost_blocks: u64,
}

/// See the module's documentation.
pub struct Undo<F> {
    levels: Vec<Level<F>>,
    keep: Keep,
    generation: Generation,
    encoder: Encoder,
    decoder: Decoder,
    /// How often each point is held by somebody who reads it.
    pins: BTreeMap<Epoch, usize>,
    /// With whom points belong together.
    place: GroupPlace,
    merge: Option<Merge>,
    /// Counts what makes a view's references void: content that went elsewhere.
    version: u64,
}

impl<F: SegmentFiles> Undo<F> {
    /// Opens the undo of an image that holds epoch `folded`, and parts of later ones up to `committed`. `files` has a directory for each level.
    pub fn open(
        files: [F; LEVELS],
        keep: Keep,
        place: GroupPlace,
        generation: Generation,
        folded: Epoch,
        committed: Epoch,
    ) -> io::Result<Self> {
        let segment_bytes = (keep.max_bytes / SEGMENTS).clamp(MIN_SEGMENT_BYTES, SEGMENT_BYTES);
        // The image is not overwritten, nor is that recorded, before the undo is durable: which is written to level 0.
        let known = [Known::Durable(folded), Known::Nothing, Known::Nothing];
        let open = |(files, known)| Level::open(files, segment_bytes, known);
        let levels = files.into_iter().zip(known).map(open).collect::<io::Result<Vec<_>>>()?;
        let mut undo = Self::of(levels, keep, place, generation)?;
        undo.join_levels()?;
        if undo.sealed().is_some_and(|sealed| !(folded..=committed).contains(&sealed)) {
            tracing::warn!(folded, committed, "the older recovery points do not lead to the image: they are given up");
            undo.clear()?;
        }
        Ok(undo)
    }

    /// Opens what is left of the undo to be read, for nothing else: its files stay as they are, whatever is damaged. It ends at the first gap: what is
    /// behind that may be of a later time than a block's content at a point.
    pub fn open_to_read(files: [F; LEVELS], generation: Generation) -> io::Result<Self> {
        let mut levels = files.into_iter().map(Level::open_to_read).collect::<io::Result<Vec<_>>>()?;
        let mut end = None;
        for level in levels.iter_mut().rev() {
            while level.batches.pop_front_if(|batch| end.is_some_and(|end| batch.until <= end)).is_some() {}
            if level.batches.front().is_some_and(|batch| end.is_some_and(|end| batch.point.epoch != end)) {
                level.batches.clear();
                // Nothing follows it.
                end = Some(Epoch::MAX);
            }
            end = level.batches.back().map(|batch| batch.until).or(end);
        }
        Self::of(levels, Keep::default(), GroupPlace::default(), generation)
    }

    fn of(levels: Vec<Level<F>>, keep: Keep, place: GroupPlace, generation: Generation) -> io::Result<Self> {
        let (encoder, decoder) = (Encoder::new()?, Decoder::new()?);
        Ok(Self { levels, keep, generation, encoder, decoder, pins: BTreeMap::new(), place, merge: None, version: 0 })
    }

    /// Drops what is in two levels, and what is beyond a gap.
    fn join_levels(&mut self) -> io::Result<()> {
        for newer in 0..LEVELS - 1 {
            let Some(until) = self.levels[newer + 1..].iter().find_map(|level| Some(level.batches.back()?.until)) else { break };
            while self.levels[newer].batches.front().is_some_and(|batch| batch.until <= until) {
                self.levels[newer].forget_oldest()?;
            }
            if self.levels[newer].batches.front().is_some_and(|batch| batch.point.epoch != until) {
                self.levels[newer + 1..].iter_mut().try_for_each(Level::clear)?;
            }
        }
        Ok(())
    }

    /// Whether what is overwritten has to be saved: for points that are kept, or for one that is read.
    pub fn is_wanted(&self) -> bool {
        self.keep.span_ms > 0 || !self.pins.is_empty() || self.place.is_set()
    }

    /// Whether a point has to stay, but for want of room: it is read, or its group has no newer one yet.
    pub fn is_held(&self, point: Point) -> bool {
        self.pins.contains_key(&point.epoch) || self.place.holds(point.group)
    }

    /// The epoch up to which the image may be overwritten; `None` if nothing is kept.
    pub fn sealed(&self) -> Option<Epoch> {
        self.newest().map(|batch| batch.until)
    }

    /// Bytes on disk.
    pub fn used_bytes(&self) -> u64 {
        self.levels.iter().map(Level::used_bytes).sum()
    }

    /// How many points there are, without the one that is in the image.
    pub fn count(&self) -> usize {
        self.levels.iter().map(|level| level.batches.len()).sum()
    }

    /// The points, the oldest first, without the one that is in the image.
    pub fn points(&self) -> impl Iterator<Item = Kept> {
        let lost = self.lost_blocks();
        let kept = move |(place, (_, batch)): (usize, (usize, &Batch))| {
            let blocks: u64 = batch.pieces.iter().map(level::Piece::blocks).sum();
            let changed_bytes = blocks * replicator_engine::block::BLOCK_BYTES as u64;
            Kept { point: batch.point, changed_bytes, lost_blocks: lost.get(place).copied().unwrap_or(0) }
        };
        self.batches().enumerate().map(kept)
    }

    /// How many blocks each point has lost, the oldest first; nothing if none has.
    fn lost_blocks(&self) -> Vec<u64> {
        if !self.batches().any(|(_, batch)| batch.pieces.iter().any(|piece| piece.is_lost)) {
            return Vec::new();
        }
        let (mut lost, mut counts) = (RoaringBitmap::new(), Vec::new());
        for (_, batch) in self.batches().rev() {
            lost = (lost - batch.blocks_that(false)) | batch.blocks_that(true);
            counts.push(lost.len());
        }
        counts.reverse();
        counts
    }

    /// The point to which the state at `shown` belongs that is about to be overwritten, and the blocks that have undo since.
    pub fn point_of(&self, shown: Point) -> (Point, RoaringBitmap) {
        match self.levels[0].batches.back() {
            Some(last) if self.is_apart(last.point, shown) || self.is_held(shown) => (shown, RoaringBitmap::new()),
            Some(last) => (last.point, last.blocks()),
            None => (shown, RoaringBitmap::new()),
        }
    }

    /// Whether one point is far enough behind another to be kept, too.
    pub fn is_apart(&self, earlier: Point, later: Point) -> bool {
        self.keep.is_apart(earlier.cut_unix_ms, later.cut_unix_ms, self.levels[0].batches.len())
    }

    /// Saves what the image holds of `runs`, one after the other in `content`, for the batch that [`Self::seal`] ends.
    /// The oldest points go for it; `StorageFull` if there is no room even so.
    pub fn save(&mut self, runs: &[Run], content: &[u8]) -> io::Result<()> {
        while self.is_too_large() {
            if !self.drop_oldest()? {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "one epoch overwrites more than `keep_bytes`"));
            }
        }
        self.levels[0].save(&mut self.encoder, self.generation, runs, content)
    }

    /// The image does not give `runs` any more: for this batch they are lost.
    pub fn save_lost(&mut self, runs: &[Run]) -> io::Result<()> {
        self.levels[0].save_lost(self.generation, runs)
    }

    /// The batch from `until` back to `since`, and with what was sealed before to `point`, is complete; durable on return.
    pub fn seal(&mut self, point: Point, since: Epoch, until: Epoch) -> io::Result<()> {
        self.levels[0].seal(self.generation, point, since, until)
    }

    /// Whether the oldest points have to go. One that is read stays while there is twice the room.
    fn is_too_large(&self) -> bool {
        let oldest = self.batches().next().map(|(_, batch)| batch.point);
        let factor = if oldest.is_some_and(|point| self.is_held(point)) { 2 } else { 1 };
        let index_bytes: u64 = self.levels.iter().map(Level::index_bytes).sum();
        self.used_bytes() > self.keep.max_bytes.saturating_mul(factor) || index_bytes > MAX_INDEX_BYTES * factor
    }

    /// Drops what was saved since the last batch.
    pub fn abandon(&mut self) -> io::Result<()> {
        self.levels[0].abandon()
    }

    /// Gives up every point but the one in the image, the oldest first: what a crash leaves of them still leads to the image.
    pub fn clear(&mut self) -> io::Result<()> {
        self.merge = None;
        self.version += 1;
        self.levels.iter_mut().rev().try_for_each(Level::clear)
    }

    /// Drops the oldest point, whoever reads it; says whether there was one.
    pub fn drop_oldest(&mut self) -> io::Result<bool> {
        let Some(level) = self.levels.iter().rposition(|level| !level.batches.is_empty()) else { return Ok(false) };
        if self.merge.as_ref().is_some_and(|merge| merge.level == level) {
            self.abandon_merge()?;
        }
        self.levels[level].forget_oldest()?;
        Ok(true)
    }

    /// Drops the oldest points until some room is free on the disk; says whether one went.
    pub fn make_room(&mut self) -> io::Result<bool> {
        let (before, mut dropped) = (self.used_bytes(), false);
        while self.used_bytes() >= before && self.drop_oldest()? {
            dropped = true;
        }
        Ok(dropped)
    }

    /// Nobody may drop or thin the point until [`Self::unpin`], but for want of room.
    pub fn pin(&mut self, epoch: Epoch) -> io::Result<()> {
        *self.pins.entry(epoch).or_default() += 1;
        if self.merge.as_ref().is_some_and(|merge| merge.has(epoch)) { self.abandon_merge() } else { Ok(()) }
    }

    /// Ends a [`Self::pin`].
    pub fn unpin(&mut self, epoch: Epoch) {
        if let Some(count) = self.pins.get_mut(&epoch) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&epoch);
            }
        }
    }

    /// Does a little of what the policy asks for, now that it is `newest_ms`; says whether there is more.
    pub fn tidy_one(&mut self, newest_ms: u64) -> io::Result<bool> {
        let oldest = self.batches().next().map(|(_, batch)| batch.point);
        let is_over = oldest.is_some_and(|oldest| !self.is_held(oldest) && self.is_over(oldest, newest_ms));
        if is_over || oldest.is_some() && self.is_too_large() {
            return self.drop_oldest();
        }
        let done = self.merge_one(newest_ms);
        if done.is_err() {
            self.abandon_merge()?;
        }
        done
    }

    /// Whether the point is too old to be kept. In a group there is always some undo: without, a crash would leave no older point to go back to.
    fn is_over(&self, point: Point, newest_ms: u64) -> bool {
        if self.place.is_set() && self.count() == 1 {
            return false;
        }
        let least_ms = if self.place.is_set() { GROUP_SPAN_MS } else { 0 };
        Keep { span_ms: self.keep.span_ms.max(least_ms), ..self.keep }.is_over(point.cut_unix_ms, newest_ms)
    }

    fn newest(&self) -> Option<&Batch> {
        self.levels.iter().find_map(|level| level.batches.back())
    }

    /// Every batch with its level, the oldest first.
    fn batches(&self) -> impl DoubleEndedIterator<Item = (usize, &Batch)> {
        self.levels.iter().enumerate().rev().flat_map(|(number, level)| level.batches.iter().map(move |batch| (number, batch)))
    }
}

#[cfg(test)]
mod tests;
