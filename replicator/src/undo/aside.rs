//! The volume as it was at one instant, kept while its image goes on: what is overwritten for the first time is saved before.
//!
//! A log as those of the undo, of one batch that gets longer: each part leads back from a state that is numbered on from the point's epoch, and
//! means nothing else. Invariant: what is saved is durable before the image is overwritten, and nothing is saved twice.

use super::Point;
use super::level::{Known, Level};
use crate::codec::{Decoder, Encoder};
use crate::disk::{BlockDevice, SegmentFiles, read_each};
use crate::journal::{Position, SEGMENT_BYTES};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run, block_count, runs};
use replicator_engine::generation::Generation;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Blocks, Content};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::io;

/// Blocks of a record.
const SAVE_BLOCKS: usize = 128;
/// Memory to know what is where: with more, nothing more is overwritten.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// See the module's documentation.
pub struct Aside<F> {
    level: Level<F>,
    generation: Generation,
    encoder: Encoder,
    decoder: Decoder,
    point: Point,
    until: Epoch,
    has: RoaringBitmap,
    /// Runs that were saved: how long they are, and which record has them.
    places: BTreeMap<BlockNumber, (u32, Position)>,
    /// The record that was read last.
    last: Option<(Position, Blocks, Vec<u8>)>,
}

impl<F: SegmentFiles> Aside<F> {
    /// Opens what is kept in `files`, if something is. `sealed` is a lower bound of [`Self::until`], if one is known: a log that ends before it has lost
    /// what was durable, and would show a mix. It is left as it is, and the error says where it is damaged.
    pub fn open(files: F, generation: Generation, sealed: Option<Epoch>) -> io::Result<Option<Self>> {
        let level = Level::open(files, SEGMENT_BYTES, sealed.map_or(Known::Nothing, Known::AtLeast))?;
        let Some((point, until)) = level.batches.back().map(|batch| (batch.point, batch.until)) else {
            let gap = || io::Error::new(io::ErrorKind::InvalidData, "a part of it is missing");
            return sealed.map_or(Ok(None), |_| Err(gap()));
        };
        let (encoder, decoder) = (Encoder::new()?, Decoder::new()?);
        let (has, places, last) = Default::default();
        let mut aside = Self { level, generation, encoder, decoder, point, until, has, places, last };
        aside.index(0);
        Ok(Some(aside))
    }

    /// Begins to keep the volume as it is now, and forgets what was kept before. Durable on return; says up to where it is sealed.
    pub fn begin(files: F, generation: Generation, point: Point) -> io::Result<Epoch> {
        let mut level = Level::open(files, SEGMENT_BYTES, Known::Nothing)?;
        level.clear()?;
        level.seal(generation, point, point.epoch, point.epoch + 1)?;
        Ok(point.epoch + 1)
    }

    /// When it was, and how large.
    pub fn point(&self) -> Point {
        self.point
    }

    /// Up to where it is sealed, durably: it only grows, with each part that is saved.
    pub fn until(&self) -> Epoch {
        self.until
    }

    /// Bytes on disk.
    pub fn used_bytes(&self) -> u64 {
        self.level.used_bytes()
    }

    /// Forgets everything. Needs no room.
    pub fn clear(&mut self) -> io::Result<()> {
        self.level.clear()
    }

    /// Takes note of the records from this one on.
    fn index(&mut self, from: usize) {
        let Some(batch) = self.level.batches.back() else { return };
        for piece in &batch.pieces[from..] {
            for run in &piece.runs {
                self.has.insert_range(run.blocks());
                self.places.insert(run.start, (run.len, piece.at));
            }
        }
    }

    /// The image is about to be overwritten here: what was not saved yet is, durably, but for blocks that are `lost`. Returns those that the disk does
    /// not give any more.
    pub fn save(&mut self, image: &dyn BlockDevice, run: Run, lost: &RoaringBitmap) -> io::Result<RoaringBitmap> {
        let end = run.end().min(block_count(self.point.size_bytes.min(image.size_bytes())) as BlockNumber);
        let mut missing = RoaringBitmap::new();
        missing.insert_range(run.start..end.max(run.start));
        missing -= &self.has;
        missing -= lost;
        if missing.is_empty() {
            return Ok(missing);
        }
        let index_bytes = self.level.index_bytes() + self.places.len() as u64 * size_of::<(BlockNumber, (u32, Position))>() as u64;
        if index_bytes > MAX_INDEX_BYTES {
            return Err(io::Error::new(io::ErrorKind::StorageFull, TOO_LARGE));
        }
        let before = self.level.batches.back().map_or(0, |batch| batch.pieces.len());
        let unreadable = match self.save_missing(image, &missing) {
            Ok(unreadable) => unreadable,
            Err(error) => {
                self.level.abandon()?;
                return Err(error);
            }
        };
        self.until += 1;
        self.index(before);
        Ok(unreadable)
    }

    fn save_missing(&mut self, image: &dyn BlockDevice, missing: &RoaringBitmap) -> io::Result<RoaringBitmap> {
        let (mut rest, mut unreadable) = (missing.iter().peekable(), RoaringBitmap::new());
        while rest.peek().is_some() {
            let mut some: RoaringBitmap = rest.by_ref().take(SAVE_BLOCKS).collect();
            let read = read_each(image, &some)?;
            some -= &read.unreadable;
            if !some.is_empty() {
                let which: Vec<Run> = runs(&some).collect();
                self.level.save(&mut self.encoder, self.generation, &which, &read.content)?;
            }
            unreadable |= read.unreadable;
        }
        self.level.seal(self.generation, self.point, self.until, self.until + 1)?;
        Ok(unreadable)
    }

    /// The record behind this one, or the first.
    pub fn piece_after(&self, after: Option<Position>) -> Option<Position> {
        self.level.piece_after(after).map(|(at, _)| at)
    }

    /// Reads a record, as it is on the disk, against its checksums; says how much was read.
    pub fn check_piece(&mut self, at: Position) -> io::Result<u64> {
        self.level.check_piece(at, &mut self.decoder)
    }

    /// The blocks of which this record has what they held.
    pub fn blocks_of(&self, at: Position) -> RoaringBitmap {
        let pieces = self.level.batches.iter().flat_map(|batch| &batch.pieces).filter(|piece| piece.at == at);
        let mut blocks = RoaringBitmap::new();
        pieces.flat_map(|piece| &piece.runs).for_each(|run| _ = blocks.insert_range(run.blocks()));
        blocks
    }

    /// Puts what was saved of `run` into `content`, which has the image's.
    pub fn read(&mut self, run: Run, content: &mut [u8]) -> io::Result<()> {
        let from = self.places.range(..=run.start).next_back().map_or(run.start, |(start, _)| *start);
        let places: Vec<_> = self.places.range(from..run.end()).map(|(start, (len, at))| (Run { start: *start, len: *len }, *at)).collect();
        for (saved, at) in places {
            if self.last.as_ref().is_none_or(|(last, ..)| *last != at) {
                let blocks = self.level.read(at)?;
                let content = self.decoder.decode(&blocks).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?.to_vec();
                self.last = Some((at, blocks, content));
            }
            let Some((_, blocks, stored)) = &self.last else { continue };
            let wanted = saved.start.max(run.start)..saved.end().min(run.end());
            copy(blocks, stored, wanted, run.start, content);
        }
        Ok(())
    }
}

const TOO_LARGE: &str = "what is kept of the old state is spread too widely to be found again";

/// Copies the blocks of a record that are wanted to where they belong in `content`, which begins at block `start`.
fn copy(blocks: &Blocks, stored: &[u8], wanted: std::ops::Range<BlockNumber>, start: BlockNumber, content: &mut [u8]) {
    let mut stored = stored.chunks_exact(BLOCK_BYTES);
    for (run, kind) in &blocks.runs {
        for block in run.blocks() {
            let here = if *kind == Content::Data { stored.next() } else { None };
            if wanted.contains(&block) {
                let into = &mut content[(block - start) as usize * BLOCK_BYTES..][..BLOCK_BYTES];
                match here {
                    Some(bytes) => into.copy_from_slice(bytes),
                    None => into.fill(0),
                }
            }
        }
    }
}
