//! Content to payload and back: zero blocks cost nothing, the rest is one zstd frame a message, or a piece of a stream that all messages of a
//! connection are. In a stream, a block that went before may go as what differs since.

mod bases;
mod delta;
mod history;

pub use bases::{Bases, BasesMemory};
pub use delta::exclusive_or;

use bytes::Bytes;
use history::{Deflating, Inflating};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use replicator_engine::sender::Compression;
use replicator_engine::wire::{Against, Blocks, Compare, Content, Encoding, Fingerprint, Message};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

const ZERO_BLOCK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
/// Fast enough for a link of several Gbit/s on one core.
const LEVEL: i32 = 1;
/// Of a stream that begins with differences.
const LEVEL_OF_DIFFERENCES: i32 = 3;

/// Microseconds that all encoders of this process have spent.
static SPENT_US: AtomicU64 = AtomicU64::new(0);

/// Encodes messages; keeps its compressors and buffers between them.
pub struct Encoder {
    zstd: zstd::bulk::Compressor<'static>,
    history: Option<Deflating>,
    /// Something was sent since history was last looked after.
    in_use: bool,
    bases: Bases,
    /// Differences are sent. Not before an epoch arrived: a standby that could not resolve them has all of it then.
    sends_deltas: bool,
    dense: Vec<u8>,
}

/// Decodes messages; keeps its decompressors and buffer between them.
pub struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
    history: Option<Inflating>,
    content: Vec<u8>,
}

/// Why a payload is not what its message says.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// It goes on with a stream that did not begin.
    #[error("the payload goes on with a stream of which the beginning is missing")]
    History,
    /// It does not decompress to the length that its runs say.
    #[error("the payload does not decompress to the length of its blocks")]
    Length,
    /// Its digest differs.
    #[error("the payload is damaged: its digest differs")]
    Digest,
    /// A difference leads on from content that did not come, or came too long ago.
    #[error("block {0} came as a difference to content that did not come before")]
    NoBase(BlockNumber),
    /// Differences do not lead to the content that was sent.
    #[error("the payload, or what its differences lead on from, is damaged: the digest of what they lead to differs")]
    Base,
}

/// Whether a block is all zeroes.
pub fn is_zero(block: &[u8]) -> bool {
    block == ZERO_BLOCK
}

/// The fingerprint of one block.
pub fn fingerprint(block: &[u8]) -> Fingerprint {
    let hash = blake3::hash(block);
    hash.as_bytes()[..16].try_into().expect("a digest is longer than a fingerprint")
}

/// What a standby remembers of one block, so that it knows it again: the first 8 bytes of its BLAKE3, little-endian; 0 for zeroes, and for nothing
/// else.
pub fn digest(block: &[u8]) -> u64 {
    if is_zero(block) { 0 } else { digest_of(&fingerprint(block)) }
}

/// The same of a block that is not zero and has this fingerprint.
pub fn digest_of(fingerprint: &Fingerprint) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *fingerprint;
    u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
}

/// Adds blocks, whose content lies one after the other in `content`, to a question.
pub fn add_content(question: &mut Compare, blocks: impl IntoIterator<Item = BlockNumber>, content: &[u8]) {
    for (block, content) in blocks.into_iter().zip(content.chunks_exact(BLOCK_BYTES)) {
        if is_zero(content) { question.add_zeroes(Run { start: block, len: 1 }) } else { question.add(block, fingerprint(content)) }
    }
}

impl Encoder {
    /// A new encoder.
    pub fn new() -> io::Result<Self> {
        let zstd = zstd::bulk::Compressor::new(LEVEL)?;
        Ok(Self { zstd, history: None, in_use: false, bases: Bases::default(), sends_deltas: false, dense: Vec::new() })
    }

    /// One that remembers what it sent, and sends differences.
    pub fn with_bases(memory: Arc<BasesMemory>) -> io::Result<Self> {
        Ok(Self { bases: Bases::new(memory), ..Self::new()? })
    }

    /// Microseconds that all encoders of this process have spent so far.
    pub fn spent_us() -> u64 {
        SPENT_US.load(Relaxed)
    }

    /// Lets go of what was sent before: another connection begins.
    pub fn forget_history(&mut self) {
        self.history = None;
        self.forget_bases();
    }

    /// The same, if nothing was sent since the last call: a volume at rest needs no memory for it.
    pub fn forget_idle_history(&mut self) {
        if !std::mem::take(&mut self.in_use) {
            self.history = None;
        }
        self.bases.forget_idle();
    }

    /// This goes to the standby, in this order: what it has of a block is, or may become, something else than what was sent.
    pub fn handle_sending(&mut self, message: &Message) {
        match message {
            Message::Abandon => self.forget_bases(),
            Message::Blocks(Blocks { runs, payload, .. }) if payload.is_empty() => runs.iter().for_each(|(run, _)| self.bases.forget(*run)),
            Message::Compare(Compare { runs, against: Against::Epoch, .. }) => runs.iter().for_each(|(run, _)| self.bases.forget(*run)),
            _ => {}
        }
    }

    /// This came from the standby.
    pub fn handle_answer(&mut self, message: &Message) {
        match message {
            Message::Committed(_) => self.sends_deltas = true,
            Message::Damaged(runs) => runs.iter().for_each(|run| self.bases.forget(*run)),
            _ => {}
        }
    }

    fn forget_bases(&mut self) {
        self.bases.clear();
        self.sends_deltas = false;
    }

    /// The message for the blocks of `runs`, whose content lies one after the other in `content`, each to be understood by itself.
    pub fn encode(&mut self, runs: &[Run], content: &[u8]) -> Blocks {
        self.encode_whole(runs, content)
    }

    /// The same, compressed in another way.
    pub fn encode_with(&mut self, runs: &[Run], content: &[u8], compression: Compression) -> Blocks {
        let began = Instant::now();
        let blocks = match compression {
            Compression::WithHistory(level) => self.encode_piece(runs, content, level),
            // Whoever has no time to compress has it for zeroes, which are most of a difference.
            Compression::Quick if self.are_mostly_differences(runs, content) => {
                let level = self.history.as_ref().map_or(LEVEL_OF_DIFFERENCES, Deflating::level);
                self.encode_piece(runs, content, level)
            }
            Compression::Quick => None,
        };
        let blocks = blocks.unwrap_or_else(|| self.encode_whole(runs, content));
        SPENT_US.fetch_add(began.elapsed().as_micros() as u64, Relaxed);
        blocks
    }

    fn are_mostly_differences(&self, runs: &[Run], content: &[u8]) -> bool {
        let blocks = runs.iter().flat_map(|run| run.blocks()).zip(content.chunks_exact(BLOCK_BYTES));
        let is_delta = |block, content: &[u8]| self.bases.get(block).is_some_and(|base| delta::is_worth_it(base, content));
        self.sends_deltas && blocks.filter(|(block, content)| is_delta(*block, content)).count() * 2 * BLOCK_BYTES > content.len()
    }

    fn encode_whole(&mut self, runs: &[Run], content: &[u8]) -> Blocks {
        // The standby does not look into it as it comes.
        runs.iter().for_each(|run| self.bases.forget(*run));
        let marked = mark(&mut self.dense, runs, content, |_, _| Content::Data);
        let digest = *blake3::hash(&self.dense).as_bytes();
        let frame = if self.dense.is_empty() { None } else { self.zstd.compress(&self.dense).ok() };
        let (encoding, payload) = match frame {
            Some(frame) if frame.len() < self.dense.len() => (Encoding::Zstd, frame.into()),
            _ => (Encoding::Plain, Bytes::copy_from_slice(&self.dense)),
        };
        Blocks { runs: marked, encoding, digest, payload }
    }

    /// `None` if zstd fails.
    fn encode_piece(&mut self, runs: &[Run], content: &[u8], level: i32) -> Option<Blocks> {
        let bases = self.sends_deltas.then_some(&self.bases);
        let is_delta =
            |block, content: &[u8]| bases.and_then(|bases| bases.get(block)).is_some_and(|base| delta::is_worth_it(base, content));
        let kind_of = |block, content: &[u8]| if is_delta(block, content) { Content::Delta } else { Content::Data };
        let marked = mark(&mut self.dense, runs, content, kind_of);
        let digest = *blake3::hash(&self.dense).as_bytes();
        if self.dense.is_empty() {
            runs.iter().for_each(|run| self.bases.forget(*run));
            return Some(Blocks { runs: marked, encoding: Encoding::Plain, digest, payload: Bytes::new() });
        }
        self.take_differences(&marked);
        let piece = self.deflate(level);
        self.remember(&marked, content);
        let (encoding, payload) = piece.ok()?;
        Some(Blocks { runs: marked, encoding, digest, payload })
    }

    fn take_differences(&mut self, marked: &[(Run, Content)]) {
        let mut dense = self.dense.chunks_exact_mut(BLOCK_BYTES);
        for (block, kind) in marked.iter().flat_map(|(run, kind)| run.blocks().map(|block| (block, *kind))) {
            let content = if kind == Content::Zero { None } else { dense.next() };
            if let (Content::Delta, Some(content), Some(base)) = (kind, content, self.bases.get(block)) {
                exclusive_or(base, content);
            }
        }
    }

    fn remember(&mut self, marked: &[(Run, Content)], content: &[u8]) {
        let mut content = content.chunks_exact(BLOCK_BYTES);
        for (run, kind) in marked {
            let here = content.by_ref().take(run.len as usize);
            if *kind == Content::Zero {
                here.for_each(drop);
                self.bases.forget(*run);
            } else {
                run.blocks().zip(here).for_each(|(block, content)| self.bases.put(block, content));
            }
        }
    }

    fn deflate(&mut self, level: i32) -> io::Result<(Encoding, Bytes)> {
        let going_on = self.history.take().filter(|stream| stream.level() == level);
        let encoding = if going_on.is_some() { Encoding::History } else { Encoding::HistoryBegins };
        let mut stream = going_on.map_or_else(|| Deflating::new(level), Ok)?;
        let piece = stream.deflate(&self.dense)?;
        (self.history, self.in_use) = (Some(stream), true);
        Ok((encoding, piece.into()))
    }
}

/// What becomes of each block; content goes to `dense`.
fn mark(dense: &mut Vec<u8>, runs: &[Run], content: &[u8], kind_of: impl Fn(BlockNumber, &[u8]) -> Content) -> Vec<(Run, Content)> {
    let mut marked = Vec::new();
    dense.clear();
    for (block, bytes) in runs.iter().flat_map(|run| run.blocks()).zip(content.chunks_exact(BLOCK_BYTES)) {
        let kind = if is_zero(bytes) { Content::Zero } else { kind_of(block, bytes) };
        if kind != Content::Zero {
            dense.extend_from_slice(bytes);
        }
        match marked.last_mut() {
            Some((Run { start, len }, last)) if *last == kind && *start + *len == block => *len += 1,
            _ => marked.push((Run { start: block, len: 1 }, kind)),
        }
    }
    marked
}

impl Decoder {
    /// A new decoder.
    pub fn new() -> io::Result<Self> {
        Ok(Self { zstd: zstd::bulk::Decompressor::new()?, history: None, content: Vec::new() })
    }

    /// Lets go of what came before: the connection ended.
    pub fn forget_history(&mut self) {
        self.history = None;
    }

    /// A message of a connection as one that can be understood by itself, but for the bases of its differences. Each one of a stream must come by
    /// here, in order.
    pub fn detach(&mut self, blocks: Blocks) -> Result<Blocks, PayloadError> {
        match blocks.encoding {
            Encoding::Plain | Encoding::Zstd => return Ok(blocks),
            Encoding::HistoryBegins => self.history = Some(Inflating::new().map_err(|_| PayloadError::History)?),
            Encoding::History => {}
        }
        let mut stream = self.history.take().ok_or(PayloadError::History)?;
        let mut content = vec![0; blocks.content_blocks() as usize * BLOCK_BYTES];
        stream.inflate(&blocks.payload, &mut content)?;
        self.history = Some(stream);
        Ok(Blocks { encoding: Encoding::Plain, payload: content.into(), ..blocks })
    }

    /// The content of the message's data runs, checked.
    pub fn decode<'a>(&'a mut self, blocks: &'a Blocks) -> Result<&'a [u8], PayloadError> {
        let len_bytes = blocks.content_blocks() as usize * BLOCK_BYTES;
        let content = match blocks.encoding {
            Encoding::Plain => &blocks.payload[..],
            Encoding::Zstd => {
                // The buffer has room for what the runs say and no more, whatever the frame claims to hold.
                self.content.resize(len_bytes, 0);
                let written = self.zstd.decompress_to_buffer(&blocks.payload, &mut self.content[..]).map_err(|_| PayloadError::Length)?;
                &self.content[..written]
            }
            Encoding::HistoryBegins | Encoding::History => return Err(PayloadError::History),
        };
        if content.len() != len_bytes {
            return Err(PayloadError::Length);
        }
        if blake3::hash(content).as_bytes() != &blocks.digest {
            return Err(PayloadError::Digest);
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests;
