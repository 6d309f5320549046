//! Finds out, after a start, how far the journal goes.

use super::Position;
use super::record::{self, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use crate::disk::SegmentFiles;
use bytes::Bytes;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Commit, Envelope, Message};
use std::collections::VecDeque;
use std::io;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Reading or mending it failed.
    #[error("journal: {0}")]
    Io(#[from] io::Error),
    /// An epoch that was acknowledged is not there any more.
    #[error("journal: epoch {expected} was committed, but only epoch {found} can be read; the copy must be made anew")]
    CommitMissing {
        /// The epoch that the catalogue knows of.
        expected: Epoch,
        /// The last one that is there.
        found: Epoch,
    },
}

/// What of the records is read.
pub(super) enum Reading<'a> {
    /// All of it.
    Whole,
    /// All but content. Each record is shown with its place; `None` is content.
    Outline(&'a mut dyn FnMut(Position, Option<&Message>)),
}

/// What a journal holds, and what has to be cut off it.
pub(super) struct Found {
    pub end: Position,
    pub committed: Position,
    /// Behind the last commit that is not after the epoch that was asked for.
    pub folded: Position,
    pub last_commit: Option<Commit>,
    /// Behind the last commit but one.
    before_last: Position,
    pub oldest_segment: u64,
    /// Segments that are not torn at their beginning.
    good_segments: u64,
    /// The segment at the end has bytes behind its last intact record.
    torn: bool,
    /// Segments behind the end: written after what was torn, and never acknowledged.
    surplus: Vec<u64>,
}

/// Reads every segment, changing nothing. What is up to the commit of `folded_epoch` is folded.
pub(super) fn scan<F: SegmentFiles>(files: &F, folded_epoch: Epoch, mut reading: Reading<'_>) -> io::Result<Found> {
    let segments = files.list()?;
    let start = |segment| Position { segment, offset: SEGMENT_HEADER_BYTES };
    let first = segments.first().copied().unwrap_or(1);
    let (end, committed) = (start(first), start(first));
    let mut found = Found {
        end,
        committed,
        folded: committed,
        last_commit: None,
        before_last: committed,
        oldest_segment: first,
        good_segments: 0,
        torn: false,
        surplus: Vec::new(),
    };
    for segment in &segments {
        if found.torn || *segment != first + found.good_segments || !has_header(files, *segment)? {
            break;
        }
        found.good_segments += 1;
        found.end = start(*segment);
        let len_bytes = files.len_bytes(*segment)?;
        while let Some((frame, next)) = intact_record(files, found.end, len_bytes, &reading)? {
            let at = std::mem::replace(&mut found.end, Position { segment: *segment, offset: next });
            let message = frame.map(|frame| Envelope::decode(frame).map(|envelope| envelope.message));
            if let Reading::Outline(see) = &mut reading {
                match &message {
                    None => see(at, None),
                    Some(Ok(message)) => see(at, Some(message)),
                    Some(Err(_)) => {}
                }
            }
            if let Some(Ok(Message::Commit(commit))) = message {
                found.before_last = std::mem::replace(&mut found.committed, found.end);
                if commit.epoch <= folded_epoch {
                    found.folded = found.end;
                }
                found.last_commit = Some(commit);
            }
        }
        found.torn = found.end.offset < len_bytes;
    }
    if found.good_segments == 0 {
        (found.oldest_segment, found.end, found.committed, found.folded) = (1, start(1), start(1), start(1));
    }
    found.surplus = segments[found.good_segments as usize..].to_vec();
    Ok(found)
}

impl Found {
    /// Reads what was written together with the last commit, if only the outline was read: where that is not whole, neither was durable, and it is
    /// cut off. Whatever is before was durable before more was written.
    pub fn doubt_last<F: SegmentFiles>(&mut self, files: &F) -> io::Result<()> {
        if self.good_segments == 0 || is_intact(files, self.before_last, self.committed)? {
            return Ok(());
        }
        (self.committed, self.end, self.torn) = (self.before_last, self.before_last, true);
        self.last_commit = None;
        let surplus = self.end.segment + 1..self.oldest_segment + self.good_segments;
        self.good_segments -= surplus.end - surplus.start;
        self.surplus.splice(..0, surplus);
        Ok(())
    }
}

/// Cuts off what was found torn, so that appending can go on; returns the lengths of the segments before the last. Call it once nothing
/// that was acknowledged is missing: until then the files are the evidence.
pub(super) fn mend<F: SegmentFiles>(files: &mut F, found: &Found) -> io::Result<VecDeque<u64>> {
    for segment in found.surplus.iter().rev() {
        files.delete(*segment)?;
    }
    if found.good_segments == 0 {
        files.create(found.oldest_segment)?;
        files.append(found.oldest_segment, &record::segment_header(found.oldest_segment))?;
        files.sync(found.oldest_segment)?;
    } else if found.torn {
        files.truncate(found.end.segment, found.end.offset)?;
    } else {
        // A process that was killed may have written it and not synced it.
        files.sync(found.end.segment)?;
    }
    (found.oldest_segment..found.end.segment).map(|segment| files.len_bytes(segment)).collect()
}

fn has_header<F: SegmentFiles>(files: &F, segment: u64) -> io::Result<bool> {
    let mut header = vec![0; SEGMENT_HEADER_BYTES as usize];
    if files.len_bytes(segment)? < SEGMENT_HEADER_BYTES {
        return Ok(false);
    }
    files.read(segment, 0, &mut header)?;
    Ok(header == record::segment_header(segment))
}

/// Whether every record from one place to another is whole.
fn is_intact<F: SegmentFiles>(files: &F, from: Position, to: Position) -> io::Result<bool> {
    let mut at = from;
    while at < to {
        let len_bytes = files.len_bytes(at.segment)?;
        at = match intact_record(files, at, len_bytes, &Reading::Whole)? {
            Some((_, offset)) => Position { offset, ..at },
            None if at.offset == len_bytes => Position { segment: at.segment + 1, offset: SEGMENT_HEADER_BYTES },
            None => return Ok(false),
        };
    }
    Ok(true)
}

/// The frame at a place, unless it is content that is not to be read, and where the next record begins.
fn intact_record<F: SegmentFiles>(
    files: &F,
    at: Position,
    len_bytes: u64,
    reading: &Reading<'_>,
) -> io::Result<Option<(Option<Bytes>, u64)>> {
    let body = at.offset + RECORD_HEADER_BYTES as u64;
    if body > len_bytes {
        return Ok(None);
    }
    let mut header = [0; RECORD_HEADER_BYTES];
    files.read(at.segment, at.offset, &mut header)?;
    let Some(frame_len) = record::frame_len(&header) else { return Ok(None) };
    if body + frame_len as u64 > len_bytes {
        return Ok(None);
    }
    let next = body + frame_len as u64;
    if matches!(reading, Reading::Outline(_)) && frame_len > 0 {
        let mut kind = [0];
        files.read(at.segment, body, &mut kind)?;
        if kind[0] == record::CONTENT_KIND {
            return Ok(Some((None, next)));
        }
    }
    let mut frame = vec![0; frame_len];
    files.read(at.segment, body, &mut frame)?;
    if !record::is_intact(&header, &frame) {
        return Ok(None);
    }
    Ok(Some((Some(frame.into()), next)))
}
