//! Decodes a request and decides what is to be done with it.

use super::reply::Failure;
use crate::nbd::handshake::{Contexts, Replies};
use crate::nbd::wire::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, command, command_flag, take_u16, take_u32, take_u64};
use crate::request::{Access, Durability, MAX_TRANSFER_BYTES, Op, Request, RequestError, Space};
use crate::store::PAGE_BYTES;

/// Length of the longest request without its data.
pub const MAX_REQUEST_HEADER_BYTES: usize = 32;

/// Longest data of a refused request that is read and thrown away, so that the client learns why. One that announces more is cut off.
const MAX_SKIP_BYTES: u64 = 2 * MAX_TRANSFER_BYTES;

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
    pub len_bytes: u64,
}

/// What a connection has agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Which form requests and replies have.
    pub replies: Replies,
    /// Which metadata is told when asked for.
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
    /// How zeroes may be made.
    pub zeroing: Zeroing,
}

/// How zeroes may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// As well as it goes.
    AnyWay,
    /// Not by writing them: the client would rather hear that there is no faster way.
    Fast,
}

/// What is to be done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Carry it out. Its data follows if it is a write.
    Serve(Order),
    /// Tell what lies in the range, in each context of the session.
    Describe {
        /// The range, checked.
        request: Request,
        /// Most extents of a context.
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
    pub skip_bytes: u64,
}

/// After this the stream cannot be understood any more: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Wrong magic.
    #[error("a request does not begin with its magic number")]
    Magic,
    /// Data above twice the limit.
    #[error("a request announces {0} bytes of data")]
    TooMuchData(u64),
}

impl Replies {
    /// Length of a request without its data.
    pub const fn request_header_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 28,
            Self::Extended => MAX_REQUEST_HEADER_BYTES,
        }
    }
}

impl Command {
    /// Decodes a request from exactly [`Replies::request_header_bytes`] bytes.
    pub fn decode(mut bytes: &[u8], replies: Replies) -> Result<Self, Fault> {
        let magic = if replies == Replies::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        if take_u32(&mut bytes) != Some(magic) {
            return Err(Fault::Magic);
        }
        let mut fields = || {
            let (flags, kind) = (take_u16(&mut bytes)?, take_u16(&mut bytes)?);
            let (cookie, offset) = (take_u64(&mut bytes)?, take_u64(&mut bytes)?);
            let len_bytes = if replies == Replies::Extended { take_u64(&mut bytes)? } else { take_u32(&mut bytes)?.into() };
            Some(Self { flags, kind, cookie, offset, len_bytes })
        };
        Ok(fields().expect("the caller reads a whole header"))
    }

    /// Decides, for a volume of `size_bytes`.
    pub fn plan(&self, session: Session, size_bytes: u64) -> Result<Plan, Fault> {
        let has_data = match session.replies {
            Replies::Extended => self.flags & command_flag::PAYLOAD_LEN != 0,
            Replies::Simple | Replies::Structured => self.kind == command::WRITE,
        };
        let skip_bytes = if has_data { self.len_bytes } else { 0 };
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
        if session.replies == Replies::Extended && self.kind == command::WRITE && !has(command_flag::PAYLOAD_LEN) {
            return Err(Failure::Invalid);
        }
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
        let request = Request { op, offset: self.offset, len_bytes: self.len_bytes };
        let request = request.check(size_bytes, session.access).map_err(|error| self.failure(error))?;
        match self.kind {
            command::FLUSH => {}
            _ if self.len_bytes == 0 => return Err(Failure::Invalid),
            command::BLOCK_STATUS if session.contexts.is_empty() => return Err(Failure::Invalid),
            command::BLOCK_STATUS => {
                let max_extents = if has(command_flag::REQ_ONE) { 1 } else { super::MAX_EXTENTS };
                return Ok(Plan::Describe { request, max_extents });
            }
            _ => {}
        }
        // Without a change there is nothing to make durable.
        let durability = if op.changes() { durability } else { Durability::Cached };
        let zeroing = if has(command_flag::FAST_ZERO) { Zeroing::Fast } else { Zeroing::AnyWay };
        // What sticks out of whole pages is written; and a request that is refused for the rest must have changed nothing.
        if zeroing == Zeroing::Fast && !(self.offset | self.len_bytes).is_multiple_of(PAGE_BYTES) {
            return Err(Failure::NotSupported);
        }
        Ok(Plan::Serve(Order { request, durability, zeroing }))
    }

    /// FUA is allowed everywhere once it was offered, as the protocol has it.
    fn allowed_flags(&self, session: Session) -> u16 {
        command_flag::FUA
            | match self.kind {
                command::READ if session.replies != Replies::Simple => command_flag::DF,
                command::WRITE if session.replies == Replies::Extended => command_flag::PAYLOAD_LEN,
                command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
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
