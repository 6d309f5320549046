//! Block status: which parts of a range are holes.

use crate::nbd::wire::allocation_flag;
use std::io;
use std::ops::Range;

/// Most extents of one answer; a client asks again for the rest.
pub const MAX_EXTENTS: usize = 2048;

/// A part of the answer, following the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length, never 0.
    pub len_bytes: u32,
    /// See [`allocation_flag`].
    pub flags: u32,
}

/// Describes `range`, not empty and below 4 GiB long, by the ascending parts of it that hold data. Everything else is a hole. The answer never
/// reaches beyond the range; it ends early after `max_extents`.
pub fn describe(range: Range<u64>, data: impl IntoIterator<Item = io::Result<Range<u64>>>, max_extents: usize) -> io::Result<Vec<Extent>> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = range.start;
    let mut push = |to: u64, flags| {
        let to = to.min(range.end);
        if to > at {
            let len_bytes = u32::try_from(to - at).expect("the range is below 4 GiB");
            at = to;
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.len_bytes += len_bytes,
                _ => extents.push(Extent { len_bytes, flags }),
            }
        }
        // One more than wanted tells that the one before it is complete.
        extents.len() <= max_extents
    };
    for data in data {
        let data = data?;
        if !push(data.start, allocation_flag::HOLE | allocation_flag::ZERO) || !push(data.end, 0) {
            break;
        }
    }
    // After an early end this only adds to what is cut off.
    push(range.end, allocation_flag::HOLE | allocation_flag::ZERO);
    extents.truncate(max_extents);
    Ok(extents)
}
