//! Encodes replies. A reply is a short header, encoded here, and for reads the data, which the caller sends from where it lies.

use super::{Command, Extent};
use crate::nbd::handshake::{Context, Replies};
use crate::nbd::wire::{CHUNK_MAGIC, EXTENDED_CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, chunk, command};
use std::io;

/// Longest header of a reply that is followed by data.
pub const MAX_HEADER_BYTES: usize = 40;

/// The errors that the protocol knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Failure {
    /// EPERM: the export is read-only.
    NotPermitted = 1,
    /// EIO: the disk failed, or may not be used any more.
    Io = 5,
    /// ENOMEM.
    NoMemory = 12,
    /// EINVAL: the request makes no sense.
    Invalid = 22,
    /// ENOSPC: beyond the end, or no room in the file system.
    NoSpace = 28,
    /// EOVERFLOW: too large for one chunk.
    Overflow = 75,
    /// ENOTSUP: zeroes cannot be made faster than by writing them.
    NotSupported = 95,
}

/// The header of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; MAX_HEADER_BYTES],
    len_bytes: usize,
}

impl Header {
    fn new(parts: &[&[u8]]) -> Self {
        let mut header = Self { bytes: [0; MAX_HEADER_BYTES], len_bytes: 0 };
        for part in parts {
            header.bytes[header.len_bytes..][..part.len()].copy_from_slice(part);
            header.len_bytes += part.len();
        }
        header
    }

    /// The encoded header.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len_bytes]
    }
}

impl From<&io::Error> for Failure {
    /// What the client is told of a failed operation on the image.
    fn from(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace,
            Some(libc::EPERM | libc::EROFS) => Self::NotPermitted,
            Some(libc::ENOMEM) => Self::NoMemory,
            Some(libc::EOPNOTSUPP) => Self::NotSupported,
            // Not of the image's own file system.
            None if error.kind() == io::ErrorKind::StorageFull => Self::NoSpace,
            _ => Self::Io,
        }
    }
}

/// The whole reply to a request without data that was done.
pub fn done(command: &Command, replies: Replies) -> Header {
    match replies {
        Replies::Simple | Replies::Structured => simple(command, 0),
        Replies::Extended => Chunk { kind: chunk::NONE, flags: chunk::DONE, len_bytes: 0 }.head(command, replies),
    }
}

/// The whole reply to a request that failed.
pub fn failure(command: &Command, failure: Failure, replies: Replies) -> Header {
    let wants_data = command.kind == command::READ || command.kind == command::BLOCK_STATUS;
    if replies == Replies::Simple || (replies == Replies::Structured && !wants_data) {
        return simple(command, failure as u32);
    }
    // An error chunk may carry a message; the number says it all.
    let no_message = 0_u16.to_be_bytes();
    let head = Chunk { kind: chunk::ERROR, flags: chunk::DONE, len_bytes: 6 }.head(command, replies);
    Header::new(&[head.as_bytes(), &(failure as u32).to_be_bytes(), &no_message])
}

/// What precedes the data of a read.
pub fn read(command: &Command, replies: Replies) -> Header {
    if replies == Replies::Simple {
        return simple(command, 0);
    }
    let head = Chunk { kind: chunk::OFFSET_DATA, flags: chunk::DONE, len_bytes: command.len_bytes + 8 }.head(command, replies);
    Header::new(&[head.as_bytes(), &command.offset.to_be_bytes()])
}

/// The whole reply to a block status: a chunk for each context.
pub fn block_status(command: &Command, statuses: &[(Context, Vec<Extent>)], replies: Replies) -> Vec<u8> {
    let mut reply = Vec::new();
    for (at, (context, extents)) in statuses.iter().enumerate() {
        let flags = if at + 1 == statuses.len() { chunk::DONE } else { 0 };
        let count = extents.len() as u64;
        if replies == Replies::Extended {
            let chunk = Chunk { kind: chunk::BLOCK_STATUS_EXT, flags, len_bytes: 8 + 16 * count };
            reply.extend_from_slice(chunk.head(command, replies).as_bytes());
            reply.extend(context.id().to_be_bytes());
            reply.extend((count as u32).to_be_bytes());
            extents.iter().for_each(|extent| reply.extend([extent.len_bytes, extent.flags.into()].map(u64::to_be_bytes).as_flattened()));
        } else {
            let chunk = Chunk { kind: chunk::BLOCK_STATUS, flags, len_bytes: 4 + 8 * count };
            reply.extend_from_slice(chunk.head(command, replies).as_bytes());
            reply.extend(context.id().to_be_bytes());
            // A request without extended headers is below 4 GiB, and so is what describes it.
            let len = |extent: &Extent| u32::try_from(extent.len_bytes).expect("no longer than the request");
            extents.iter().for_each(|extent| reply.extend([len(extent), extent.flags].map(u32::to_be_bytes).as_flattened()));
        }
    }
    reply
}

fn simple(command: &Command, error: u32) -> Header {
    Header::new(&[&SIMPLE_REPLY_MAGIC.to_be_bytes(), &error.to_be_bytes(), &command.cookie.to_be_bytes()])
}

/// A chunk of a reply, without what it carries.
struct Chunk {
    kind: u16,
    flags: u16,
    len_bytes: u64,
}

impl Chunk {
    fn head(&self, command: &Command, replies: Replies) -> Header {
        let (flags, kind, cookie) = (self.flags.to_be_bytes(), self.kind.to_be_bytes(), command.cookie.to_be_bytes());
        if replies == Replies::Extended {
            let (magic, offset) = (EXTENDED_CHUNK_MAGIC.to_be_bytes(), command.offset.to_be_bytes());
            return Header::new(&[&magic, &flags, &kind, &cookie, &offset, &self.len_bytes.to_be_bytes()]);
        }
        let len_bytes = u32::try_from(self.len_bytes).expect("our own chunks are short");
        Header::new(&[&CHUNK_MAGIC.to_be_bytes(), &flags, &kind, &cookie, &len_bytes.to_be_bytes()])
    }
}
