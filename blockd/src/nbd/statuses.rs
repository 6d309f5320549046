//! What the metadata contexts say of a range.

use super::handshake::{Context, Contexts};
use super::transmission::{Meaning, Statuses, describe};
use crate::request::Request;
use crate::volume::Volume;
use std::io;

/// What each context says of the range, up to `max_extents` each. Blocks: the file system is asked, and who replicates the volume.
pub(super) fn statuses(volume: &Volume, request: Request, contexts: Contexts, max_extents: usize) -> io::Result<Statuses> {
    let of = |context: Context| {
        let range = request.offset..request.offset + request.len_bytes;
        let extents = match context {
            Context::Allocation => describe(range.clone(), volume.allocated(range), Meaning::ALLOCATION, max_extents),
            Context::Dirty => {
                let (dirty, end) = volume.dirty(range.clone());
                describe(range.start..end, dirty.into_iter().map(Ok), Meaning::DIRTY, max_extents)
            }
        };
        Ok((context, extents?))
    };
    contexts.iter().map(of).collect()
}
