//! The standby's half of one volume: frames in, a crash-safe copy out.
//!
//! ```text
//!   frame ──► receiver (may it?) ──► journal ──► commit ──► answer
//!                                      └──► fold, behind the answer ──► image
//! ```
//!
//! Before the first recovery point, content goes straight into the image. One thread owns a [`Standby`]; every call may block on the disk.

mod arrived;
mod checked;
mod compare;
pub mod connection;
mod fold;
mod grouped;
mod old_state;
mod past;
mod place;
mod rollback;
mod scrub;
mod scrubbing;
mod segments;
mod service;
mod staged;
mod status;
mod streams;
mod trouble;
mod views;

pub use checked::{DIGEST_BYTES, DigestsOnDisk, Health, note_damaged};
pub use fold::UndoDisk;
pub use grouped::{AllKept, Board, GroupPlace};
pub use old_state::{KeptOld, Lost, OldMarks, OldState};
pub use past::PastError;
pub use place::Place;
pub use rollback::Rollback;
pub use scrub::{Round, ScrubProgress, Step as ScrubStep};
pub use scrubbing::{ScrubBudget, ScrubPace};
pub use segments::SegmentDir;
pub use service::{Open, Session, StandbyService};
pub use status::{Settled, StandbyStatus};
pub use views::OpenView;

use crate::catalogue::{Catalogue, Persist};
use crate::codec::{BasesMemory, Decoder, PayloadError};
use crate::disk::{BlockDevice, Pages, SegmentFiles};
use crate::journal::{Journal, JournalError, Position};
use crate::undo::Point;
use arrived::Arrived;
use bytes::Bytes;
use checked::Checked;
use fold::Fold;
use replicator_engine::block::Run;
use replicator_engine::generation::{Generation, Lineage};
use replicator_engine::history::History;
use replicator_engine::receiver::{Receiver, Staged, Step};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Base, Blocks, Commit, Content, DecodeError, Envelope, Message, Refusal, Refused};
use roaring::RoaringBitmap;
use staged::StagedContent;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Largest piece of the image that is read or written at once.
const WRITE_BLOCKS: u32 = 256;

/// See the module's documentation.
pub struct Standby<F> {
    receiver: Receiver,
    place: Place,
    /// When the committed epoch was cut; `None` if nobody wrote it down.
    cut_unix_ms: Option<u64>,
    journal: Journal<F>,
    fold: Fold<F>,
    /// Fingerprints of what an attempt that was broken off left in the journal; only while a stream may ask for them.
    staged: Option<StagedContent>,
    /// What its epochs changed; only if the volume has other standbys, and since this one knows that.
    history: Option<History>,
    /// Blocks that a primary compared, and need not send: others may lack them nevertheless, so they belong to the next epoch's history.
    found_equal: RoaringBitmap,
    image: Arc<dyn BlockDevice>,
    /// The same, if its blocks are known by their digests.
    checked: Option<Arc<Checked>>,
    /// The same below that, if it keeps an old primary's last state.
    old: Option<Arc<OldState<F>>>,
    catalogue: Arc<dyn Catalogue>,
    decoder: Decoder,
    /// What differences may lead on from.
    arrived: Arrived,
}

/// A message as the journal needs it.
struct Detached {
    frame: Bytes,
    envelope: Envelope,
    /// It came as a piece of a stream.
    is_piece: bool,
}

/// Why a stream has to end. Answer with [`StandbyError::refusal`], then close it.
#[derive(Debug, thiserror::Error)]
pub enum StandbyError {
    /// The engine refuses the message.
    #[error("{}", .0.text)]
    Refused(Refused),
    /// The frame is no message.
    #[error("the frame is no message: {0}")]
    Frame(#[from] DecodeError),
    /// The payload is not what the message says.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The disk failed, or is full.
    #[error("the standby's disk: {0}")]
    Disk(#[from] io::Error),
}

impl StandbyError {
    /// What to tell the primary.
    pub fn refusal(&self, lineage: &Lineage) -> Refused {
        let reason = match self {
            Self::Refused(refused) => return refused.clone(),
            Self::Frame(_) | Self::Payload(_) => Refusal::Protocol,
            Self::Disk(_) => Refusal::Storage,
        };
        Refused { reason, text: self.to_string(), lineage: lineage.clone() }
    }
}

impl<F: SegmentFiles> Standby<F> {
    /// Opens the copy that stands at `place`: reads the journal, and keeps what it holds.
    pub fn open(
        place: Place,
        files: F,
        quota_bytes: u64,
        image: Arc<dyn BlockDevice>,
        catalogue: Arc<dyn Catalogue>,
    ) -> Result<Self, JournalError> {
        // A promotion that did not come about may have begun one, and the next one may have the same generation.
        if place::load_back(place.volume, &*catalogue)?.is_some() {
            Rollback::forget(place.volume, &*catalogue)?;
        }
        let (journal, found) = Journal::open(files, quota_bytes, place.folded, place.committed)?;
        let (mut place, mut cut_unix_ms) = (place, None);
        if let Some(commit) = found.filter(|commit| commit.epoch >= place.committed) {
            (place.committed, place.size_bytes) = (commit.epoch, commit.size_bytes);
            cut_unix_ms = Some(commit.cut_unix_ms);
        }
        let mut unconfirmed = RoaringBitmap::new();
        journal.for_each_staged(|message| staged::add_blocks(&mut unconfirmed, &message))?;
        let receiver = place.receiver(unconfirmed);
        let fold = Fold::new(place.load_point(&*catalogue)?);
        let cut_unix_ms = cut_unix_ms.or(fold.shown().filter(|point| point.epoch == place.committed).map(|point| point.cut_unix_ms));
        let mut standby = Self {
            receiver,
            place,
            cut_unix_ms,
            journal,
            fold,
            staged: None,
            history: None,
            found_equal: RoaringBitmap::new(),
            image,
            checked: None,
            old: None,
            catalogue,
            decoder: Decoder::new()?,
            arrived: Arrived::default(),
        };
        // A grown image may not have been grown yet when the power went.
        standby.grow(standby.place.size_bytes)?;
        standby.begin_fold()?;
        Ok(standby)
    }

    /// Where the copy stands.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// When the recovery point was cut, by the primary's clock, in milliseconds since 1970.
    pub fn cut_unix_ms(&self) -> Option<u64> {
        self.cut_unix_ms
    }

    /// The journal, for its figures.
    pub fn journal(&self) -> &Journal<F> {
        &self.journal
    }

    /// A frame came. Returns the answer, if there is one.
    pub fn handle_frame(&mut self, frame: Bytes) -> Result<Option<Message>, StandbyError> {
        let Detached { frame, envelope, is_piece } = self.detach(frame)?;
        match self.receiver.handle_message(envelope).map_err(StandbyError::Refused)? {
            Step::Adopt { lineage, staged, answer } => {
                self.adopt(lineage, staged)?;
                Ok(Some(answer))
            }
            Step::Stage(blocks) => {
                let at = self.stage(&frame, &blocks)?;
                if is_piece {
                    self.arrived.add(&blocks, at.map(|at| Journal::<F>::payload_at(at, &frame, &blocks.payload)));
                } else {
                    blocks.runs.iter().for_each(|(run, _)| self.arrived.forget(*run));
                }
                Ok(None)
            }
            Step::Abandon => {
                self.arrived.clear();
                Ok(None)
            }
            Step::Compare(compare) => Ok(Some(Message::Compared(self.compare(&compare)?))),
            Step::Commit(commit) => {
                self.commit(&frame, &commit)?;
                Ok(Some(Message::Committed(commit.epoch)))
            }
        }
    }

    /// The volume has other standbys, and each has this epoch.
    pub fn handle_everywhere(&mut self, epoch: Epoch) {
        let committed = self.place.committed;
        self.history.get_or_insert_with(|| History::new(committed)).forget_until(epoch);
    }

    /// What changed here of late; nothing is known of what came before the point where the copy stands, if nobody told that others need it.
    pub fn history(&self) -> History {
        self.history.clone().unwrap_or_else(|| History::new(self.place.committed))
    }

    /// A primary that continues an epoch before the last one that is committed here, since it was refused.
    pub fn rival(&self) -> Option<&Lineage> {
        self.receiver.rival()
    }

    /// One that was refused at an earlier time.
    pub fn set_rival(&mut self, rival: Option<Lineage>) {
        self.receiver.set_rival(rival);
    }

    /// What to tell a primary that is attached, if a later one was refused since.
    pub fn outdated(&self) -> Option<Refused> {
        self.receiver.is_attached().then(|| self.receiver.outdated()).flatten()
    }

    /// Whether a stream that begins like this is taken. Nothing changes but that a rival is noted.
    pub fn judge(&mut self, first: &Bytes) -> Result<(), StandbyError> {
        let envelope = Envelope::decode(first.clone())?;
        self.receiver.judge(&envelope.message).map_err(StandbyError::Refused)
    }

    /// A frame that can be understood by itself, as the journal needs it.
    fn detach(&mut self, frame: Bytes) -> Result<Detached, StandbyError> {
        let envelope = Envelope::decode(frame.clone())?;
        match envelope.message {
            Message::Blocks(blocks) if blocks.encoding.needs_history() => {
                let blocks = self.decoder.detach(blocks)?;
                let blocks = if blocks.has_deltas() { self.resolve(blocks)? } else { blocks };
                let envelope = Envelope { message: Message::Blocks(blocks), ..envelope };
                Ok(Detached { frame: envelope.encode(), envelope, is_piece: true })
            }
            _ => Ok(Detached { frame, envelope, is_piece: false }),
        }
    }

    /// The stream broke.
    pub fn handle_disconnected(&mut self) {
        self.receiver.handle_disconnected();
        self.decoder.forget_history();
        self.arrived.clear();
        self.staged = None;
    }

    /// Memory for what came last of hot blocks.
    pub fn remember_bases(&mut self, memory: Arc<BasesMemory>) {
        self.arrived = Arrived::new(memory);
    }

    /// Gives memory back that is not in use; says when to ask again.
    pub fn forget_idle(&mut self) -> Duration {
        self.arrived.forget_idle()
    }

    /// Drops what is staged and folds everything: afterwards the image is the last recovery point, and the journal empty. The epoch and
    /// the lineage that a promotion continues.
    pub fn settle(&mut self) -> io::Result<(Epoch, Lineage)> {
        self.handle_disconnected();
        self.journal.drop_staged()?;
        while self.fold_one()? {}
        Ok((self.place.committed, self.place.lineage.clone()))
    }

    /// The generation that goes into answers.
    pub fn generation(&self) -> Generation {
        self.receiver.lineage().current()
    }

    fn adopt(&mut self, lineage: Lineage, staged: Staged) -> io::Result<()> {
        self.staged = None;
        self.arrived.clear();
        if staged == Staged::Goes {
            self.journal.drop_staged()?;
        }
        if !self.receiver.needs_journal() {
            self.zero_beyond(self.receiver.announced_bytes())?;
        }
        if self.place.lineage != lineage {
            self.place.lineage = lineage;
            // What has to be compared may depend on which lineage was adopted before.
            self.place.base = self.receiver.base().clone();
            if self.place.committed != self.receiver.committed() {
                (self.place.committed, self.place.folded) = (self.receiver.committed(), self.receiver.committed());
            }
            self.place.store(&*self.catalogue, Persist::Synced)?;
        }
        Ok(())
    }

    /// Where the frame is in the journal; `None` if its content went to the image.
    fn stage(&mut self, frame: &Bytes, blocks: &Blocks) -> Result<Option<Position>, StandbyError> {
        if self.receiver.needs_journal() {
            match &mut self.staged {
                Some(staged) => staged.add(blocks, &mut self.decoder)?,
                None => drop(self.decoder.decode(blocks)?),
            }
            return Ok(Some(self.append(frame)?));
        }
        reach(&*self.image, blocks.runs.iter().map(|(run, _)| *run))?;
        if self.place.base != *self.receiver.base() || self.place.size_bytes < self.image.size_bytes() {
            self.place.base = self.receiver.base().clone();
            // Before content is there: who opens the copy knows how far it may reach, and a primary that attaches has it zeroed beyond its own end.
            self.place.size_bytes = self.place.size_bytes.max(self.image.size_bytes());
            self.place.store(&*self.catalogue, Persist::Synced)?;
        }
        self.write_blocks(blocks).map(|()| None)
    }

    /// Appends to the journal; makes room by folding if it is full.
    fn append(&mut self, frame: &Bytes) -> io::Result<Position> {
        loop {
            match self.journal.append(frame) {
                Ok(at) => return Ok(at),
                Err(error) if self.fold.make_room(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull && !self.journal.is_folded() => while self.fold_one()? {},
                Err(error) => return Err(error),
            }
        }
    }

    fn commit(&mut self, frame: &Bytes, commit: &Commit) -> io::Result<()> {
        // What is committed must find room when it is folded.
        self.grow(commit.size_bytes)?;
        let first = !self.receiver.needs_journal();
        if first {
            self.zero_beyond(commit.size_bytes)?;
            self.image.sync()?;
            self.place.folded = commit.epoch;
            self.fold.begin_at(Point::of(commit));
        } else {
            self.append(frame)?;
            // This is not tried again: what was staged may be gone.
            self.journal.seal().inspect_err(|error| _ = self.fold.make_room(error))?;
            self.fold.add(Point::of(commit), self.receiver.staged());
        }
        self.fold.place.committed(Point::of(commit));
        let found_equal = std::mem::take(&mut self.found_equal);
        match &mut self.history {
            // What came before did not go through a journal.
            Some(history) if first => *history = History::new(commit.epoch),
            Some(history) => history.add(commit.epoch, &(found_equal | self.receiver.staged())),
            None => {}
        }
        self.receiver.handle_committed(commit);
        self.staged = None;
        self.place.committed = commit.epoch;
        self.place.size_bytes = commit.size_bytes;
        self.cut_unix_ms = Some(commit.cut_unix_ms);
        self.place.base = Base::Point;
        // Afterwards the journal's commit record is the truth; this only tells a journal that lost its end.
        if first { self.store_folded() } else { self.place.store(&*self.catalogue, Persist::Eventually) }
    }

    fn write_blocks(&mut self, blocks: &Blocks) -> Result<(), StandbyError> {
        reach(&*self.image, blocks.runs.iter().map(|(run, _)| *run))?;
        let mut content = self.decoder.decode(blocks)?;
        for (run, kind) in &blocks.runs {
            if *kind == Content::Zero {
                self.image.zero(*run)?;
                continue;
            }
            for start in run.blocks().step_by(WRITE_BLOCKS as usize) {
                let piece = Run { start, len: WRITE_BLOCKS.min(run.end() - start) };
                let (bytes, rest) = content.split_at(piece.len_bytes() as usize);
                let mut pages = Pages::new(piece.len);
                pages.copy_from_slice(bytes);
                self.image.write(piece, &pages)?;
                content = rest;
            }
        }
        Ok(())
    }

    fn grow(&mut self, size_bytes: u64) -> io::Result<()> {
        if size_bytes > self.image.size_bytes() { self.image.grow(size_bytes) } else { Ok(()) }
    }

    /// The copy was of a larger volume: what the primary does not have must not come back when it grows, which it may before the first commit.
    fn zero_beyond(&self, size_bytes: u64) -> io::Result<()> {
        let tail = Run::covering(size_bytes, self.image.size_bytes().saturating_sub(size_bytes));
        tail.map_or(Ok(()), |tail| self.image.zero(tail))
    }
}

/// Grows the image until it has all of `runs`: the size of an epoch is known only at its commit.
fn reach(image: &dyn BlockDevice, runs: impl Iterator<Item = Run>) -> io::Result<()> {
    let end = runs.map(|run| run.offset() + run.len_bytes()).max().unwrap_or(0);
    if end > image.size_bytes() { image.grow(end) } else { Ok(()) }
}

fn payload_to_io(error: StandbyError) -> io::Error {
    match error {
        StandbyError::Disk(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

#[cfg(test)]
mod tests;
