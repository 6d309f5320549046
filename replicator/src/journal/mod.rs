//! The standby's journal: what arrived, until it is folded into the image.
//!
//! ```text
//!   segment 3            segment 4                        appended here
//!   [hdr|rec|rec|COMMIT] [hdr|rec|COMMIT|rec|rec| … ] ◄──
//!    ▲ folded up to here           ▲ committed up to here
//! ```
//!
//! Records are the frames of the wire (`record`). The same log holds a standby's undo ([`crate::undo`]). What follows the last commit is staged: it belongs to no epoch yet. Invariants:
//! - A commit record is durable, with everything before it, before [`Journal::commit`] returns.
//! - A segment is deleted only when all of it is folded and the image is durable.
//! - A segment is as long as its records: what a failed append left behind them is cut off before anything else is written.

mod record;
mod scan;

pub use scan::JournalError;

use crate::disk::SegmentFiles;
use bytes::Bytes;
use record::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Commit, Envelope, Message};
use scan::{Found, Reading};
use std::collections::VecDeque;
use std::io;

/// A segment that has grown to this is closed and a new one begun.
pub(crate) const SEGMENT_BYTES: u64 = 64 << 20;

/// A place in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Number of the segment.
    pub segment: u64,
    /// Offset of a record in it.
    pub offset: u64,
}

impl Position {
    /// So many bytes further on, in the same segment.
    pub fn beyond(self, len_bytes: u64) -> Self {
        Self { offset: self.offset + len_bytes, ..self }
    }
}

/// See the module's documentation.
pub struct Journal<F> {
    files: F,
    /// Where the next record goes.
    end: Position,
    /// Behind the last commit.
    committed: Position,
    /// What is before is in the image, though perhaps not durably.
    folded: Position,
    /// What is before is in the image durably.
    durable: Position,
    oldest_segment: u64,
    /// Lengths of the segments from the oldest up to the one before the last.
    closed: VecDeque<u64>,
    closed_bytes: u64,
    /// Something of a record may be behind the end.
    is_torn: bool,
    quota_bytes: u64,
    segment_bytes: u64,
}

/// What a log holds of which nothing is ever folded. Its files are as they were.
pub struct Outlined(Found);

impl Outlined {
    /// Reads the log without its content. `see` is shown every record with its place; `None` is content. What it is shown from behind
    /// [`Self::committed`] on is not there.
    pub fn read<F: SegmentFiles>(files: &F, see: &mut dyn FnMut(Position, Option<&Message>)) -> io::Result<Self> {
        scan::scan(files, 0, Reading::Outline(see)).map(Self)
    }

    /// Behind the last commit.
    pub fn committed(&self) -> Position {
        self.0.committed
    }

    /// Where what can be read ends.
    pub fn end(&self) -> Position {
        self.0.end
    }

    /// Nobody knows whether the last batch was durable: it is not there unless its content is whole.
    pub fn doubt_last<F: SegmentFiles>(&mut self, files: &F) -> io::Result<()> {
        self.0.doubt_last(files)
    }
}

impl<F: SegmentFiles> Journal<F> {
    /// Opens the journal and cuts off a tail that was torn by a crash. `expected` is the last epoch that is known to be committed: it must
    /// be in the journal, or folded already. Returns the last commit that was found, too.
    pub fn open(mut files: F, quota_bytes: u64, folded_epoch: Epoch, expected: Epoch) -> Result<(Self, Option<Commit>), JournalError> {
        let found = scan::scan(&files, folded_epoch, Reading::Whole)?;
        let last_epoch = found.last_commit.as_ref().map_or(folded_epoch, |commit| commit.epoch);
        if last_epoch.max(folded_epoch) < expected {
            return Err(JournalError::CommitMissing { expected, found: last_epoch });
        }
        let closed = scan::mend(&mut files, &found)?;
        let journal = Self::of(files, quota_bytes, &found, closed);
        Ok((journal, found.last_commit))
    }

    /// Opens a log of which nothing is ever folded, as [`Outlined::read`] found it: cuts off what a crash has torn.
    pub fn open_outlined(mut files: F, segment_bytes: u64, Outlined(found): Outlined) -> io::Result<Self> {
        let closed = scan::mend(&mut files, &found)?;
        let mut log = Self { segment_bytes, ..Self::of(files, u64::MAX, &found, closed) };
        log.drop_staged()?;
        Ok(log)
    }

    /// The same to be read, and no more: the files stay as they are.
    pub fn read_outlined(files: F, Outlined(found): Outlined) -> io::Result<Self> {
        let closed = (found.oldest_segment..found.end.segment).map(|segment| files.len_bytes(segment)).collect::<io::Result<_>>()?;
        Ok(Self::of(files, u64::MAX, &found, closed))
    }

    fn of(files: F, quota_bytes: u64, found: &Found, closed: VecDeque<u64>) -> Self {
        Self {
            files,
            end: found.end,
            committed: found.committed,
            folded: found.folded,
            durable: found.folded,
            oldest_segment: found.oldest_segment,
            closed_bytes: closed.iter().sum(),
            closed,
            is_torn: false,
            quota_bytes,
            segment_bytes: SEGMENT_BYTES,
        }
    }

    /// Where the next record goes, unless it begins a segment.
    pub fn end(&self) -> Position {
        self.end
    }

    /// Behind the last commit.
    pub fn committed(&self) -> Position {
        self.committed
    }

    /// Bytes in use, and the quota.
    pub fn used_bytes(&self) -> (u64, u64) {
        (self.closed_bytes + self.end.offset, self.quota_bytes)
    }

    /// Whether everything that is committed is folded.
    pub fn is_folded(&self) -> bool {
        self.folded >= self.committed
    }

    /// Whether there is staged content.
    pub fn has_staged(&self) -> bool {
        self.end > self.committed
    }

    /// Appends a frame; says where it is. `StorageFull` if it would go over the quota.
    pub fn append(&mut self, frame: &Bytes) -> io::Result<Position> {
        let record = record::encode(frame);
        if self.used_bytes().0 + record.len() as u64 > self.quota_bytes {
            return Err(io::Error::new(io::ErrorKind::StorageFull, quota_is_too_small(self.quota_bytes)));
        }
        if self.end.offset >= self.segment_bytes {
            self.rotate()?;
        }
        self.cut_torn()?;
        self.is_torn = true;
        self.files.append(self.end.segment, &record)?;
        self.is_torn = false;
        let at = self.end;
        self.end.offset += record.len() as u64;
        Ok(at)
    }

    /// Appends a commit's frame and makes it and everything before it durable.
    pub fn commit(&mut self, frame: &Bytes) -> io::Result<()> {
        self.append(frame)?;
        self.seal()
    }

    /// Makes what was appended durable, the last of it a commit's frame. If that fails, what was staged is gone.
    pub fn seal(&mut self) -> io::Result<()> {
        if let Err(error) = self.files.sync(self.end.segment) {
            // It may be read back from memory and never be written, whatever a later sync says: nobody may find it again.
            let _ = self.drop_staged();
            return Err(error);
        }
        self.committed = self.end;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn set_segment_bytes(&mut self, segment_bytes: u64) {
        self.segment_bytes = segment_bytes;
    }

    #[cfg(test)]
    pub(crate) fn set_quota_bytes(&mut self, quota_bytes: u64) {
        self.quota_bytes = quota_bytes;
    }

    /// Where the payload of a frame lies that was appended at a place.
    pub fn payload_at(at: Position, frame: &Bytes, payload: &Bytes) -> Position {
        at.beyond((RECORD_HEADER_BYTES + frame.len() - payload.len()) as u64)
    }

    /// Whether the segment of a place is there still.
    pub fn holds(&self, at: Position) -> bool {
        at.segment >= self.oldest_segment
    }

    /// Bytes of a record, unchecked.
    pub fn read_content(&self, at: Position, content: &mut [u8]) -> io::Result<()> {
        self.files.read(at.segment, at.offset, content)
    }

    /// Drops what is staged.
    pub fn drop_staged(&mut self) -> io::Result<()> {
        while self.end.segment > self.committed.segment {
            self.files.delete(self.end.segment)?;
            let len_bytes = self.closed.pop_back().expect("a length for each segment before the end");
            self.closed_bytes -= len_bytes;
            self.end = Position { segment: self.end.segment - 1, offset: len_bytes };
        }
        self.is_torn |= self.end > self.committed;
        self.end = self.committed;
        self.cut_torn()
    }

    /// The next committed message that is not folded. Call [`Self::folded_one`] once it is in the image.
    pub fn next_to_fold(&mut self) -> io::Result<Option<Message>> {
        if self.is_folded() {
            return Ok(None);
        }
        self.skip_to_record();
        Ok(Some(self.read_record(self.folded)?.0))
    }

    /// The message that [`Self::next_to_fold`] gave is in the image.
    pub fn folded_one(&mut self) -> io::Result<()> {
        let len_bytes = self.read_record(self.folded)?.1;
        self.folded.offset += len_bytes;
        Ok(())
    }

    /// What was folded may not be in the image: it is folded again from where that is certain.
    pub fn fold_again(&mut self) {
        self.folded = self.durable;
    }

    /// Everything folded so far is durable in the image: segments that hold nothing else go.
    pub fn forget_folded(&mut self) -> io::Result<()> {
        self.durable = self.folded;
        // A segment that is all folded and all there is would keep its bytes for ever: begin a new one.
        if self.folded == self.end && self.end.offset > SEGMENT_HEADER_BYTES {
            self.rotate()?;
            self.committed = self.end;
            self.folded = self.end;
            self.durable = self.end;
        }
        self.delete_before(self.folded.segment)
    }

    /// Deletes the segments before one that is there.
    pub fn delete_before(&mut self, segment: u64) -> io::Result<()> {
        while self.oldest_segment < segment.min(self.end.segment) {
            self.files.delete(self.oldest_segment)?;
            self.closed_bytes -= self.closed.pop_front().expect("a length for each segment before the end");
            self.oldest_segment += 1;
        }
        Ok(())
    }

    /// Forgets everything. Needs no room.
    pub fn clear(&mut self) -> io::Result<()> {
        self.delete_before(self.end.segment)?;
        self.end.offset = SEGMENT_HEADER_BYTES;
        self.is_torn = true;
        (self.committed, self.folded, self.durable) = (self.end, self.end, self.end);
        self.cut_torn()
    }

    /// Calls `visit` with every staged message, in order.
    pub fn for_each_staged(&self, visit: impl FnMut(Message)) -> io::Result<()> {
        self.for_each(self.committed, self.end, visit)
    }

    /// Calls `visit` with every committed message that is not folded, in order.
    pub fn for_each_unfolded(&self, visit: impl FnMut(Message)) -> io::Result<()> {
        self.for_each(self.folded, self.committed, visit)
    }

    /// The message of the record at a place.
    pub fn message(&self, at: Position) -> io::Result<Message> {
        self.read_record(at).map(|(message, _)| message)
    }

    /// Reads the records from one place up to another, as they are on the disk, against their checksums.
    pub fn check(&self, from: Position, to: Position) -> io::Result<()> {
        for segment in from.segment..=to.segment {
            let start = if segment == from.segment { from.offset } else { 0 };
            let end = if segment == to.segment { to.offset } else { self.len_bytes(segment) };
            self.files.forget_cached(segment, start..end)?;
        }
        self.for_each(from, to, drop)
    }

    fn for_each(&self, from: Position, to: Position, mut visit: impl FnMut(Message)) -> io::Result<()> {
        let mut at = from;
        while at < to {
            if at.offset >= self.len_bytes(at.segment) {
                at = Position { segment: at.segment + 1, offset: SEGMENT_HEADER_BYTES };
                continue;
            }
            let (message, len_bytes) = self.read_record(at)?;
            visit(message);
            at.offset += len_bytes;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.cut_torn()?;
        self.files.sync(self.end.segment)?;
        let segment = self.end.segment + 1;
        self.files.create(segment)?;
        self.files.append(segment, &record::segment_header(segment))?;
        self.closed.push_back(self.end.offset);
        self.closed_bytes += self.end.offset;
        self.end = Position { segment, offset: SEGMENT_HEADER_BYTES };
        Ok(())
    }

    fn cut_torn(&mut self) -> io::Result<()> {
        if self.is_torn {
            self.files.truncate(self.end.segment, self.end.offset)?;
            self.is_torn = false;
        }
        Ok(())
    }

    fn skip_to_record(&mut self) {
        while self.folded.segment < self.committed.segment && self.folded.offset >= self.len_bytes(self.folded.segment) {
            self.folded = Position { segment: self.folded.segment + 1, offset: SEGMENT_HEADER_BYTES };
        }
    }

    fn len_bytes(&self, segment: u64) -> u64 {
        self.closed.get((segment - self.oldest_segment) as usize).copied().unwrap_or(self.end.offset)
    }

    fn read_record(&self, at: Position) -> io::Result<(Message, u64)> {
        let damaged =
            |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("journal segment {} at {}: {what}", at.segment, at.offset));
        let mut header = [0; RECORD_HEADER_BYTES];
        self.files.read(at.segment, at.offset, &mut header)?;
        let len_bytes = record::frame_len(&header).ok_or_else(|| damaged("not a record"))?;
        let mut frame = vec![0; len_bytes];
        self.files.read(at.segment, at.offset + RECORD_HEADER_BYTES as u64, &mut frame)?;
        if !record::is_intact(&header, &frame) {
            return Err(damaged("the checksum differs"));
        }
        let envelope = Envelope::decode(frame.into()).map_err(|error| damaged(&error.to_string()))?;
        Ok((envelope.message, (RECORD_HEADER_BYTES + len_bytes) as u64))
    }
}

/// Shown only once nothing is left to fold: then all that is in the journal belongs to an epoch that does not end.
fn quota_is_too_small(quota_bytes: u64) -> String {
    format!(
        "the changes since the last recovery point are more than the journal's quota of {quota_bytes} bytes: add the primary's backlog to \
         `quota` under `[journal]` at the standby, and restart blockd there"
    )
}

#[cfg(test)]
mod tests;
