//! A chain that was taken from a queue and has not been answered.

use super::chain::{self, Command, Parsed, Segment, Status};
use super::config_space::{CacheMode, MAX_ZEROES_BYTES};
use super::device::Device;
use super::queue::Head;
use super::sys::{Ring, Transfer, Work};
use crate::metrics::RequestOp;
use crate::request::{Durability, Op, Request};
use crate::store::BufferPool;
use crate::volume::Pass;
use std::sync::Arc;
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of the device's name.
const ID_BYTES: usize = virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES as usize;

/// Where a chain's answer goes.
pub(super) struct Chain {
    /// The queue's number within the worker.
    pub(super) queue: usize,
    pub(super) head: Head,
    /// Kept mapped until the answer is written.
    pub(super) memory: Arc<GuestMemoryMmap>,
}

/// See the module's documentation.
pub(super) struct Operation {
    pub(super) chain: Chain,
    status: GuestAddress,
    pub(super) writable_bytes: u32,
    begun: Instant,
    /// The step that is under way, and those after it, the last one first. Each has a pass of its own.
    request: Request,
    later: Vec<Request>,
    /// For the step that is under way, once it was admitted.
    pub(super) pass: Option<Pass>,
    /// Until it is started: the transfer of a read or a write.
    pub(super) work: Option<Work>,
    /// Where the data is, in guest memory.
    pub(super) data: Vec<Segment>,
    /// Size of the detour.
    pub(super) bounce_bytes: u64,
    /// The step's data is in place, and what is under way is the sync that makes it durable.
    pub(super) syncing: bool,
}

impl Operation {
    /// Checks everything about a chain that can be checked now. The data of an unaligned write is copied. An error is what to answer at once,
    /// and not always a bad one.
    pub(super) fn prepare(device: &Device, ring: &mut Ring, pool: &mut BufferPool, chain: Chain, parsed: Parsed) -> Result<Self, Status> {
        let (request, later, data) = match parsed.command? {
            Command::Identify(data) => return Err(identify(&device.volume.name, &chain.memory, &data)),
            Command::Transfer(request, data) => (check(device, request)?, Vec::new(), data),
            Command::Flush => (Request { op: Op::Flush, offset: 0, len_bytes: 0 }, Vec::new(), Vec::new()),
            Command::Change(requests) => {
                let checked = requests.into_iter().rev().map(|request| check(device, request));
                let mut later = checked.collect::<Result<Vec<_>, _>>()?;
                (later.pop().ok_or(Status::IoError)?, later, Vec::new())
            }
        };
        let mut operation = Self {
            chain,
            status: parsed.status,
            writable_bytes: parsed.writable_bytes,
            begun: Instant::now(),
            request,
            later,
            pass: None,
            work: None,
            data,
            bounce_bytes: 0,
            syncing: false,
        };
        if !operation.data.is_empty() {
            operation.prepare_transfer(device.volume.image.align_bytes(), ring, pool)?;
        }
        Ok(operation)
    }

    fn prepare_transfer(&mut self, align_bytes: u64, ring: &mut Ring, pool: &mut BufferPool) -> Result<(), Status> {
        let Request { op, offset, len_bytes } = self.request;
        let direct = Transfer::direct(&self.chain.memory, &self.data, offset, align_bytes, ring.vectors()).map_err(|_| Status::IoError)?;
        let transfer = match direct {
            Some(transfer) => transfer,
            None => {
                let mut buf = pool.take(usize::try_from(len_bytes).map_err(|_| Status::IoError)?);
                if op != Op::Read {
                    each(&self.data, |segment, range| self.chain.memory.read_slice(&mut buf[range], segment.address))?;
                }
                self.bounce_bytes = len_bytes;
                Transfer::bounce(buf, offset)
            }
        };
        self.work = Some(if op == Op::Read { Work::Read(transfer) } else { Work::Write(transfer) });
        Ok(())
    }

    /// The request of this step.
    pub(super) fn request(&self) -> Request {
        self.request
    }

    /// Whether the step that is under way is the last one.
    pub(super) fn is_last(&self) -> bool {
        self.later.is_empty()
    }

    /// Goes on to the next step; `false` if this was the last.
    pub(super) fn advance(&mut self) -> bool {
        let Some(next) = self.later.pop() else { return false };
        self.request = next;
        self.syncing = false;
        true
    }

    /// Whether the step, with its data in place, has to be synced.
    pub(super) fn wants_sync(&self) -> bool {
        !self.syncing && matches!(self.request.op, Op::Write(Durability::Durable) | Op::WriteZeroes(_, Durability::Durable))
    }

    /// Copies what was read by a detour.
    pub(super) fn deliver(&self, content: &[u8]) -> Result<(), Status> {
        each(&self.data, |segment, range| self.chain.memory.write_slice(&content[range], segment.address))
    }

    /// Writes the status byte.
    pub(super) fn answer(&self, device: &Device, status: Status) {
        chain::answer(&self.chain.memory, self.status, status);
        // All steps of one operation are of a kind.
        if status == Status::Ok
            && let Some(op) = RequestOp::of(self.request.op)
        {
            device.metrics.observe_request(op, self.begun.elapsed());
        }
    }
}

/// Calls `with` for each segment and the part of the transfer that it holds.
fn each<E>(segments: &[Segment], mut with: impl FnMut(&Segment, std::ops::Range<usize>) -> Result<(), E>) -> Result<(), Status> {
    let mut at = 0;
    for segment in segments {
        let end = at + segment.len_bytes as usize;
        with(segment, at..end).map_err(|_| Status::IoError)?;
        at = end;
    }
    Ok(())
}

fn check(device: &Device, request: Request) -> Result<Request, Status> {
    let refused = |why: &dyn std::fmt::Display| {
        tracing::debug!(volume = device.volume.name, ?request, %why, "vhost-user: a request was refused");
        Status::IoError
    };
    let request = request.check(device.volume.size_bytes(), device.access).map_err(|error| refused(&error))?;
    if !request.op.moves_data() && request.len_bytes > MAX_ZEROES_BYTES {
        return Err(refused(&"more zeroes than the device takes at once"));
    }
    if !(request.offset | request.len_bytes).is_multiple_of(device.block_bytes()) {
        return Err(refused(&"not aligned to the device's block size"));
    }
    if device.cache() == CacheMode::WriteBack {
        return Ok(request);
    }
    let op = match request.op {
        Op::Write(_) => Op::Write(Durability::Durable),
        Op::WriteZeroes(space, _) => Op::WriteZeroes(space, Durability::Durable),
        op => op,
    };
    Ok(Request { op, ..request })
}

/// Writes the device's name, which fills its field or ends with a zero.
fn identify(name: &str, memory: &GuestMemoryMmap, data: &[Segment]) -> Status {
    let mut id = [0; ID_BYTES];
    let len = name.len().min(ID_BYTES);
    id[..len].copy_from_slice(&name.as_bytes()[..len]);
    let mut left = &id[..];
    for segment in data {
        let (part, rest) = left.split_at(left.len().min(segment.len_bytes as usize));
        if memory.write_slice(part, segment.address).is_err() {
            return Status::IoError;
        }
        left = rest;
    }
    Status::Ok
}
