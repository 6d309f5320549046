//! The volume at a point: which of its blocks are undo, and where.
//!
//! A view stays right while the image is folded on, if it is refreshed before each read: what is about to be overwritten is in the undo then.

use super::{Point, Undo};
use crate::disk::SegmentFiles;
use crate::journal::Position;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Content;
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// Pieces that a view keeps decoded: 512 KiB each.
const RECENT_PIECES: usize = 4;

/// See the module's documentation. 28 bytes and the map's overhead for a block.
pub struct View {
    /// The point that it shows.
    pub point: Point,
    version: u64,
    /// Batches up to this epoch are in `blocks`.
    until: Epoch,
    blocks: BTreeMap<BlockNumber, Piece>,
    /// The pieces that were read last: neighbours in space are neighbours in one, and several read.
    recent: VecDeque<(Piece, Decoded)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    level: usize,
    at: Position,
}

struct Decoded {
    runs: Vec<(Run, Content)>,
    content: Vec<u8>,
}

impl Decoded {
    /// The content of a block; `None` if it is zero.
    fn block(&self, block: BlockNumber) -> io::Result<Option<&[u8]>> {
        let mut before = 0;
        for (run, kind) in &self.runs {
            if run.blocks().contains(&block) {
                let from = (before + (block - run.start) as usize) * BLOCK_BYTES;
                return Ok((*kind == Content::Data).then(|| &self.content[from..from + BLOCK_BYTES]));
            }
            before += if *kind == Content::Data { run.len as usize } else { 0 };
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("undo: block {block} is not where it should be")))
    }
}

impl View {
    /// Whether the block is not as it is in the image.
    pub fn has(&self, block: BlockNumber) -> bool {
        self.blocks.contains_key(&block)
    }

    /// The blocks that are not as they are in the image, in runs; those whose content lies together come together.
    pub fn changed(&self) -> Vec<Run> {
        let mut blocks: Vec<_> = self.blocks.iter().map(|(block, piece)| (*piece, *block)).collect();
        blocks.sort_unstable();
        let mut runs: Vec<Run> = Vec::new();
        for (_, block) in blocks {
            match runs.last_mut() {
                Some(last) if last.end() == block => last.len += 1,
                _ => runs.push(Run { start: block, len: 1 }),
            }
        }
        runs
    }
}

impl<F: SegmentFiles> Undo<F> {
    /// The volume at a point; `None` if it is not kept.
    pub fn view(&self, epoch: Epoch) -> Option<View> {
        let point = self.batches().find(|(_, batch)| batch.point.epoch == epoch)?.1.point;
        let (until, blocks) = self.collect(epoch);
        Some(View { point, version: self.version, until, blocks, recent: VecDeque::new() })
    }

    /// The volume at a point that is in the image until the next epoch is folded.
    pub fn view_of_image(&self, point: Point) -> View {
        View { point, version: self.version, until: point.epoch, blocks: BTreeMap::new(), recent: VecDeque::new() }
    }

    /// Brings a view up to the batches that there are; says whether its point is still kept. `shown` is what the image holds.
    pub fn refresh(&self, view: &mut View, shown: Epoch) -> bool {
        let epoch = view.point.epoch;
        let sealed = self.sealed().unwrap_or(shown);
        if epoch < sealed.max(shown) && !self.batches().any(|(_, batch)| batch.point.epoch == epoch) {
            return false;
        }
        if view.version != self.version {
            (view.until, view.blocks) = self.collect(epoch);
            view.version = self.version;
            view.recent.clear();
        } else if view.until < sealed {
            self.extend(view);
        }
        true
    }

    /// Reads `run` as it is in the view, where that is undo, into `content`, which has the image's content.
    pub fn read(&mut self, view: &mut View, run: Run, content: &mut [u8]) -> io::Result<()> {
        let View { blocks, recent, .. } = view;
        for (block, piece) in blocks.range(run.blocks()) {
            match recent.iter().position(|(cached, _)| cached == piece) {
                Some(0) => {}
                Some(found) => recent.swap(0, found),
                None => {
                    recent.push_front((*piece, self.decode(*piece)?));
                    recent.truncate(RECENT_PIECES);
                }
            }
            let Some((_, decoded)) = recent.front() else { continue };
            let at = (block - run.start) as usize * BLOCK_BYTES;
            let into = &mut content[at..at + BLOCK_BYTES];
            match decoded.block(*block)? {
                Some(bytes) => into.copy_from_slice(bytes),
                None => into.fill(0),
            }
        }
        Ok(())
    }

    /// Adds what was sealed since: what is there already is older, and stays.
    fn extend(&self, view: &mut View) {
        let newer = self.batches().rev().take_while(|(_, batch)| batch.until > view.until).collect::<Vec<_>>();
        for (level, batch) in newer.into_iter().rev() {
            for piece in &batch.pieces {
                let here = Piece { level, at: piece.at };
                piece.runs.iter().flat_map(|run| run.blocks()).for_each(|block| _ = view.blocks.entry(block).or_insert(here));
            }
            view.until = batch.until;
        }
    }

    fn decode(&mut self, piece: Piece) -> io::Result<Decoded> {
        let blocks = self.levels[piece.level].read(piece.at)?;
        let content = self.decoder.decode(&blocks).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?.to_vec();
        Ok(Decoded { runs: blocks.runs, content })
    }

    /// The oldest content since a point of every block that has undo since, and up to which epoch that goes.
    fn collect(&self, epoch: Epoch) -> (Epoch, BTreeMap<BlockNumber, Piece>) {
        let (mut until, mut found) = (epoch, BTreeMap::new());
        for (level, batch) in self.batches().filter(|(_, batch)| batch.point.epoch >= epoch) {
            until = batch.until;
            for piece in &batch.pieces {
                let here = Piece { level, at: piece.at };
                // Of a block's several pieces the oldest comes first.
                piece.runs.iter().flat_map(|run| run.blocks()).for_each(|block| _ = found.entry(block).or_insert(here));
            }
        }
        (until, found)
    }
}
