//! A descriptor chain's meaning: header, data, status byte.
//!
//! ```text
//!   readable:  │ type (4) reserved (4) sector (8) │ data to write, or segments of zeroes (16 each) │
//!   writable:  │ data that is read │ status (1) │
//! ```
//!
//! The guest is not trusted: chains may loop, end nowhere, point outside of memory or be 4 GiB long. Whatever a chain looks like, parsing
//! takes a bounded number of steps and bytes, and ends in a request, in a status to answer, or in the finding that there is no place for one.
//! Neither ranges nor data addresses are checked here: [`Request::check`] and the transfer do that.

use crate::request::{Durability, Op, Request, SECTOR_BYTES, Space};
use virtio_bindings::virtio_blk as blk;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// Data descriptors that a request may have: what one vectored transfer takes. A guest is told fewer.
pub const MAX_SEGMENTS: usize = 1024;
/// Ranges of one discard.
pub const MAX_DISCARD_SEGMENTS: usize = 16;
/// Ranges of one write of zeroes: a single one, so that it is admitted as a whole or not at all.
pub const MAX_WRITE_ZEROES_SEGMENTS: usize = 1;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// A part of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub address: GuestAddress,
    /// Its length.
    pub len_bytes: u32,
}

/// What the guest finds in the status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = blk::VIRTIO_BLK_S_OK as u8,
    /// Failed, or refused.
    IoError = blk::VIRTIO_BLK_S_IOERR as u8,
    /// Not known here.
    Unsupported = blk::VIRTIO_BLK_S_UNSUPP as u8,
}

/// What a chain asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A transfer between the volume and the segments, which are in the right direction and not empty.
    Transfer(Request, Vec<Segment>),
    /// Make every completed write durable.
    Flush,
    /// Requests without data, to be carried out one after the other.
    Change(Vec<Request>),
    /// The device's name, into the segments.
    Identify(Vec<Segment>),
}

/// A chain that has a status byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Where the status byte is, in guest memory.
    pub status: GuestAddress,
    /// Bytes that the chain has to be written to, with the status byte.
    pub writable_bytes: u32,
    /// What it asks for, or what to answer.
    pub command: Result<Command, Status>,
}

/// A chain without a place for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoStatus;

/// Lists of segments for later, so that a chain costs no allocation.
#[derive(Debug, Default)]
pub struct Spares(Vec<Vec<Segment>>);

impl Spares {
    /// Longest list that is kept, and most of them.
    const MOST: usize = 1024;

    fn take(&mut self) -> Vec<Segment> {
        self.0.pop().unwrap_or_default()
    }

    /// Gives back the segments of a command.
    pub fn give(&mut self, mut segments: Vec<Segment>) {
        segments.clear();
        if segments.capacity() > 0 && segments.capacity() <= Self::MOST && self.0.len() < Self::MOST {
            self.0.push(segments);
        }
    }
}

/// Says what a chain means. Writes become [`Durability::Cached`] ones.
pub fn parse(memory: &GuestMemoryMmap, chain: impl Iterator<Item = Descriptor>, spares: &mut Spares) -> Result<Parsed, NoStatus> {
    let mut parts = Parts { readable: spares.take(), writable: spares.take(), disorderly: false };
    let parsed = parts.collect(chain).and_then(|()| parts.parse(memory));
    spares.give(parts.readable);
    spares.give(parts.writable);
    parsed
}

/// Writes the status byte of a chain that was parsed with the same memory.
pub fn answer(memory: &GuestMemoryMmap, at: GuestAddress, status: Status) {
    // It cannot fail: parsing has looked whether the byte is in memory.
    let _ = memory.write_obj(status as u8, at);
}

/// A chain's descriptors by direction, without empty ones.
struct Parts {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    /// Too many descriptors, or a readable one behind a writable one.
    disorderly: bool,
}

impl Parts {
    fn collect(&mut self, chain: impl Iterator<Item = Descriptor>) -> Result<(), NoStatus> {
        let mut open = true;
        for descriptor in chain {
            // Whoever ends without an end is a loop, or leads out of the table.
            open = descriptor.has_next();
            if descriptor.len() == 0 {
                continue;
            }
            let segment = Segment { address: descriptor.addr(), len_bytes: descriptor.len() };
            self.disorderly |= !descriptor.is_write_only() && !self.writable.is_empty();
            let list = if descriptor.is_write_only() { &mut self.writable } else { &mut self.readable };
            // One more for the header or the status. What is too long is refused, but its last byte is the status all the same.
            if list.len() > MAX_SEGMENTS {
                self.disorderly = true;
                list.pop();
            }
            list.push(segment);
        }
        if open { Err(NoStatus) } else { Ok(()) }
    }

    fn parse(&mut self, memory: &GuestMemoryMmap) -> Result<Parsed, NoStatus> {
        let status = self.take_status().filter(|status| memory.check_range(*status, 1, Permissions::Write)).ok_or(NoStatus)?;
        let writable_bytes = u32::try_from(total(&self.writable) + 1).map_err(|_| NoStatus)?;
        Ok(Parsed { status, writable_bytes, command: self.command(memory) })
    }

    fn take_status(&mut self) -> Option<GuestAddress> {
        let last = self.writable.last_mut()?;
        last.len_bytes -= 1;
        let status = last.address.checked_add(u64::from(last.len_bytes))?;
        if last.len_bytes == 0 {
            self.writable.pop();
        }
        Some(status)
    }

    fn command(&mut self, memory: &GuestMemoryMmap) -> Result<Command, Status> {
        if self.disorderly {
            return Err(Status::IoError);
        }
        let mut header = [0; HEADER_BYTES];
        self.read(memory, &mut header)?;
        let kind = u32::from_le_bytes(field(&header, 0));
        let sector = u64::from_le_bytes(field(&header, 8));
        match kind {
            blk::VIRTIO_BLK_T_IN => self.transfer(Op::Read, sector),
            blk::VIRTIO_BLK_T_OUT => self.transfer(Op::Write(Durability::Cached), sector),
            blk::VIRTIO_BLK_T_FLUSH => Ok(Command::Flush),
            blk::VIRTIO_BLK_T_GET_ID => Ok(Command::Identify(std::mem::take(&mut self.writable))),
            blk::VIRTIO_BLK_T_DISCARD => self.ranges(memory, MAX_DISCARD_SEGMENTS, |flags| (flags == 0).then_some(Op::Discard)),
            blk::VIRTIO_BLK_T_WRITE_ZEROES => self.ranges(memory, MAX_WRITE_ZEROES_SEGMENTS, |flags| match flags {
                0 => Some(Op::WriteZeroes(Space::Keep, Durability::Cached)),
                blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => Some(Op::WriteZeroes(Space::MayFree, Durability::Cached)),
                _ => None,
            }),
            _ => Err(Status::Unsupported),
        }
    }

    fn transfer(&mut self, op: Op, sector: u64) -> Result<Command, Status> {
        let (data, other) = if op == Op::Read { (&mut self.writable, &self.readable) } else { (&mut self.readable, &self.writable) };
        let len_bytes = total(data);
        if !other.is_empty() || data.is_empty() || !len_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Status::IoError);
        }
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
        Ok(Command::Transfer(Request { op, offset, len_bytes }, std::mem::take(data)))
    }

    fn ranges(&mut self, memory: &GuestMemoryMmap, max_ranges: usize, op: impl Fn(u32) -> Option<Op>) -> Result<Command, Status> {
        let len_bytes = total(&self.readable);
        if len_bytes == 0 || !len_bytes.is_multiple_of(RANGE_BYTES as u64) || len_bytes > (max_ranges * RANGE_BYTES) as u64 {
            return Err(Status::IoError);
        }
        let mut bytes = vec![0; len_bytes as usize];
        self.read(memory, &mut bytes)?;
        let mut requests = Vec::with_capacity(bytes.len() / RANGE_BYTES);
        for range in bytes.as_chunks::<RANGE_BYTES>().0 {
            let op = op(u32::from_le_bytes(field(range, 12))).ok_or(Status::Unsupported)?;
            let offset = u64::from_le_bytes(field(range, 0)).checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
            let len_bytes = u64::from(u32::from_le_bytes(field(range, 8))) * SECTOR_BYTES;
            requests.push(Request { op, offset, len_bytes });
        }
        Ok(Command::Change(requests))
    }

    /// Fills `content` from the front of what is readable, wherever its descriptors are cut.
    fn read(&mut self, memory: &GuestMemoryMmap, content: &mut [u8]) -> Result<(), Status> {
        let mut filled = 0;
        while filled < content.len() {
            let first = self.readable.first_mut().ok_or(Status::IoError)?;
            let len = (content.len() - filled).min(first.len_bytes as usize);
            memory.read_slice(&mut content[filled..filled + len], first.address).map_err(|_| Status::IoError)?;
            filled += len;
            first.len_bytes -= len as u32;
            if first.len_bytes == 0 {
                self.readable.remove(0);
            } else {
                first.address = first.address.checked_add(len as u64).ok_or(Status::IoError)?;
            }
        }
        Ok(())
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len_bytes)).sum()
}

/// The `N` bytes at `at`, which the callers know to be there.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests;
