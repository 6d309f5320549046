//! Thinning: neighbouring batches of one level become one of the next, a piece at a time. Of a block that several have, the oldest content stays.

use super::level::{Batch, Saved};
use super::{LEVELS, Point, Undo};
use crate::disk::SegmentFiles;
use crate::journal::Position;
use replicator_engine::block::{BLOCK_BYTES, Run, runs};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Blocks, Content};
use roaring::RoaringBitmap;
use std::io;

/// Batches on their way to the next level.
pub(super) struct Merge {
    /// Where they are; they go to the one behind it.
    pub level: usize,
    /// How many they are, from the oldest on.
    batches: usize,
    point: Point,
    until: Epoch,
    /// Pieces that are still to be moved, the last first.
    pieces: Vec<Position>,
    /// What was moved.
    seen: RoaringBitmap,
}

impl Merge {
    /// Whether a point is no point any more at its end.
    pub fn has(&self, epoch: Epoch) -> bool {
        self.point.epoch < epoch && epoch < self.until
    }
}

impl<F: SegmentFiles> Undo<F> {
    /// Moves a piece, or begins or ends a merge; says whether there is more to do.
    pub(super) fn merge_one(&mut self, newest_ms: u64) -> io::Result<bool> {
        let Some(merge) = &mut self.merge else {
            self.merge = (0..LEVELS - 1).find_map(|level| self.next_merge(level, newest_ms));
            return Ok(self.merge.is_some());
        };
        let Some(at) = merge.pieces.pop() else {
            self.end_merge()?;
            return Ok(true);
        };
        let (level, seen) = (merge.level, &mut merge.seen);
        let blocks = match self.levels[level].saved(at)? {
            Saved::Content(blocks) => blocks,
            Saved::Lost(lost) => {
                let fresh: RoaringBitmap = lost.iter().flat_map(|run| run.blocks()).filter(|block| seen.insert(*block)).collect();
                if !fresh.is_empty() {
                    self.levels[level + 1].save_lost(self.generation, &runs(&fresh).collect::<Vec<_>>())?;
                }
                return Ok(true);
            }
        };
        let content = self.decoder.decode(&blocks).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let (runs, content) = unseen(&blocks, content, seen);
        if !runs.is_empty() {
            self.levels[level + 1].save(&mut self.encoder, self.generation, &runs, &content)?;
        }
        Ok(true)
    }

    /// The oldest batches of a level, if they are due to be one of the next.
    fn next_merge(&self, level: usize, newest_ms: u64) -> Option<Merge> {
        let batches = &self.levels[level].batches;
        let first = batches.front()?;
        let span = self.keep.thin[level].span_of(first.point.cut_unix_ms, newest_ms)?;
        let joins = |batch: &&Batch| span.contains(&batch.point.cut_unix_ms) && !self.is_held(batch.point);
        let count = 1 + batches.iter().skip(1).take_while(joins).count();
        // The last one still gets longer.
        let count = if count == batches.len() && level == 0 { count - 1 } else { count };
        let mut merged = batches.iter().take(count);
        let pieces = merged.clone().rev().flat_map(|batch| batch.pieces.iter().rev()).map(|piece| piece.at).collect();
        let until = merged.next_back()?.until;
        Some(Merge { level, batches: count, point: first.point, until, pieces, seen: RoaringBitmap::new() })
    }

    fn end_merge(&mut self) -> io::Result<()> {
        let Some(&Merge { level, batches, point, until, .. }) = self.merge.as_ref() else { return Ok(()) };
        // Until it is sealed, an error gives up what was moved.
        self.levels[level + 1].seal(self.generation, point, point.epoch, until)?;
        self.merge = None;
        self.version += 1;
        for _ in 0..batches {
            self.levels[level].forget_oldest()?;
        }
        Ok(())
    }

    /// Whether all is moved, and the end is next.
    #[cfg(test)]
    pub fn is_merge_at_end(&self) -> bool {
        self.merge.as_ref().is_some_and(|merge| merge.pieces.is_empty())
    }

    pub(super) fn abandon_merge(&mut self) -> io::Result<()> {
        self.merge.take().map_or(Ok(()), |merge| self.levels[merge.level + 1].abandon())
    }
}

/// The blocks of a piece that are not in `seen`, and their content one after the other; they are in `seen` then.
fn unseen(blocks: &Blocks, content: &[u8], seen: &mut RoaringBitmap) -> (Vec<Run>, Vec<u8>) {
    let (mut runs, mut kept): (Vec<Run>, Vec<u8>) = (Vec::new(), Vec::new());
    let mut content = content.chunks_exact(BLOCK_BYTES);
    for (run, kind) in &blocks.runs {
        for block in run.blocks() {
            let bytes = if *kind == Content::Data { content.next() } else { None };
            if !seen.insert(block) {
                continue;
            }
            match runs.last_mut() {
                Some(last) if last.end() == block => last.len += 1,
                _ => runs.push(Run { start: block, len: 1 }),
            }
            match bytes {
                Some(bytes) => kept.extend_from_slice(bytes),
                None => kept.resize(kept.len() + BLOCK_BYTES, 0),
            }
        }
    }
    (runs, kept)
}
