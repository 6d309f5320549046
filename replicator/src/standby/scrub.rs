//! Looking for blocks that the disk has lost before somebody needs them: the image against its digests, then the undo, and an old state that is kept,
//! against their checksums.
//!
//! ```text
//!   resting ──due, or asked──► image, piece by piece ──► undo, piece by piece ──► old state, piece by piece ──► resting
//! ```
//!
//! It is done while there is nothing else to do, and at no more than a rate. What is found is asked of the primary, and comes with an ordinary
//! epoch. The journal is read, with its checksums, when it is folded, which is at once.

use super::checked::{Checked, Health};
use super::{Standby, StandbyError};
use crate::catalogue::Catalogue;
use crate::codec::{Decoder, digest};
use crate::disk::{BlockDevice, DigestFile, Pages, SegmentFiles, read_each};
use crate::journal::Position;
use crate::undo::PiecePlace;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run, runs};
use replicator_engine::wire::{Base, Blocks, Content, Message};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Blocks that are read at once: what an epoch that comes meanwhile waits for.
const PIECE_BLOCKS: u32 = 64;

/// Steps in which it is told how far a round is.
const PROGRESS_BYTES: u64 = 16 << 20;

/// Where a round is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Round {
    /// In the image; where, the digests remember.
    #[default]
    Image,
    /// In the undo, behind this piece.
    Undo(Option<PiecePlace>),
    /// In an old state that is kept, behind this piece.
    Old(Option<Position>),
    /// At its end.
    Ended,
}

/// How far a round is, about: told in steps that are worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Bytes that are done, holes included.
    pub done_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
}

/// What a step of a round has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where the round goes on.
    pub next: Round,
    /// What was read for it.
    pub read_bytes: u64,
}

/// What is to go into the undo.
#[derive(Default)]
pub(super) struct ToSave {
    pub which: RoaringBitmap,
    /// What they hold, one after the other.
    pub content: Vec<u8>,
    /// Nobody knows what these held.
    pub lost: RoaringBitmap,
}

impl<F: SegmentFiles> Standby<F> {
    /// From here on the image's blocks are known by their digests. To be called before anything else writes to it.
    pub fn check_digests(&mut self, digests: Box<dyn DigestFile>) -> io::Result<()> {
        let catalogue: Arc<dyn Catalogue> = self.catalogue.clone();
        let checked = Arc::new(Checked::open(&self.place, self.image.clone(), digests, catalogue)?);
        self.image = checked.clone();
        self.checked = Some(checked);
        Ok(())
    }

    /// How the image fares; `None` if its blocks are not known by digests.
    pub fn health(&self) -> Option<Health> {
        self.checked.as_ref().map(|checked| checked.health())
    }

    /// The blocks that the disk does not give back as they came.
    pub fn damaged(&self) -> RoaringBitmap {
        self.checked.as_ref().map_or_else(RoaringBitmap::new, |checked| checked.damaged())
    }

    /// Records what is known of the image, so that a restart begins with that.
    pub fn remember_health(&self) {
        if let Some(Err(error)) = self.checked.as_ref().map(|checked| checked.remember()) {
            tracing::warn!(volume = %self.place.volume, %error, "the catalogue cannot be written");
        }
    }

    /// Whether the image can be looked at: after a crash it is to become what it is said to hold first.
    pub fn can_scrub(&self) -> bool {
        self.checked.is_some() && self.place.base == Base::Point && !self.fold.is_unsure()
    }

    /// A new round begins: the image from its first block on.
    pub fn begin_scrub(&mut self) {
        self.checked.iter().for_each(|checked| checked.set_cursor(0, None));
    }

    /// How far a round is.
    pub fn scrub_progress(&self, round: Round) -> ScrubProgress {
        let (image, undo) = (self.image.size_bytes(), self.undo_bytes());
        let old = self.kept_old().map_or(0, |kept| kept.used_bytes);
        let cursor = self.checked.as_ref().map_or(0, |checked| u64::from(checked.cursor()) * BLOCK_BYTES as u64);
        let done_bytes = match round {
            Round::Image => cursor.min(image) / PROGRESS_BYTES * PROGRESS_BYTES,
            Round::Undo(_) => image,
            Round::Old(_) => image + undo,
            Round::Ended => image + undo + old,
        };
        ScrubProgress { done_bytes, total_bytes: image + undo + old }
    }

    /// Whether a round was under way when the copy was opened.
    pub fn is_scrub_begun(&self) -> bool {
        self.checked.as_ref().is_some_and(|checked| checked.cursor() > 0)
    }

    /// A step of a round; only if [`Self::can_scrub`]. `unix_ms` is the time, for when it ends. After an error it may be tried again; where the undo is
    /// what cannot be read, [`Self::give_up_unreadable`] goes on without it.
    pub fn scrub_one(&mut self, round: Round, unix_ms: u64) -> io::Result<Step> {
        let Some(checked) = self.checked.clone() else { return Ok(Step { next: Round::Ended, read_bytes: 0 }) };
        match round {
            Round::Image => match checked.next(checked.cursor(), PIECE_BLOCKS)? {
                Some(run) => {
                    checked.check(run);
                    checked.set_cursor(run.end(), None);
                    Ok(Step { next: Round::Image, read_bytes: run.len_bytes() })
                }
                None => Ok(Step { next: Round::Undo(None), read_bytes: 0 }),
            },
            Round::Undo(after) => self.scrub_undo(after),
            Round::Old(after) => {
                let Some(at) = self.old_piece_after(after) else {
                    checked.set_cursor(0, Some(unix_ms));
                    return Ok(Step { next: Round::Ended, read_bytes: 0 });
                };
                Ok(Step { read_bytes: self.check_old_piece(at)?, next: Round::Old(Some(at)) })
            }
            Round::Ended => Ok(Step { next: Round::Ended, read_bytes: 0 }),
        }
    }

    fn scrub_undo(&mut self, after: Option<PiecePlace>) -> io::Result<Step> {
        let next = self.fold.undo.as_mut().and_then(|undo| Some((undo.piece_after(after)?.0, undo)));
        let Some((place, undo)) = next else { return Ok(Step { next: Round::Old(None), read_bytes: 0 }) };
        let read_bytes = undo.check_piece(place)?;
        Ok(Step { next: Round::Undo(Some(place)), read_bytes })
    }

    /// What comes next in this round cannot be read. Of the undo, the points that need it are given up; of an old state, the blocks. Where the round
    /// goes on.
    pub fn give_up_unreadable(&mut self, round: Round, why: &io::Error) -> Round {
        match round {
            Round::Undo(after) => match self.fold.undo.as_ref().and_then(|undo| undo.piece_after(after)) {
                Some((place, epoch)) => {
                    self.fold.give_up_until(epoch, why);
                    Round::Undo(Some(place))
                }
                None => round,
            },
            Round::Old(after) => match self.old_piece_after(after) {
                Some(at) => {
                    self.lose_old_piece(at, why);
                    Round::Old(Some(at))
                }
                None => round,
            },
            Round::Image | Round::Ended => round,
        }
    }

    /// What the image holds of `blocks`. Where that is not what was written, the journal may have it still, and the image is mended. Else it is lost to
    /// the older recovery points that would show it.
    pub(super) fn read_to_save(&mut self, blocks: &RoaringBitmap) -> io::Result<ToSave> {
        let read = read_each(&*self.image, blocks)?;
        let there = blocks - &read.unreadable;
        let Some(checked) = self.checked.clone() else {
            return Ok(ToSave { which: there, content: read.content, lost: read.unreadable });
        };
        let (mut wrong, mut rest) = (read.unreadable, &read.content[..]);
        for run in runs(&there) {
            let (here, after) = rest.split_at(run.len_bytes() as usize);
            wrong |= checked.mismatches(run, here);
            rest = after;
        }
        if wrong.is_empty() {
            return Ok(ToSave { which: there, content: read.content, lost: wrong });
        }
        let again = |wrong: &RoaringBitmap| wrong.iter().filter_map(|block| Some((block, checked.read_again(block)?))).collect();
        let mut right: BTreeMap<BlockNumber, Pages> = again(&wrong);
        let damaged: RoaringBitmap = wrong.iter().filter(|block| !right.contains_key(block)).collect();
        if !damaged.is_empty() {
            checked.note_damaged(&damaged);
            self.mend_from_journal(&checked)?;
            right.append(&mut again(&damaged));
            // That there were zeroes says the digest alone.
            let zeroes = damaged.iter().filter(|block| checked.expected(*block) == Some(0));
            zeroes.for_each(|block| _ = right.entry(block).or_insert_with(|| Pages::new(1)));
        }
        let mut to_save = ToSave::default();
        let mut content = read.content.chunks_exact(BLOCK_BYTES);
        for block in blocks {
            let here = if there.contains(block) { content.next() } else { None };
            match right.get(&block).map(|right| &right[..]).or(here.filter(|_| !wrong.contains(block))) {
                Some(content) => {
                    to_save.which.insert(block);
                    to_save.content.extend_from_slice(content);
                }
                None => _ = to_save.lost.insert(block),
            }
        }
        Ok(to_save)
    }

    /// Writes to the image what waits to be folded and is what a damaged block should hold by now: a repair that the primary sent. All of them at
    /// once: the journal is read for each piece that is saved else.
    fn mend_from_journal(&self, checked: &Checked) -> io::Result<()> {
        let (damaged, mut failed, mut decoder) = (checked.damaged(), None, Decoder::new()?);
        self.journal.for_each_unfolded(|message| {
            let Message::Blocks(blocks) = message else { return };
            if let Err(error) = mend_from(&blocks, &damaged, checked, &mut decoder) {
                failed = Some(error);
            }
        })?;
        failed.map_or(Ok(()), |error| Err(super::payload_to_io(error)))
    }

    /// Refuses content that the disk does not give back as it came: of the image's blocks of `run`, those that are in no undo.
    pub(super) fn check_read(&self, run: Run, content: &[u8], is_undo: impl Fn(BlockNumber) -> bool) -> io::Result<()> {
        let Some(checked) = &self.checked else { return Ok(()) };
        let mut wrong = checked.mismatches(run, content);
        wrong = wrong.into_iter().filter(|block| !is_undo(*block)).collect();
        let Some(block) = wrong.min() else { return Ok(()) };
        checked.note_damaged(&wrong);
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("block {block} is damaged here; the primary is asked for it")))
    }
}

fn mend_from(blocks: &Blocks, damaged: &RoaringBitmap, checked: &Checked, decoder: &mut Decoder) -> Result<(), StandbyError> {
    if !blocks.runs.iter().any(|(run, _)| damaged.range_cardinality(run.blocks()) > 0) {
        return Ok(());
    }
    let mut content = decoder.decode(blocks)?.chunks_exact(BLOCK_BYTES);
    for (run, kind) in &blocks.runs {
        for block in run.blocks() {
            let here = if *kind == Content::Data { content.next() } else { None };
            if damaged.contains(block) && checked.expected(block) == Some(here.map_or(0, digest)) {
                let mut right = Pages::new(1);
                here.iter().for_each(|here| right.copy_from_slice(here));
                checked.write(Run { start: block, len: 1 }, &right)?;
            }
        }
    }
    Ok(())
}
