//! Block status: which parts of a range are holes, or dirty.

use crate::nbd::handshake::Context;
use crate::nbd::wire::{allocation_flag, dirty_flag};
use std::io;
use std::ops::Range;

/// Most extents of one answer; a client asks again for the rest.
pub const MAX_EXTENTS: usize = 2048;

/// A part of the answer, following the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length, never 0.
    pub len_bytes: u64,
    /// What it says depends on the context: see [`allocation_flag`] and [`dirty_flag`].
    pub flags: u32,
}

/// What each of a session's contexts says of a range.
pub type Statuses = Vec<(Context, Vec<Extent>)>;

/// What the parts of a range mean in a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// Flags of the parts that are named.
    pub inside: u32,
    /// Flags of everything else.
    pub outside: u32,
}

impl Meaning {
    /// `base:allocation`; the parts that hold data are named.
    pub const ALLOCATION: Self = Self { inside: 0, outside: allocation_flag::HOLE | allocation_flag::ZERO };
    /// `tern:dirty`; the dirty parts are named.
    pub const DIRTY: Self = Self { inside: dirty_flag::DIRTY, outside: 0 };
}

/// Describes `range`, not empty, by ascending parts of it. The answer never reaches beyond the range; it ends early after `max_extents`.
pub fn describe(
    range: Range<u64>,
    parts: impl IntoIterator<Item = io::Result<Range<u64>>>,
    meaning: Meaning,
    max_extents: usize,
) -> io::Result<Vec<Extent>> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = range.start;
    let mut push = |to: u64, flags| {
        let to = to.min(range.end);
        if to > at {
            let len_bytes = to - at;
            at = to;
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.len_bytes += len_bytes,
                _ => extents.push(Extent { len_bytes, flags }),
            }
        }
        // One more than wanted tells that the one before it is complete.
        extents.len() <= max_extents
    };
    for part in parts {
        let part = part?;
        if !push(part.start, meaning.outside) || !push(part.end, meaning.inside) {
            break;
        }
    }
    // After an early end this only adds to what is cut off.
    push(range.end, meaning.outside);
    extents.truncate(max_extents);
    Ok(extents)
}
