//! Encodes replies. A reply is a short header, encoded here, and for reads the data, which the caller sends from where it lies.

use super::Extent;
use crate::nbd::handshake::Replies;
use crate::nbd::wire::{BASE_ALLOCATION_ID, CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, chunk};
use std::io;

/// Longest header of a reply that is followed by data.
pub const MAX_HEADER_BYTES: usize = 28;

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
            // Not of the image's own file system.
            None if error.kind() == io::ErrorKind::StorageFull => Self::NoSpace,
            _ => Self::Io,
        }
    }
}

/// The whole reply to a request without data that was done.
pub fn done(cookie: u64) -> Header {
    simple(cookie, 0)
}

/// The whole reply to a request that failed. `data_expected` is how the connection's reads are answered if this was one, or a block status.
pub fn failure(cookie: u64, failure: Failure, data_expected: Option<Replies>) -> Header {
    match data_expected {
        // An error chunk may carry a message; the number says it all.
        Some(Replies::Structured) => {
            let no_message = 0_u16.to_be_bytes();
            let head = chunk_head(chunk::ERROR, cookie, 6);
            Header::new(&[&head, &(failure as u32).to_be_bytes(), &no_message])
        }
        Some(Replies::Simple) | None => simple(cookie, failure as u32),
    }
}

/// What precedes the data of a read at `offset`.
pub fn read(cookie: u64, offset: u64, len_bytes: u32, replies: Replies) -> Header {
    match replies {
        Replies::Simple => done(cookie),
        Replies::Structured => Header::new(&[&chunk_head(chunk::OFFSET_DATA, cookie, len_bytes + 8), &offset.to_be_bytes()]),
    }
}

/// The whole reply to a block status.
pub fn block_status(cookie: u64, extents: &[Extent]) -> Vec<u8> {
    let len_bytes = 4 + 8 * u32::try_from(extents.len()).expect("the number of extents is limited");
    let mut reply = chunk_head(chunk::BLOCK_STATUS, cookie, len_bytes).to_vec();
    reply.extend(BASE_ALLOCATION_ID.to_be_bytes());
    for extent in extents {
        reply.extend(extent.len_bytes.to_be_bytes());
        reply.extend(extent.flags.to_be_bytes());
    }
    reply
}

fn simple(cookie: u64, error: u32) -> Header {
    Header::new(&[&SIMPLE_REPLY_MAGIC.to_be_bytes(), &error.to_be_bytes(), &cookie.to_be_bytes()])
}

/// The head of the only chunk of a reply.
fn chunk_head(kind: u16, cookie: u64, len_bytes: u32) -> [u8; 20] {
    let mut head = [0; 20];
    head[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    head[4..6].copy_from_slice(&chunk::DONE.to_be_bytes());
    head[6..8].copy_from_slice(&kind.to_be_bytes());
    head[8..16].copy_from_slice(&cookie.to_be_bytes());
    head[16..].copy_from_slice(&len_bytes.to_be_bytes());
    head
}
