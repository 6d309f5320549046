//! A request that was begun and has not been answered.

use crate::metrics::RequestOp;
use crate::nbd::edges::Hold;
use crate::nbd::transmission::{Command, Order};
use crate::request::{Durability, Op, Request, Space};
use crate::store::{AlignedBuf, PAGE_BYTES};
use crate::volume::Pass;
use std::ops::Range;
use std::time::Instant;

/// Zeroes of one admission: a write that waits for another must not hold up a whole disk.
const ZERO_BYTES: u64 = 64 << 20;

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// A change, a read, or a flush.
    Serve(Order),
    /// To be told what lies in the range, in that many extents at most.
    Describe(usize),
}

/// How far an admitted part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Before the first transfer.
    Begun,
    /// What lies before the data in its first sector is read.
    Head,
    /// What lies behind it in its last one.
    Tail,
    /// The data is moved.
    Data,
    /// It is made durable.
    Sync,
}

/// See the module's documentation.
pub(super) struct Operation {
    pub(super) connection: usize,
    pub(super) command: Command,
    pub(super) task: Task,
    pub(super) begun: Instant,
    /// Room that it takes in the window.
    pub(super) window_bytes: u64,
    /// What is admitted at once: all of it, unless it makes zeroes.
    pub(super) part: Request,
    pub(super) pass: Option<Pass>,
    pub(super) hold: Option<Hold>,
    pub(super) stage: Stage,
    /// For the data; away while the ring has it.
    pub(super) buf: Option<AlignedBuf>,
    /// Where the data lies in it.
    pub(super) data: Range<usize>,
    /// Data of a write that was received.
    pub(super) received_bytes: usize,
}

impl Operation {
    pub(super) fn new(connection: usize, command: Command, task: Task, request: Request, window_bytes: u64, begun: Instant) -> Self {
        let part = match request.op {
            Op::Discard | Op::WriteZeroes(..) => first_zeroes(request),
            _ => request,
        };
        Self {
            connection,
            command,
            task,
            begun,
            window_bytes,
            part,
            pass: None,
            hold: None,
            stage: Stage::Begun,
            buf: None,
            data: 0..0,
            received_bytes: 0,
        }
    }

    /// Goes on to what comes after the part that is done; `false` if that was all.
    pub(super) fn advance(&mut self) -> bool {
        let Task::Serve(Order { request, durability, .. }) = self.task else { return false };
        let (at, end) = (self.part.offset + self.part.len_bytes, request.offset + request.len_bytes);
        match request.op {
            _ if self.part.op == Op::Flush => return false,
            Op::Discard | Op::WriteZeroes(..) if at < end => {
                self.part = first_zeroes(Request { op: request.op, offset: at, len_bytes: end - at });
            }
            Op::Discard | Op::WriteZeroes(..) if durability == Durability::Durable => {
                self.part = Request { op: Op::Flush, offset: 0, len_bytes: 0 };
            }
            _ => return false,
        }
        self.stage = Stage::Begun;
        true
    }

    /// How zeroes of whole pages are made; `None` for what is written from the buffer.
    pub(super) fn zeroes(&self) -> Option<Space> {
        let whole = (self.part.offset | self.part.len_bytes).is_multiple_of(PAGE_BYTES);
        match self.part.op {
            Op::Discard if whole => Some(Space::MayFree),
            Op::WriteZeroes(space, _) if whole => Some(space),
            _ => None,
        }
    }

    /// Whether a write of the part, with its data in place, has to be made durable by itself.
    pub(super) fn wants_sync(&self) -> bool {
        self.part.op == Op::Write(Durability::Durable)
    }

    /// As what it is measured.
    pub(super) fn observed(&self) -> Option<RequestOp> {
        let Task::Serve(order) = self.task else { return None };
        RequestOp::of(order.request.op)
    }
}

/// The first part of a range of zeroes: up to the next page boundary, or as many whole pages as are done at once. Whole pages are made by
/// the file system's means, what sticks out is written.
fn first_zeroes(request: Request) -> Request {
    let Request { op, offset, len_bytes } = request;
    let end = offset + len_bytes;
    let page_end = end / PAGE_BYTES * PAGE_BYTES;
    let to = if offset.is_multiple_of(PAGE_BYTES) && offset < page_end {
        page_end.min(offset.saturating_add(ZERO_BYTES))
    } else {
        end.min((offset / PAGE_BYTES + 1) * PAGE_BYTES)
    };
    Request { op, offset, len_bytes: to - offset }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_cut_into_whole_pages_and_what_sticks_out() {
        let next = |part: Request, end: u64| {
            let at = part.offset + part.len_bytes;
            (at < end).then(|| first_zeroes(Request { offset: at, len_bytes: end - at, ..part }))
        };
        let parts = |offset: u64, len_bytes: u64| {
            let first = first_zeroes(Request { op: Op::Discard, offset, len_bytes });
            std::iter::successors(Some(first), |part| next(*part, offset + len_bytes)).map(|part| part.offset).collect::<Vec<_>>()
        };
        assert_eq!(parts(0, 8192), [0]);
        assert_eq!(parts(1, 10), [1]);
        assert_eq!(parts(4095, 2), [4095, 4096]);
        assert_eq!(parts(512, 12288), [512, 4096, 12288]);
        assert_eq!(parts(4096, 2 * ZERO_BYTES + 1), [4096, 4096 + ZERO_BYTES, 4096 + 2 * ZERO_BYTES]);
    }
}
