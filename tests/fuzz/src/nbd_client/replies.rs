//! The client's side of transmission: what it gets.

use super::requests::Sent;
use super::{Agreed, HungUp, Session};
use blockd::nbd::handshake::Replies;
use blockd::nbd::transmission::MAX_EXTENTS;
use blockd::nbd::wire::{CHUNK_MAGIC, EXTENDED_CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, chunk, command, command_flag};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A request, and what came of its answer so far.
struct Answered {
    request: Sent,
    /// Data that was read.
    read: Vec<Range<u64>>,
    /// Contexts that were told.
    told: BTreeSet<u32>,
}

impl Session<'_> {
    /// Reads the replies to all requests.
    pub(super) fn replies(&mut self, agreed: &Agreed, sent: BTreeMap<u64, Sent>) -> Result<(), HungUp> {
        let fresh = |request| Answered { request, read: Vec::new(), told: BTreeSet::new() };
        let mut open: BTreeMap<u64, Answered> = sent.into_iter().map(|(cookie, request)| (cookie, fresh(request))).collect();
        while !open.is_empty() {
            match u32::from_be_bytes(self.receive()?) {
                SIMPLE_REPLY_MAGIC => self.simple(agreed, &mut open)?,
                magic @ (CHUNK_MAGIC | EXTENDED_CHUNK_MAGIC) => {
                    let expected = if magic == CHUNK_MAGIC { Replies::Structured } else { Replies::Extended };
                    assert!(agreed.replies == expected, "the form that was agreed on");
                    self.chunk(agreed, &mut open)?;
                }
                other => panic!("{other:#x} begins no reply"),
            }
        }
        Ok(())
    }

    fn simple(&mut self, agreed: &Agreed, open: &mut BTreeMap<u64, Answered>) -> Result<(), HungUp> {
        let error = u32::from_be_bytes(self.receive()?);
        let cookie = u64::from_be_bytes(self.receive()?);
        let Answered { request, .. } = open.remove(&cookie).expect("a reply to what was asked");
        let has_data = matches!(request.kind, command::READ | command::BLOCK_STATUS);
        assert!(agreed.replies == Replies::Simple || (agreed.replies == Replies::Structured && !has_data), "the form that was agreed on");
        if request.kind == command::READ && error == 0 {
            self.compare(request.offset, request.len_bytes)?;
        }
        self.finish(&request, agreed, error);
        Ok(())
    }

    fn chunk(&mut self, agreed: &Agreed, open: &mut BTreeMap<u64, Answered>) -> Result<(), HungUp> {
        let flags = u16::from_be_bytes(self.receive()?);
        let kind = u16::from_be_bytes(self.receive()?);
        let cookie = u64::from_be_bytes(self.receive()?);
        let answered = open.get_mut(&cookie).expect("a reply to what was asked");
        let len_bytes = if agreed.replies == Replies::Extended {
            assert_eq!(u64::from_be_bytes(self.receive()?), answered.request.offset);
            u64::from_be_bytes(self.receive()?)
        } else {
            u64::from(u32::from_be_bytes(self.receive()?))
        };
        let error = self.content(agreed, kind, len_bytes, answered)?;
        if flags & chunk::DONE != 0 {
            let Answered { request, read, told } = open.remove(&cookie).expect("just seen");
            let read_bytes: u64 = read.iter().map(|range| range.end - range.start).sum();
            assert!(error != 0 || request.kind != command::READ || read_bytes == request.len_bytes, "all that was asked");
            assert!(error != 0 || request.kind != command::BLOCK_STATUS || told == agreed.contexts, "each context that was chosen");
            self.finish(&request, agreed, error);
        }
        Ok(())
    }

    /// Reads a chunk's content and returns its error, 0 for none.
    fn content(&mut self, agreed: &Agreed, kind: u16, len_bytes: u64, answered: &mut Answered) -> Result<u32, HungUp> {
        let request = &answered.request;
        match kind {
            chunk::NONE => assert_eq!(len_bytes, 0),
            chunk::OFFSET_DATA => {
                assert_eq!(request.kind, command::READ);
                let offset = u64::from_be_bytes(self.receive()?);
                let range = offset..offset + (len_bytes - 8);
                let asked = request.offset..request.offset + request.len_bytes;
                assert!(asked.start <= range.start && range.end <= asked.end && range.start < range.end, "{range:?} of {asked:?}");
                assert!(answered.read.iter().all(|other| other.end <= range.start || range.end <= other.start), "{range:?} twice");
                self.compare(offset, len_bytes - 8)?;
                answered.read.push(range);
            }
            chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT => {
                assert!(
                    request.kind == command::BLOCK_STATUS && (kind == chunk::BLOCK_STATUS_EXT) == (agreed.replies == Replies::Extended)
                );
                let (context, lens) = self.extents(kind, len_bytes)?;
                let one = request.flags & command_flag::REQ_ONE != 0;
                assert!(agreed.contexts.contains(&context) && answered.told.insert(context), "a context that was chosen, once");
                assert!((1..=MAX_EXTENTS).contains(&lens.len()) && (!one || lens.len() == 1));
                assert!(lens.iter().all(|len| *len > 0) && lens.iter().sum::<u64>() <= request.len_bytes, "no longer than asked");
            }
            error if error & (1 << 15) != 0 => {
                let data = self.receive_bytes(len_bytes)?;
                let error = u32::from_be_bytes(*data.first_chunk().expect("an error's number"));
                assert!(error != 0);
                return Ok(error);
            }
            other => panic!("a chunk of type {other}"),
        }
        Ok(0)
    }

    /// A context, and the lengths of its extents.
    fn extents(&mut self, kind: u16, len_bytes: u64) -> Result<(u32, Vec<u64>), HungUp> {
        let data = self.receive_bytes(len_bytes)?;
        let (context, rest) = data.split_first_chunk().expect("a context");
        let lens: Vec<u64> = if kind == chunk::BLOCK_STATUS_EXT {
            let (count, rest) = rest.split_first_chunk().expect("a count");
            assert!(rest.len() == 16 * u32::from_be_bytes(*count) as usize, "as many as it says");
            rest.as_chunks::<16>().0.iter().map(|extent| u64::from_be_bytes(*extent.first_chunk().expect("a length"))).collect()
        } else {
            assert!(rest.len().is_multiple_of(8));
            rest.as_chunks::<8>().0.iter().map(|extent| u32::from_be_bytes(*extent.first_chunk().expect("a length")).into()).collect()
        };
        Ok((u32::from_be_bytes(*context), lens))
    }

    /// Receives data and holds it against what was acknowledged.
    fn compare(&mut self, offset: u64, len_bytes: u64) -> Result<(), HungUp> {
        let data = self.receive_bytes(len_bytes)?;
        let range = offset as usize..offset as usize + data.len();
        assert!(self.model.content(range.clone()) == data, "what was read at {range:?} is not what was acknowledged");
        Ok(())
    }

    fn finish(&mut self, request: &Sent, agreed: &Agreed, error: u32) {
        assert!(error == 0 || !request.must_succeed(agreed), "{request:?}: error {error}");
        assert!(error != 0 || request.range.is_some() || request.kind == command::FLUSH, "{request:?} is done");
        if let (Some(range), Some(change)) = (&request.range, request.change) {
            self.model.finish(range, change, error == 0);
        }
    }
}
