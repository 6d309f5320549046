//! Decodes a request and decides what is to be done with it.

use super::reply::Failure;
use crate::nbd::handshake::{Contexts, Replies};
use crate::nbd::wire::{REQUEST_MAGIC, command, command_flag};
use crate::request::{Access, Durability, MAX_TRANSFER_BYTES, Op, Request, RequestError, Space};

/// Length of a request without its data.
pub const HEADER_BYTES: usize = 28;

/// Longest data of a refused write that is read and thrown away, so that the client learns why. One that announces more is cut off.
const MAX_SKIP_BYTES: u32 = 2 * MAX_TRANSFER_BYTES as u32;

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Flags, see [`command_flag`].
    pub flags: u16,
    /// Type, see [`command`].
    pub kind: u16,
    /// The client's name for the request.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len_bytes: u32,
}

/// What a connection has agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// How reads are answered.
    pub replies: Replies,
    /// Which metadata may be asked for.
    pub contexts: Contexts,
    /// Whether changes are allowed.
    pub access: Access,
}

/// A checked request, and whether a flush belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// What to do.
    pub request: Request,
    /// Whether the change must be durable when it is answered.
    pub durability: Durability,
}

/// What is to be done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Carry it out. Its data follows if it is a write.
    Serve(Order),
    /// Tell what lies in the range.
    Describe {
        /// The range, checked.
        request: Request,
        /// Most extents of the answer.
        max_extents: usize,
    },
    /// Answer with an error after throwing away its data.
    Refuse(Refusal),
    /// Complete what is under way, and close.
    Disconnect,
}

/// An error for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub failure: Failure,
    /// Bytes of data to be thrown away.
    pub skip_bytes: u32,
}

/// After this the stream cannot be understood any more: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Wrong magic.
    #[error("a request does not begin with its magic number")]
    Magic,
    /// A write above twice the limit.
    #[error("a write announces {0} bytes of data")]
    TooMuchData(u32),
}

impl Command {
    /// Decodes a request.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Fault> {
        let field = |at: usize, len: usize| bytes[at..at + len].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        if field(0, 4) != u64::from(REQUEST_MAGIC) {
            return Err(Fault::Magic);
        }
        let (flags, kind, len_bytes) = (field(4, 2) as u16, field(6, 2) as u16, field(24, 4) as u32);
        Ok(Self { flags, kind, cookie: field(8, 8), offset: field(16, 8), len_bytes })
    }

    /// Decides, for a volume of `size_bytes`.
    pub fn plan(&self, session: Session, size_bytes: u64) -> Result<Plan, Fault> {
        let skip_bytes = if self.kind == command::WRITE { self.len_bytes } else { 0 };
        if skip_bytes > MAX_SKIP_BYTES {
            return Err(Fault::TooMuchData(skip_bytes));
        }
        if self.kind == command::DISC {
            return Ok(Plan::Disconnect);
        }
        Ok(self.check(session, size_bytes).unwrap_or_else(|failure| Plan::Refuse(Refusal { failure, skip_bytes })))
    }

    fn check(&self, session: Session, size_bytes: u64) -> Result<Plan, Failure> {
        if self.flags & !self.allowed_flags(session) != 0 {
            return Err(Failure::Invalid);
        }
        let has = |flag| self.flags & flag != 0;
        let durability = if has(command_flag::FUA) { Durability::Durable } else { Durability::Cached };
        let op = match self.kind {
            command::READ => Op::Read,
            command::WRITE => Op::Write(durability),
            command::FLUSH => Op::Flush,
            command::TRIM => Op::Discard,
            command::WRITE_ZEROES if has(command_flag::NO_HOLE) => Op::WriteZeroes(Space::Keep, durability),
            command::WRITE_ZEROES => Op::WriteZeroes(Space::MayFree, durability),
            // To look at a range is no more than to read ahead in it.
            command::CACHE | command::BLOCK_STATUS => Op::Cache,
            _ => return Err(Failure::Invalid),
        };
        let request = Request { op, offset: self.offset, len_bytes: u64::from(self.len_bytes) };
        let request = request.check(size_bytes, session.access).map_err(|error| self.failure(error))?;
        match self.kind {
            command::FLUSH => {}
            _ if self.len_bytes == 0 => return Err(Failure::Invalid),
            command::BLOCK_STATUS if session.contexts == Contexts::None => return Err(Failure::Invalid),
            command::BLOCK_STATUS => {
                let max_extents = if has(command_flag::REQ_ONE) { 1 } else { super::MAX_EXTENTS };
                return Ok(Plan::Describe { request, max_extents });
            }
            _ => {}
        }
        // Without a change there is nothing to make durable.
        let durability = if op.changes() { durability } else { Durability::Cached };
        Ok(Plan::Serve(Order { request, durability }))
    }

    /// Whether its reply carries data, so that it has the negotiated form even if it is an error.
    pub fn wants_data(&self) -> bool {
        self.kind == command::READ || self.kind == command::BLOCK_STATUS
    }

    /// FUA is allowed everywhere once it was offered, as the protocol has it.
    fn allowed_flags(&self, session: Session) -> u16 {
        command_flag::FUA
            | match self.kind {
                command::READ if session.replies == Replies::Structured => command_flag::DF,
                command::WRITE_ZEROES => command_flag::NO_HOLE,
                command::BLOCK_STATUS => command_flag::REQ_ONE,
                _ => 0,
            }
    }

    fn failure(&self, error: RequestError) -> Failure {
        match error {
            RequestError::ReadOnly => Failure::NotPermitted,
            RequestError::BeyondEnd if self.kind == command::WRITE || self.kind == command::WRITE_ZEROES => Failure::NoSpace,
            RequestError::TooLarge if self.flags & command_flag::DF != 0 => Failure::Overflow,
            RequestError::BeyondEnd | RequestError::TooLarge | RequestError::Unaligned => Failure::Invalid,
        }
    }
}
