//! From bytes to messages. The bytes come from another machine: every length is checked before it is used, and nothing is allocated
//! that the frame does not pay for.

use super::{
    Against, Attach, Attached, Base, Blocks, Commit, Compare, Compared, Content, Encoding, Envelope, MAX_COMPARE_BLOCKS,
    MAX_COMPARE_ZEROES, MAX_CONTENT_BLOCKS, MAX_DIFFERENT_RUNS, MAX_RUNS, MAX_TEXT_BYTES, Message, Refusal, Refused,
};
use crate::block::{BLOCK_BYTES, Run};
use crate::generation::{Generation, Id, Lineage, MAX_NUMBER};
use crate::group::GroupCut;
use crate::tracker::Epoch;
use bytes::{Buf, Bytes};
use roaring::RoaringBitmap;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends too early.
    #[error("the message is cut short")]
    CutShort,
    /// Something follows it.
    #[error("bytes follow the message")]
    Surplus,
    /// No such kind.
    #[error("unknown kind of message {0}")]
    UnknownKind(u8),
    /// A field has a value that it cannot have.
    #[error("the message's {0} is out of range")]
    OutOfRange(&'static str),
}

type Result<T> = std::result::Result<T, DecodeError>;

impl Envelope {
    /// The message in a frame's bytes.
    pub fn decode(frame: Bytes) -> Result<Self> {
        let mut input = Input(frame);
        let kind = input.u8()?;
        let generation = input.generation()?;
        let message = match kind {
            1 => Message::Attach(Attach { volume: input.id()?, size_bytes: input.u64()?, lineage: input.lineage()? }),
            2 => Message::Blocks(input.blocks()?),
            3 => Message::Compare(input.compare()?),
            4 => Message::Commit(Commit {
                epoch: input.epoch()?,
                blocks: input.u64()?,
                digest: input.array()?,
                size_bytes: input.u64()?,
                cut_unix_ms: input.u64()?,
                group: input.group_cut()?,
            }),
            5 => Message::Abandon,
            129 => Message::Attached(Attached { replica: input.id()?, committed: input.epoch()?, base: input.base()? }),
            130 => Message::Refused(Refused { reason: input.refusal()?, text: input.text()?, lineage: input.lineage()? }),
            131 => Message::Compared(Compared { ticket: input.u64()?, different: input.runs(MAX_DIFFERENT_RUNS)? }),
            132 => Message::Committed(input.epoch()?),
            133 => Message::Damaged(input.runs(MAX_RUNS)?),
            other => return Err(DecodeError::UnknownKind(other)),
        };
        if input.0.has_remaining() { Err(DecodeError::Surplus) } else { Ok(Self { generation, message }) }
    }
}

struct Input(Bytes);

impl Input {
    fn take(&mut self, len: usize) -> Result<Bytes> {
        if self.0.len() < len { Err(DecodeError::CutShort) } else { Ok(self.0.split_to(len)) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.as_ref().try_into().expect("just taken with this length"))
    }

    fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn id(&mut self) -> Result<Id> {
        self.array().map(Id)
    }

    fn generation(&mut self) -> Result<Generation> {
        let generation = Generation { counter: self.u64()?, id: self.id()?, branch_epoch: self.u64()? };
        generation.is_valid().then_some(generation).ok_or(DecodeError::OutOfRange("generation"))
    }

    fn epoch(&mut self) -> Result<Epoch> {
        let epoch = self.u64()?;
        if epoch > MAX_NUMBER { Err(DecodeError::OutOfRange("epoch")) } else { Ok(epoch) }
    }

    /// At the end of a message: it is there, or it is not.
    fn group_cut(&mut self) -> Result<Option<GroupCut>> {
        if self.0.has_remaining() { Ok(Some(GroupCut { group: self.id()?, number: self.epoch()? })) } else { Ok(None) }
    }

    fn lineage(&mut self) -> Result<Lineage> {
        let count = self.u16()?;
        let generations = (0..count).map(|_| self.generation()).collect::<Result<Vec<_>>>()?;
        Lineage::from_generations(generations).ok_or(DecodeError::OutOfRange("lineage"))
    }

    fn run(&mut self) -> Result<Run> {
        let (start, len) = (self.u32()?, self.u32()?);
        Run::new(start, len).ok_or(DecodeError::OutOfRange("run"))
    }

    fn run_count(&mut self, max: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        if count > max { Err(DecodeError::OutOfRange("number of runs")) } else { Ok(count) }
    }

    fn runs(&mut self, max: usize) -> Result<Vec<Run>> {
        let count = self.run_count(max)?;
        (0..count).map(|_| self.run()).collect()
    }

    /// Runs that are zero or have content, and the number of blocks that have.
    fn content_runs(&mut self) -> Result<(Vec<(Run, Content)>, u32)> {
        let count = self.run_count(MAX_RUNS)?;
        let mut runs = Vec::with_capacity(count);
        let mut content_blocks: u32 = 0;
        for _ in 0..count {
            let run = self.run()?;
            let content = match self.u8()? {
                0 => Content::Zero,
                1 => Content::Data,
                2 => Content::Delta,
                _ => return Err(DecodeError::OutOfRange("content")),
            };
            if content != Content::Zero {
                content_blocks = content_blocks.checked_add(run.len).ok_or(DecodeError::OutOfRange("content"))?;
            }
            runs.push((run, content));
        }
        Ok((runs, content_blocks))
    }

    fn text(&mut self) -> Result<String> {
        let len = usize::from(self.u16()?);
        if len > MAX_TEXT_BYTES {
            return Err(DecodeError::OutOfRange("text"));
        }
        let text = self.take(len)?;
        // It is printed on terminals and in logs: no control characters.
        let mut text: String = String::from_utf8_lossy(&text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        // A byte that is no text has become three.
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        Ok(text)
    }

    fn refusal(&mut self) -> Result<Refusal> {
        use Refusal::*;
        let code = self.u8()?;
        let all = [Stale, SplitBrain, Unrelated, NotStandby, Diverged, Protocol, Storage];
        all.into_iter().find(|reason| *reason as u8 == code).ok_or(DecodeError::OutOfRange("refusal"))
    }

    fn base(&mut self) -> Result<Base> {
        match self.u8()? {
            0 => Ok(Base::Blank),
            1 => Ok(Base::Unfinished),
            2 => Ok(Base::Point),
            3 => {
                let mut reader = std::mem::take(&mut self.0).reader();
                let blocks = RoaringBitmap::deserialize_from(&mut reader).map_err(|_| DecodeError::OutOfRange("set of blocks"))?;
                self.0 = reader.into_inner();
                Ok(Base::PointBut(blocks))
            }
            _ => Err(DecodeError::OutOfRange("base")),
        }
    }

    fn blocks(&mut self) -> Result<Blocks> {
        let encoding = match self.u8()? {
            0 => Encoding::Plain,
            1 => Encoding::Zstd,
            2 => Encoding::HistoryBegins,
            3 => Encoding::History,
            _ => return Err(DecodeError::OutOfRange("encoding")),
        };
        let digest = self.array()?;
        let (runs, content_blocks) = self.content_runs()?;
        let payload = std::mem::take(&mut self.0);
        let plain = encoding == Encoding::Plain && payload.len() != content_blocks as usize * BLOCK_BYTES;
        if content_blocks > MAX_CONTENT_BLOCKS || plain || payload.len() > (MAX_CONTENT_BLOCKS as usize + 1) * BLOCK_BYTES {
            return Err(DecodeError::OutOfRange("content"));
        }
        let blocks = Blocks { runs, encoding, digest, payload };
        let is_misplaced = !encoding.needs_history() && blocks.has_deltas();
        if is_misplaced { Err(DecodeError::OutOfRange("content")) } else { Ok(blocks) }
    }

    fn compare(&mut self) -> Result<Compare> {
        let ticket = self.u64()?;
        let against = match self.u8()? {
            0 => Against::Epoch,
            1 => Against::Point,
            _ => return Err(DecodeError::OutOfRange("purpose")),
        };
        let (runs, content_blocks) = self.content_runs()?;
        let blocks: u64 = runs.iter().map(|(run, _)| u64::from(run.len)).sum();
        if content_blocks > MAX_COMPARE_BLOCKS || blocks > u64::from(MAX_COMPARE_ZEROES) {
            return Err(DecodeError::OutOfRange("number of blocks"));
        }
        if runs.iter().any(|(_, content)| *content == Content::Delta) {
            return Err(DecodeError::OutOfRange("content"));
        }
        let fingerprints = (0..content_blocks).map(|_| self.array()).collect::<Result<_>>()?;
        Ok(Compare { ticket, against, runs, fingerprints })
    }
}
