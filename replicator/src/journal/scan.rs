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

/// What a journal holds, and what has to be cut off it.
pub(super) struct Found {
    pub end: Position,
    pub committed: Position,
    pub last_commit: Option<Commit>,
    pub oldest_segment: u64,
    /// Segments that are not torn at their beginning.
    good_segments: u64,
    /// The segment at the end has bytes behind its last intact record.
    torn: bool,
    /// Segments behind the end: written after what was torn, and never acknowledged.
    surplus: Vec<u64>,
}

/// Reads every segment, changing nothing.
pub(super) fn scan<F: SegmentFiles>(files: &F) -> Result<Found, JournalError> {
    let segments = files.list()?;
    let start = |segment| Position { segment, offset: SEGMENT_HEADER_BYTES };
    let first = segments.first().copied().unwrap_or(1);
    let (end, committed) = (start(first), start(first));
    let mut found = Found { end, committed, last_commit: None, oldest_segment: first, good_segments: 0, torn: false, surplus: Vec::new() };
    for segment in &segments {
        if found.torn || *segment != first + found.good_segments || !has_header(files, *segment)? {
            break;
        }
        found.good_segments += 1;
        found.end = start(*segment);
        let len_bytes = files.len_bytes(*segment)?;
        while let Some((frame, next)) = intact_record(files, found.end, len_bytes)? {
            found.end.offset = next;
            if let Ok(Envelope { message: Message::Commit(commit), .. }) = Envelope::decode(frame) {
                found.committed = found.end;
                found.last_commit = Some(commit);
            }
        }
        found.torn = found.end.offset < len_bytes;
    }
    if found.good_segments == 0 {
        (found.oldest_segment, found.end, found.committed) = (1, start(1), start(1));
    }
    found.surplus = segments[found.good_segments as usize..].to_vec();
    Ok(found)
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

/// The frame at a place, and where the next record begins.
fn intact_record<F: SegmentFiles>(files: &F, at: Position, len_bytes: u64) -> io::Result<Option<(Bytes, u64)>> {
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
    let mut frame = vec![0; frame_len];
    files.read(at.segment, body, &mut frame)?;
    if !record::is_intact(&header, &frame) {
        return Ok(None);
    }
    Ok(Some((frame.into(), body + frame_len as u64)))
}
