//! The messages of a replication stream.
//!
//! A stream serves one volume. The primary opens it and speaks first; messages travel in order, each in a frame of its own (the transport
//! carries the frame's length). Every message carries its sender's generation, which is looked at before anything else. docs/protocol.md
//! has the byte tables.

mod decode;
mod encode;

pub use decode::DecodeError;

use crate::block::{BlockNumber, Run};
use crate::generation::{Generation, Id, Lineage};
use crate::group::GroupCut;
use crate::tracker::Epoch;
use bytes::Bytes;
use roaring::RoaringBitmap;

/// Most blocks of content in one [`Blocks`] message.
pub const MAX_CONTENT_BLOCKS: u32 = 1024;
/// A difference leads on from content that came with at most so many blocks of content between, itself included.
pub const MAX_BASE_AGE_BLOCKS: u64 = 1 << 16;
/// Most runs in one message.
pub const MAX_RUNS: usize = 4096;
/// Most blocks with a fingerprint in one [`Compare`] message.
pub const MAX_COMPARE_BLOCKS: u32 = 4096;
/// Most blocks in one [`Compare`] message, those that should be zero included.
pub const MAX_COMPARE_ZEROES: u32 = 1 << 16;
/// Most runs in one [`Compared`] message: every second block of the longest question.
pub const MAX_DIFFERENT_RUNS: usize = MAX_COMPARE_ZEROES as usize / 2;
/// Most bytes of text in one message.
pub const MAX_TEXT_BYTES: usize = 1024;

/// BLAKE3 of a whole frame's content, or of an epoch's.
pub type Digest = [u8; 32];

/// The first 16 bytes of a block's BLAKE3.
pub type Fingerprint = [u8; 16];

/// A message and the generation of the side that sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// The sender's generation.
    pub generation: Generation,
    /// What it says.
    pub message: Message,
}

/// See the module's documentation. The first half goes from the primary to the standby, the second half back.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Begins: this is my volume, where do you stand?
    Attach(Attach),
    /// Content of the epoch that the next commit closes.
    Blocks(Blocks),
    /// Which of these blocks do you have with other content?
    Compare(Compare),
    /// All of the epoch is sent: make it a recovery point.
    Commit(Commit),
    /// The epoch was given up: its blocks come again.
    Abandon,
    /// Answer to [`Message::Attach`].
    Attached(Attached),
    /// The stream ends here, for this reason.
    Refused(Refused),
    /// Answer to [`Message::Compare`].
    Compared(Compared),
    /// The epoch is a recovery point, durably.
    Committed(Epoch),
    /// My disk does not give these blocks back as they came: send them again.
    Damaged(Vec<Run>),
}

/// See [`Message::Attach`].
#[derive(Clone, Debug, PartialEq)]
pub struct Attach {
    /// The volume's id, the same at every site.
    pub volume: Id,
    /// Size of the volume.
    pub size_bytes: u64,
    /// The primary's lineage.
    pub lineage: Lineage,
}

/// See [`Message::Attached`].
#[derive(Clone, Debug, PartialEq)]
pub struct Attached {
    /// Names this copy; a copy that is made anew has another.
    pub replica: Id,
    /// The last committed epoch.
    pub committed: Epoch,
    /// What the copy holds.
    pub base: Base,
}

/// What a standby's copy holds when a primary attaches.
#[derive(Clone, Debug, PartialEq)]
pub enum Base {
    /// Zeroes only.
    Blank,
    /// No recovery point yet, and content of which the standby cannot say what it is worth.
    Unfinished,
    /// The recovery point of the committed epoch.
    Point,
    /// The content at the committed epoch, but for these blocks.
    PointBut(RoaringBitmap),
}

/// See [`Message::Refused`].
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// Which rule was broken.
    pub reason: Refusal,
    /// In words.
    pub text: String,
    /// The lineage of the side that refuses.
    pub lineage: Lineage,
}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The other side has a later generation: stop acknowledging.
    Stale = 1,
    /// Neither generation continues the other.
    SplitBrain = 2,
    /// The volumes have nothing in common.
    Unrelated = 3,
    /// This side is not a standby of the volume.
    NotStandby = 4,
    /// This side holds epochs beyond the branch and was not told to give them up.
    Diverged = 5,
    /// The message breaks the protocol.
    Protocol = 6,
    /// No room, or the disk fails: tried again later.
    Storage = 7,
}

/// See [`Message::Blocks`].
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// The blocks in the order of their content; a run of zeroes has none.
    pub runs: Vec<(Run, Content)>,
    /// How the payload is encoded.
    pub encoding: Encoding,
    /// BLAKE3 of the content of all runs that have some: of the decoded payload, where no run is a difference.
    pub digest: Digest,
    /// The content of all runs that have some, one after the other.
    pub payload: Bytes,
}

/// Whether a run has content in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Content {
    /// All zeroes.
    Zero = 0,
    /// In the payload.
    Data = 1,
    /// In the payload is the exclusive or of it and what came for the block before. Only in a piece of a stream.
    Delta = 2,
}

impl Content {
    /// What a difference leads to is content like any other.
    pub fn resolved(self) -> Self {
        if self == Self::Delta { Self::Data } else { self }
    }
}

/// How a payload is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// As it is.
    Plain = 0,
    /// One zstd frame.
    Zstd = 1,
    /// The first piece of a zstd stream that goes on with later messages of this connection.
    HistoryBegins = 2,
    /// The next piece of that stream.
    History = 3,
}

impl Encoding {
    /// Whether the payload can be understood only after those before it.
    pub fn needs_history(self) -> bool {
        matches!(self, Self::HistoryBegins | Self::History)
    }
}

/// See [`Message::Compare`].
#[derive(Clone, Debug, PartialEq)]
pub struct Compare {
    /// Echoed in the answer.
    pub ticket: u64,
    /// Against what.
    pub against: Against,
    /// The blocks; those of a run of zeroes have no fingerprint.
    pub runs: Vec<(Run, Content)>,
    /// A fingerprint for each block of a data run.
    pub fingerprints: Vec<Fingerprint>,
}

/// What fingerprints are compared against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Against {
    /// The epoch under way: a block that is equal belongs to it as though it had been sent.
    Epoch = 0,
    /// The last recovery point; changes nothing.
    Point = 1,
}

/// See [`Message::Compared`].
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// Of the question.
    pub ticket: u64,
    /// The blocks whose content differs.
    pub different: Vec<Run>,
}

/// See [`Message::Commit`].
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// Its number.
    pub epoch: Epoch,
    /// Blocks sent since the commit before, each version counted.
    pub blocks: u64,
    /// Chained over the messages since the commit before: see [`EpochDigest`].
    pub digest: Digest,
    /// Size of the volume from this epoch on.
    pub size_bytes: u64,
    /// When it was cut, by the primary's clock, in milliseconds since 1970.
    pub cut_unix_ms: u64,
    /// The cut of a whole group that it is a part of.
    pub group: Option<GroupCut>,
}

impl Compare {
    /// A question about no blocks yet.
    pub fn new(ticket: u64, against: Against) -> Self {
        Self { ticket, against, runs: Vec::new(), fingerprints: Vec::new() }
    }

    /// Adds a run that should be zero.
    pub fn add_zeroes(&mut self, run: Run) {
        match self.runs.last_mut() {
            Some((last, Content::Zero)) if last.end() == run.start => last.len += run.len,
            _ => self.runs.push((run, Content::Zero)),
        }
    }

    /// Adds a block by its fingerprint.
    pub fn add(&mut self, block: BlockNumber, fingerprint: Fingerprint) {
        match self.runs.last_mut() {
            Some((last, Content::Data)) if last.end() == block => last.len += 1,
            _ => self.runs.push((Run { start: block, len: 1 }, Content::Data)),
        }
        self.fingerprints.push(fingerprint);
    }
}

impl Blocks {
    /// Number of blocks, zeroes included.
    pub fn blocks(&self) -> u64 {
        self.runs.iter().map(|(run, _)| u64::from(run.len)).sum()
    }

    /// Number of blocks with content.
    pub fn content_blocks(&self) -> u32 {
        self.runs.iter().filter(|(_, content)| *content != Content::Zero).map(|(run, _)| run.len).sum()
    }

    /// Whether some are differences.
    pub fn has_deltas(&self) -> bool {
        self.runs.iter().any(|(_, content)| *content == Content::Delta)
    }
}

/// Both sides' running count and digest of what was sent since the last commit.
#[derive(Clone, Debug, Default)]
pub struct EpochDigest {
    blocks: u64,
    hasher: blake3::Hasher,
}

impl EpochDigest {
    /// Adds a message's blocks.
    pub fn add(&mut self, blocks: &Blocks) {
        self.blocks += blocks.blocks();
        for (run, content) in &blocks.runs {
            self.hasher.update(&run.start.to_le_bytes());
            self.hasher.update(&run.len.to_le_bytes());
            self.hasher.update(&[content.resolved() as u8]);
        }
        self.hasher.update(&blocks.digest);
    }

    /// The count and digest so far.
    pub fn value(&self) -> (u64, Digest) {
        (self.blocks, *self.hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod documented;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
