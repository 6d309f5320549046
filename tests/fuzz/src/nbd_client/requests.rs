//! The client's side of transmission: what it sends.

use super::model::Change;
use super::{Agreed, HungUp, Session};
use arbitrary::Arbitrary;
use blockd::nbd::handshake::Replies;
use blockd::nbd::wire::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, command, command_flag};
use std::collections::BTreeMap;
use std::ops::Range;

/// Requests of a batch; fewer than the server's window.
const MAX_BATCH: usize = 24;
/// Data of a batch in each direction, which fits into sockets and window.
const MAX_BATCH_BYTES: u64 = 512 << 10;

/// A request as the fuzzer wants it.
#[derive(Arbitrary, Debug, Clone)]
pub struct Step {
    kind: u8,
    flags: u8,
    place: Place,
    fill: u8,
}

#[derive(Arbitrary, Debug, Clone)]
enum Place {
    /// Within the volume.
    Inside { at: u32, len: u16 },
    /// Whole pages within it.
    Pages { at: u8, count: u8 },
    /// At its end, and beyond.
    End { back: u16, len: u16 },
    /// Anywhere.
    Anywhere { at: u64, len: u32 },
    /// Longer than a request without extended headers can be.
    Huge { at: u16, len: u64 },
}

/// How the session ends.
#[derive(Arbitrary, Debug)]
pub enum End {
    /// In order.
    Disconnect,
    /// The client hangs up.
    HangUp,
    /// Requests whose answers nobody reads.
    Unread(Vec<Step>),
    /// A part of a request.
    Half(Step, u16),
    /// No request at all.
    Garbage([u8; 32]),
}

/// A request that was sent and not answered.
#[derive(Debug)]
pub(super) struct Sent {
    replies: Replies,
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
    /// Within the volume.
    pub(super) range: Option<Range<usize>>,
    pub(super) change: Option<Change>,
}

impl Step {
    fn sent(&self, size_bytes: u64, replies: Replies) -> Sent {
        let (offset, len_bytes) = match self.place {
            Place::Inside { at, len } => {
                let offset = u64::from(at) % size_bytes;
                (offset, (u64::from(len) + 1).min(size_bytes - offset))
            }
            Place::Pages { at, count } => {
                let offset = u64::from(at) * 4096 % size_bytes;
                (offset, ((u64::from(count % 16) + 1) * 4096).min(size_bytes - offset))
            }
            Place::End { back, len } => (size_bytes.saturating_sub(u64::from(back)), u64::from(len)),
            Place::Anywhere { at, len } => (at, u64::from(len)),
            Place::Huge { at, len } => (u64::from(at), len),
        };
        let len_bytes = if replies == Replies::Extended { len_bytes } else { len_bytes & u64::from(u32::MAX) };
        let kind = if self.kind < 240 { u16::from(self.kind) % 8 } else { u16::from(self.kind) };
        // Disconnecting is an end, and has a place there.
        let kind = if kind == command::DISC { command::READ } else { kind };
        let payload = if replies == Replies::Extended && kind == command::WRITE { command_flag::PAYLOAD_LEN } else { 0 };
        let flags = if self.flags < 200 { u16::from(self.flags) & command_flag::FUA | payload } else { u16::from(self.flags) & 63 };
        let end = offset.checked_add(len_bytes).filter(|end| *end <= size_bytes);
        let range = end.map(|end| offset as usize..end as usize);
        let change = match kind {
            command::WRITE => Some(Change::Fill(self.fill)),
            command::TRIM | command::WRITE_ZEROES => Some(Change::Zero),
            _ => None,
        };
        Sent { replies, kind, flags, offset, len_bytes, range, change }
    }
}

impl Sent {
    fn payload_bytes(&self) -> u64 {
        let has_payload = match self.replies {
            Replies::Extended => self.flags & command_flag::PAYLOAD_LEN != 0,
            Replies::Simple | Replies::Structured => self.kind == command::WRITE,
        };
        if has_payload { self.len_bytes } else { 0 }
    }

    /// Data that goes one way or the other. A read beyond the end is refused, whatever its length.
    fn moved_bytes(&self) -> u64 {
        if self.kind == command::READ && self.range.is_some() { self.len_bytes.max(self.payload_bytes()) } else { self.payload_bytes() }
    }

    fn bytes(&self, cookie: u64) -> Vec<u8> {
        let magic = if self.replies == Replies::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        let head = [&magic.to_be_bytes()[..], &self.flags.to_be_bytes(), &self.kind.to_be_bytes(), &cookie.to_be_bytes()].concat();
        let len = self.len_bytes.to_be_bytes();
        let len = if self.replies == Replies::Extended { &len[..] } else { &len[4..] };
        let mut bytes = [&head[..], &self.offset.to_be_bytes(), len].concat();
        let fill = if let Some(Change::Fill(byte)) = self.change { byte } else { 0 };
        bytes.resize(bytes.len() + self.payload_bytes() as usize, fill);
        bytes
    }

    /// Whether one of the two changes what the other touches.
    fn meets(&self, other: &Self) -> bool {
        let (Some(one), Some(two)) = (&self.range, &other.range) else { return false };
        (self.change.is_some() || other.change.is_some()) && one.start < two.end && two.start < one.end
    }

    /// Whether the protocol leaves no way to refuse it.
    pub(super) fn must_succeed(&self, agreed: &Agreed) -> bool {
        let extended = self.replies == Replies::Extended;
        let (needs, may_have) = match self.kind {
            command::WRITE if extended => (command_flag::PAYLOAD_LEN, command_flag::PAYLOAD_LEN),
            command::READ if self.replies != Replies::Simple => (0, command_flag::DF),
            command::READ | command::WRITE | command::TRIM | command::CACHE | command::FLUSH => (0, 0),
            command::WRITE_ZEROES => (0, command_flag::NO_HOLE),
            command::BLOCK_STATUS if !agreed.contexts.is_empty() => (0, command_flag::REQ_ONE),
            _ => return false,
        };
        let flags_are_right = self.flags & needs == needs && self.flags & !(command_flag::FUA | may_have) == 0;
        flags_are_right && (self.kind == command::FLUSH || (self.range.is_some() && self.len_bytes > 0))
    }
}

impl Session<'_> {
    /// Sends requests and reads all their replies.
    pub(super) fn batch(&mut self, agreed: &Agreed, steps: &[Step]) -> Result<(), HungUp> {
        let sent = self.send_steps(agreed, steps)?;
        self.replies(agreed, sent)
    }

    fn send_steps(&mut self, agreed: &Agreed, steps: &[Step]) -> Result<BTreeMap<u64, Sent>, HungUp> {
        let (mut sent, mut bytes, mut moved_bytes) = (BTreeMap::<u64, Sent>::new(), Vec::new(), 0_u64);
        for (step, number) in steps.iter().take(MAX_BATCH).zip(0_u64..) {
            let request = step.sent(self.served.volume.size_bytes(), agreed.replies);
            let in_the_way = sent.values().any(|other| request.meets(other));
            let with_it = moved_bytes.saturating_add(request.moved_bytes());
            if in_the_way || with_it > MAX_BATCH_BYTES {
                continue;
            }
            moved_bytes = with_it;
            let cookie = number << 32 | u64::from(step.fill);
            bytes.extend(request.bytes(cookie));
            if let (Some(range), Some(change)) = (&request.range, request.change) {
                self.model.begin(range.clone(), change);
            }
            sent.insert(cookie, request);
        }
        self.send(&bytes)?;
        Ok(sent)
    }

    /// Ends the session.
    pub(super) fn end(&mut self, agreed: &Agreed, end: &End) -> Result<(), HungUp> {
        match end {
            End::HangUp => Ok(()),
            End::Disconnect => {
                let disconnect =
                    Sent { replies: agreed.replies, kind: command::DISC, flags: 0, offset: 0, len_bytes: 0, range: None, change: None };
                self.send(&disconnect.bytes(0))?;
                let mut rest = Vec::new();
                std::io::Read::read_to_end(&mut self.stream, &mut rest).map_err(|error| super::judge(&error))?;
                assert!(rest.is_empty(), "nothing is said that was not asked for");
                Ok(())
            }
            End::Unread(steps) => self.send_steps(agreed, steps).map(drop),
            End::Half(step, at) => {
                let request = step.sent(self.served.volume.size_bytes(), agreed.replies);
                if request.payload_bytes() > MAX_BATCH_BYTES {
                    return Ok(());
                }
                let bytes = request.bytes(1);
                self.send(&bytes[..usize::from(*at) % bytes.len()])
            }
            End::Garbage(bytes)
                if ![REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC].map(u32::to_be_bytes).iter().any(|magic| bytes.starts_with(magic)) =>
            {
                self.send(bytes)?;
                Err(self.expect_end())
            }
            End::Garbage(_) => self.batch(agreed, &[]),
        }
    }
}
