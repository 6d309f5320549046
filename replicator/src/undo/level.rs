//! One level of the undo: a log of batches, the oldest first.
//!
//! ```text
//!   batch   [content|which blocks] [content|which blocks] … [lost blocks] [since][until][POINT]   synced here
//! ```
//!
//! A batch leads back from one state of the image to a point before it. It is there once its last record is. One that was written in parts has
//! the same point in each: the first part is since that point, each other one since the epoch where the one before ended.

use super::Point;
use crate::codec::{Decoder, Encoder};
use crate::disk::SegmentFiles;
use crate::journal::{Journal, Outlined, Position};
use replicator_engine::block::{BLOCK_BYTES, Run};
use replicator_engine::generation::Generation;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Blocks, Commit, Compared, Envelope, EpochDigest, Message};
use roaring::RoaringBitmap;
use std::collections::VecDeque;
use std::io;

/// What leads from one state back to a point.
pub(super) struct Batch {
    pub point: Point,
    /// The epoch whose state it leads back from.
    pub until: Epoch,
    pub pieces: Vec<Piece>,
    /// Where its first record is.
    start: Position,
}

/// A record with content, or with blocks that had been lost when it was to be saved.
pub(super) struct Piece {
    pub at: Position,
    pub is_lost: bool,
    /// 8 bytes for a run: all that is held in memory of its content.
    pub runs: Box<[Run]>,
}

/// What a piece has.
pub(super) enum Saved {
    Content(Blocks),
    Lost(Vec<Run>),
}

impl Piece {
    pub fn blocks(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.len)).sum()
    }
}

impl Batch {
    fn index_bytes(&self) -> u64 {
        let piece_bytes = |piece: &Piece| size_of::<Piece>() + size_of_val(&*piece.runs);
        (size_of::<Self>() + self.pieces.iter().map(piece_bytes).sum::<usize>()) as u64
    }

    /// Its blocks of which the content was lost, or the others.
    pub fn blocks_that(&self, are_lost: bool) -> RoaringBitmap {
        let mut blocks = RoaringBitmap::new();
        let pieces = self.pieces.iter().filter(|piece| piece.is_lost == are_lost);
        pieces.flat_map(|piece| &piece.runs).for_each(|run| _ = blocks.insert_range(run.blocks()));
        blocks
    }

    /// Every block that it has.
    pub fn blocks(&self) -> RoaringBitmap {
        let mut blocks = RoaringBitmap::new();
        self.pieces.iter().flat_map(|piece| &piece.runs).for_each(|run| _ = blocks.insert_range(run.blocks()));
        blocks
    }
}

/// See the module's documentation.
pub(super) struct Level<F> {
    log: Journal<F>,
    pub batches: VecDeque<Batch>,
    open: Open,
    /// Memory that the batches take.
    index_bytes: u64,
}

/// What is known of a log before it is opened.
#[derive(Clone, Copy)]
pub(super) enum Known {
    Nothing,
    /// What is sealed up to this epoch was durable: if its content is not whole, no crash has torn it.
    Durable(Epoch),
    /// The same, and it is sealed up to there.
    AtLeast(Epoch),
}

/// The batch that is being written.
#[derive(Default)]
struct Open {
    start: Option<Position>,
    pieces: Vec<Piece>,
    digest: EpochDigest,
}

impl<F: SegmentFiles> Level<F> {
    /// Opens the log and reads what is where, without the content. A log that is known to go farther than it does is damaged: it is left as it is.
    pub fn open(files: F, segment_bytes: u64, known: Known) -> io::Result<Self> {
        let mut outline = Outline::default();
        let mut outlined = Outlined::read(&files, &mut |at, message| outline.see(at, message))?;
        let last = outline.batches.last().map(|(batch, ..)| batch.until);
        let durable = match known {
            Known::Nothing => None,
            Known::Durable(until) | Known::AtLeast(until) => Some(until),
        };
        if matches!(known, Known::AtLeast(_)) && last < durable {
            let Position { segment, offset } = outlined.end();
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("segment {segment} cannot be read from byte {offset} on")));
        }
        if last > durable {
            outlined.doubt_last(&files)?;
        }
        Ok(Self::of(outline, Journal::open_outlined(files, segment_bytes, outlined)?))
    }

    /// Opens what can be read of the log, for nothing else: its files stay as they are.
    pub fn open_to_read(files: F) -> io::Result<Self> {
        let mut outline = Outline::default();
        let outlined = Outlined::read(&files, &mut |at, message| outline.see(at, message))?;
        Ok(Self::of(outline, Journal::read_outlined(files, outlined)?))
    }

    fn of(outline: Outline, log: Journal<F>) -> Self {
        let batches = outline.up_to(log.committed());
        let index_bytes = batches.iter().map(Batch::index_bytes).sum();
        Self { log, batches, open: Open::default(), index_bytes }
    }

    /// Memory that it takes to know which block is where.
    pub fn index_bytes(&self) -> u64 {
        self.index_bytes
    }

    /// Bytes on disk.
    pub fn used_bytes(&self) -> u64 {
        self.log.used_bytes().0
    }

    /// Adds content to the open batch. `content` holds the blocks of `runs`, one after the other.
    pub fn save(&mut self, encoder: &mut Encoder, generation: Generation, runs: &[Run], content: &[u8]) -> io::Result<()> {
        let blocks = encoder.encode(runs, content);
        let at = self.log.append(&frame(generation, Message::Blocks(blocks.clone())))?;
        self.open.start.get_or_insert(at);
        self.log.append(&frame(generation, Message::Compared(Compared { ticket: 0, different: runs.to_vec() })))?;
        self.open.digest.add(&blocks);
        self.open.pieces.push(Piece { at, is_lost: false, runs: runs.into() });
        Ok(())
    }

    /// Adds blocks to the open batch whose content is lost: whoever reads them there gets an error.
    pub fn save_lost(&mut self, generation: Generation, runs: &[Run]) -> io::Result<()> {
        let at = self.log.append(&frame(generation, Message::Damaged(runs.to_vec())))?;
        self.open.start.get_or_insert(at);
        self.open.pieces.push(Piece { at, is_lost: true, runs: runs.into() });
        Ok(())
    }

    /// Ends the open batch, which leads from `until` back to `since`, and with the parts before it to `point`: it is durable on return.
    pub fn seal(&mut self, generation: Generation, point: Point, since: Epoch, until: Epoch) -> io::Result<()> {
        let at = self.log.append(&frame(generation, Message::Committed(since)))?;
        self.log.append(&frame(generation, Message::Committed(until)))?;
        let (blocks, digest) = self.open.digest.value();
        let Point { epoch, size_bytes, cut_unix_ms, group } = point;
        self.log.commit(&frame(generation, Message::Commit(Commit { epoch, blocks, digest, size_bytes, cut_unix_ms, group })))?;
        let open = std::mem::take(&mut self.open);
        let batch = Batch { point, until, pieces: open.pieces, start: open.start.unwrap_or(at) };
        let added_bytes = batch.index_bytes();
        if add(&mut self.batches, batch, since) {
            self.index_bytes += added_bytes;
        } else {
            self.index_bytes = 0;
        }
        Ok(())
    }

    /// Gives up the open batch.
    pub fn abandon(&mut self) -> io::Result<()> {
        self.open = Open::default();
        self.log.drop_staged()
    }

    /// Forgets the oldest batch.
    pub fn forget_oldest(&mut self) -> io::Result<()> {
        let gone_bytes = self.batches.pop_front().map_or(0, |batch| batch.index_bytes());
        self.index_bytes = if self.batches.is_empty() { 0 } else { self.index_bytes.saturating_sub(gone_bytes) };
        match self.batches.front().map(|batch| batch.start).or(self.open.start) {
            Some(first) => self.log.delete_before(first.segment),
            None => self.log.clear(),
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) -> io::Result<()> {
        self.batches.clear();
        self.index_bytes = 0;
        self.open = Open::default();
        self.log.clear()
    }

    /// Reads a piece and what stands behind it, which says what blocks these are and is read at a start, as they are on the disk, against their
    /// checksums; says how much was read.
    pub fn check_piece(&self, at: Position, decoder: &mut Decoder) -> io::Result<u64> {
        let next = self.piece_after(Some(at)).map(|(next, _)| next);
        self.log.check(at, next.unwrap_or(self.log.committed()))?;
        let blocks = self.read(at)?;
        decoder.decode(&blocks).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((blocks.payload.len() + BLOCK_BYTES) as u64)
    }

    /// The first piece behind a place, or of all, and the point that it belongs to.
    pub fn piece_after(&self, after: Option<Position>) -> Option<(Position, Epoch)> {
        let is_behind_us = |at: Position| after.is_some_and(|after| at <= after);
        let first = self.batches.partition_point(|batch| is_behind_us(batch.start)).saturating_sub(1);
        self.batches.range(first..).find_map(|batch| {
            let next = batch.pieces.partition_point(|piece| is_behind_us(piece.at));
            batch.pieces[next..].iter().find(|piece| !piece.is_lost).map(|piece| (piece.at, batch.point.epoch))
        })
    }

    /// Reads a piece with content.
    pub fn read(&self, at: Position) -> io::Result<Blocks> {
        match self.saved(at)? {
            Saved::Content(blocks) => Ok(blocks),
            Saved::Lost(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it was damaged here before it was overwritten")),
        }
    }

    /// Reads a piece.
    pub fn saved(&self, at: Position) -> io::Result<Saved> {
        match self.log.message(at)? {
            Message::Blocks(blocks) => Ok(Saved::Content(blocks)),
            Message::Damaged(runs) => Ok(Saved::Lost(runs)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("undo segment {} at {}: no content", at.segment, at.offset))),
        }
    }
}

/// Adds a batch, or a further part of the last one, behind the others. What does not follow makes those before it useless. Says whether it
/// is there then: without the parts before it, it is of no use either.
fn add(batches: &mut VecDeque<Batch>, batch: Batch, since: Epoch) -> bool {
    if batches.back().is_some_and(|last| last.until != since) {
        batches.clear();
    }
    match batches.back_mut() {
        Some(last) if last.point.epoch == batch.point.epoch => {
            last.pieces.extend(batch.pieces);
            last.until = batch.until;
        }
        _ if since != batch.point.epoch => {
            batches.clear();
            return false;
        }
        _ => batches.push_back(batch),
    }
    true
}

fn frame(generation: Generation, message: Message) -> bytes::Bytes {
    Envelope { generation, message }.encode()
}

/// What is where, as it is read.
#[derive(Default)]
struct Outline {
    /// With the epoch that it is since, and the place of its last record.
    batches: Vec<(Batch, Epoch, Position)>,
    start: Option<Position>,
    content: Option<Position>,
    pieces: Vec<Piece>,
    since: Option<Epoch>,
    until: Option<Epoch>,
}

impl Outline {
    /// The batches that end before a place.
    fn up_to(self, committed: Position) -> VecDeque<Batch> {
        let mut batches = VecDeque::new();
        for (batch, since, end) in self.batches {
            if end < committed {
                add(&mut batches, batch, since);
            }
        }
        batches
    }

    fn see(&mut self, at: Position, message: Option<&Message>) {
        let start = *self.start.get_or_insert(at);
        match message {
            None => self.content = Some(at),
            Some(Message::Compared(which)) => {
                let piece = self.content.take().map(|at| Piece { at, is_lost: false, runs: which.different.as_slice().into() });
                self.pieces.extend(piece);
            }
            Some(Message::Damaged(runs)) => self.pieces.push(Piece { at, is_lost: true, runs: runs.as_slice().into() }),
            Some(Message::Committed(epoch)) => self.since = self.until.replace(*epoch),
            Some(Message::Commit(commit)) => {
                let read = std::mem::take(self);
                self.batches = read.batches;
                let (point, blocks) = (Point::of(commit), commit.blocks);
                // The first may have lost its beginning, together with its segment.
                let is_whole = read.pieces.iter().filter(|piece| !piece.is_lost).map(Piece::blocks).sum::<u64>() == blocks;
                if let (true, Some(since), Some(until)) = (is_whole, read.since, read.until) {
                    self.batches.push((Batch { point, until, pieces: read.pieces, start }, since, at));
                }
            }
            Some(_) => {}
        }
    }
}
