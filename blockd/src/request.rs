//! A client's request, whichever protocol it came by, and the one place where it is checked.
//!
//! Front ends translate their wire formats into a [`Request`] once; nothing behind [`Request::check`] looks at a raw offset again.

use replicator_engine::block::Run;

/// Smallest unit that a front end lets through to the image: what direct I/O needs.
pub const SECTOR_BYTES: u64 = 512;

/// Most bytes that one read or write moves.
pub const MAX_TRANSFER_BYTES: u64 = 32 << 20;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read data.
    Read,
    /// Write data.
    Write(Durability),
    /// Make every completed write durable.
    Flush,
    /// The content is no longer needed; it reads as zeroes from now on.
    Discard,
    /// Write zeroes.
    WriteZeroes(Space, Durability),
    /// Read ahead into a cache: nothing a direct store can do, and no error.
    Cache,
}

/// What a write's completion promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The write may be lost with the power until a flush.
    Cached,
    /// The write is on stable storage (FUA).
    Durable,
}

/// Whether zeroes may free the space that they cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Holes are welcome.
    MayFree,
    /// The space stays allocated.
    Keep,
}

/// A client's request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len_bytes: u64,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It reaches beyond the end of the volume.
    #[error("the range reaches beyond the end of the volume")]
    BeyondEnd,
    /// It is larger than [`MAX_TRANSFER_BYTES`].
    #[error("the request is larger than {MAX_TRANSFER_BYTES} bytes")]
    TooLarge,
    /// It is not aligned to [`SECTOR_BYTES`].
    #[error("the range is not aligned to {SECTOR_BYTES} bytes")]
    Unaligned,
    /// It would change a read-only export.
    #[error("the export is read-only")]
    ReadOnly,
}

/// What a front end lets a client do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Reads and flushes.
    ReadOnly,
}

impl Op {
    /// Whether the operation changes the volume's content.
    pub fn changes(self) -> bool {
        matches!(self, Op::Write(_) | Op::Discard | Op::WriteZeroes(..))
    }

    /// Whether data travels with the operation.
    pub fn moves_data(self) -> bool {
        matches!(self, Op::Read | Op::Write(_))
    }
}

impl Request {
    /// Checks the request against a volume of `size_bytes`. An aligned request that passes can be handed to the image as it is.
    pub fn check(self, size_bytes: u64, access: Access) -> Result<Self, RequestError> {
        if self.op.changes() && access == Access::ReadOnly {
            return Err(RequestError::ReadOnly);
        }
        if self.op == Op::Flush {
            return Ok(Self { offset: 0, len_bytes: 0, ..self });
        }
        if self.op.moves_data() && self.len_bytes > MAX_TRANSFER_BYTES {
            return Err(RequestError::TooLarge);
        }
        match self.offset.checked_add(self.len_bytes) {
            Some(end) if end <= size_bytes => Ok(self),
            _ => Err(RequestError::BeyondEnd),
        }
    }

    /// Whether direct I/O can serve the request as it is.
    pub fn is_aligned(self) -> bool {
        (self.offset | self.len_bytes).is_multiple_of(SECTOR_BYTES)
    }

    /// The blocks that the request changes; `None` if it changes none.
    pub fn changed_run(self) -> Option<Run> {
        if self.op.changes() { Run::covering(self.offset, self.len_bytes) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(op: Op, offset: u64, len_bytes: u64) -> Result<Request, RequestError> {
        Request { op, offset, len_bytes }.check(1 << 20, Access::ReadWrite)
    }

    #[test]
    fn a_range_may_end_at_the_end_and_not_after_it() {
        assert!(check(Op::Read, (1 << 20) - 512, 512).is_ok());
        assert_eq!(check(Op::Read, (1 << 20) - 512, 513), Err(RequestError::BeyondEnd));
        assert_eq!(check(Op::Discard, u64::MAX, 2), Err(RequestError::BeyondEnd));
    }

    #[test]
    fn transfers_have_a_limit_and_zeroes_have_none() {
        let check = |op, len_bytes| Request { op, offset: 0, len_bytes }.check(1 << 40, Access::ReadWrite);
        assert!(check(Op::Read, MAX_TRANSFER_BYTES).is_ok());
        assert_eq!(check(Op::Read, MAX_TRANSFER_BYTES + 1), Err(RequestError::TooLarge));
        assert!(check(Op::WriteZeroes(Space::MayFree, Durability::Cached), 1 << 40).is_ok());
    }

    #[test]
    fn a_read_only_export_takes_no_change() {
        let request = Request { op: Op::Discard, offset: 0, len_bytes: 512 };
        assert_eq!(request.check(1 << 20, Access::ReadOnly), Err(RequestError::ReadOnly));
    }
}
