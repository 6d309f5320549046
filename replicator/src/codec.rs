//! Content to payload and back: zero blocks cost nothing, the rest is one zstd frame a message, or a piece of a stream that all messages of a
//! connection are.

mod history;

use bytes::Bytes;
use history::{Deflating, Inflating};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use replicator_engine::sender::Compression;
use replicator_engine::wire::{Blocks, Compare, Content, Encoding, Fingerprint};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

const ZERO_BLOCK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
/// Fast enough for a link of several Gbit/s on one core.
const LEVEL: i32 = 1;

/// Microseconds that all encoders of this process have spent.
static SPENT_US: AtomicU64 = AtomicU64::new(0);

/// Encodes messages; keeps its compressors and buffers between them.
pub struct Encoder {
    zstd: zstd::bulk::Compressor<'static>,
    history: Option<Deflating>,
    /// Something was sent since history was last looked after.
    in_use: bool,
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
        Ok(Self { zstd: zstd::bulk::Compressor::new(LEVEL)?, history: None, in_use: false, dense: Vec::new() })
    }

    /// Microseconds that all encoders of this process have spent so far.
    pub fn spent_us() -> u64 {
        SPENT_US.load(Relaxed)
    }

    /// Lets go of what was sent before: another connection begins.
    pub fn forget_history(&mut self) {
        self.history = None;
    }

    /// The same, if nothing was sent since the last call: a volume at rest needs no memory for it.
    pub fn forget_idle_history(&mut self) {
        if !std::mem::take(&mut self.in_use) {
            self.forget_history();
        }
    }

    /// The message for the blocks of `runs`, whose content lies one after the other in `content`, each to be understood by itself.
    pub fn encode(&mut self, runs: &[Run], content: &[u8]) -> Blocks {
        self.encode_with(runs, content, Compression::Quick)
    }

    /// The same, compressed in another way.
    pub fn encode_with(&mut self, runs: &[Run], content: &[u8], compression: Compression) -> Blocks {
        let began = Instant::now();
        let mut marked = Vec::new();
        self.dense.clear();
        let mut rest = content;
        for block in runs.iter().flat_map(|run| run.blocks()) {
            let (bytes, after) = rest.split_at(BLOCK_BYTES);
            rest = after;
            let kind = if is_zero(bytes) { Content::Zero } else { Content::Data };
            if kind == Content::Data {
                self.dense.extend_from_slice(bytes);
            }
            match marked.last_mut() {
                Some((Run { start, len }, last)) if *last == kind && *start + *len == block => *len += 1,
                _ => marked.push((Run { start: block, len: 1 }, kind)),
            }
        }
        let digest = *blake3::hash(&self.dense).as_bytes();
        let (encoding, payload) = self.compress(compression);
        SPENT_US.fetch_add(began.elapsed().as_micros() as u64, Relaxed);
        Blocks { runs: marked, encoding, digest, payload }
    }

    fn compress(&mut self, compression: Compression) -> (Encoding, Bytes) {
        let compressed = match compression {
            _ if self.dense.is_empty() => None,
            Compression::Quick => self.zstd.compress(&self.dense).ok().map(|frame| (Encoding::Zstd, frame)),
            // A piece of a stream goes out whatever its length: the next one is understood only after it.
            Compression::WithHistory(level) => return self.deflate(level).unwrap_or_else(|_| self.plain()),
        };
        let shorter = compressed.filter(|(_, frame)| frame.len() < self.dense.len());
        shorter.map_or_else(|| self.plain(), |(encoding, frame)| (encoding, frame.into()))
    }

    fn plain(&self) -> (Encoding, Bytes) {
        (Encoding::Plain, Bytes::copy_from_slice(&self.dense))
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

impl Decoder {
    /// A new decoder.
    pub fn new() -> io::Result<Self> {
        Ok(Self { zstd: zstd::bulk::Decompressor::new()?, history: None, content: Vec::new() })
    }

    /// Lets go of what came before: the connection ended.
    pub fn forget_history(&mut self) {
        self.history = None;
    }

    /// A message of a connection as one that can be understood by itself. Each one of a stream must come by here, in order.
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
mod tests {
    use super::*;
    use crate::documented::{PROTOCOL, example};
    use replicator_engine::wire::{Envelope, Message};

    fn content() -> Vec<u8> {
        let text = b"a block of text ".repeat(BLOCK_BYTES / 16);
        [vec![0; BLOCK_BYTES], text.clone(), text, vec![0; BLOCK_BYTES]].concat()
    }

    fn run(start: u32, len: u32) -> Run {
        Run::new(start, len).unwrap()
    }

    #[test]
    fn zero_blocks_cost_no_payload_and_content_survives() {
        let blocks = Encoder::new().unwrap().encode(&[run(5, 2), run(9, 2)], &content());
        assert_eq!(
            blocks.runs,
            [(run(5, 1), Content::Zero), (run(6, 1), Content::Data), (run(9, 1), Content::Data), (run(10, 1), Content::Zero)]
        );
        assert!(blocks.payload.len() < 200);
        assert_eq!(Decoder::new().unwrap().decode(&blocks).unwrap(), &content()[BLOCK_BYTES..3 * BLOCK_BYTES]);
    }

    #[test]
    fn the_documented_payload_is_what_its_page_says() {
        let envelope = Envelope::decode(example(PROTOCOL, "blocks").into()).unwrap();
        let Message::Blocks(blocks) = envelope.message else { panic!("another message") };
        assert_eq!(Decoder::new().unwrap().decode(&blocks).unwrap(), [b'A'; BLOCK_BYTES]);
    }

    #[test]
    fn incompressible_content_goes_as_it_is() {
        let noise = noise(BLOCK_BYTES);
        let blocks = Encoder::new().unwrap().encode(&[run(0, 1)], &noise);
        assert_eq!((blocks.encoding, blocks.payload.len()), (Encoding::Plain, BLOCK_BYTES));
    }

    /// Lesson: our own use of libraries is bounded, too.
    #[test]
    fn a_decompression_bomb_and_a_damaged_payload_are_refused() {
        let mut decoder = Decoder::new().unwrap();
        let mut blocks = Encoder::new().unwrap().encode(&[run(5, 4)], &content());
        blocks.payload = zstd::bulk::compress(&vec![1; 64 << 20], 1).unwrap().into();
        assert!(matches!(decoder.decode(&blocks), Err(PayloadError::Length)));
        blocks.payload = zstd::bulk::compress(&vec![1; 2 * BLOCK_BYTES], 1).unwrap().into();
        assert!(matches!(decoder.decode(&blocks), Err(PayloadError::Digest)));
    }

    fn noise(len_bytes: usize) -> Vec<u8> {
        let mut noise = vec![0; len_bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        noise
    }

    #[test]
    fn what_was_sent_before_on_a_connection_makes_what_follows_smaller() {
        let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new().unwrap());
        let content = noise(8 * BLOCK_BYTES);
        let sizes = [3, 3, 9].map(|level| {
            let sent = encoder.encode_with(&[run(7, 8)], &content, Compression::WithHistory(level));
            let size = sent.payload.len();
            let detached = decoder.detach(sent).unwrap();
            assert_eq!(decoder.decode(&detached).unwrap(), content);
            size
        });
        assert!(sizes[0] < content.len() + 64 && sizes[1] < 200, "{sizes:?}");
        assert!(sizes[2] > sizes[1], "another level begins another stream");
    }

    #[test]
    fn a_stream_is_refused_without_its_beginning_and_by_the_journal() {
        let mut encoder = Encoder::new().unwrap();
        let pieces = [0, 1].map(|_| encoder.encode_with(&[run(0, 2)], &noise(2 * BLOCK_BYTES), Compression::WithHistory(3)));
        let mut decoder = Decoder::new().unwrap();
        assert!(matches!(decoder.detach(pieces[1].clone()), Err(PayloadError::History)));
        assert!(matches!(decoder.decode(&pieces[0]), Err(PayloadError::History)));
        decoder.detach(pieces[0].clone()).unwrap();
        decoder.forget_history();
        assert!(matches!(decoder.detach(pieces[1].clone()), Err(PayloadError::History)));
    }

    #[test]
    fn a_piece_that_holds_more_or_less_than_its_blocks_is_refused() {
        let mut encoder = Encoder::new().unwrap();
        let piece = encoder.encode_with(&[run(0, 4)], &vec![1; 4 * BLOCK_BYTES], Compression::WithHistory(3));
        for blocks in [3, 5] {
            let wrong = Blocks { runs: vec![(run(0, blocks), Content::Data)], ..piece.clone() };
            assert!(matches!(Decoder::new().unwrap().detach(wrong), Err(PayloadError::Length)));
        }
        let mut bomb = piece.clone();
        bomb.payload = zstd::bulk::compress(&vec![1; 64 << 20], 1).unwrap().into();
        assert!(matches!(Decoder::new().unwrap().detach(bomb), Err(PayloadError::Length)));
        let cut = Blocks { payload: piece.payload.slice(..piece.payload.len() - 1), ..piece };
        assert!(matches!(Decoder::new().unwrap().detach(cut), Err(PayloadError::Length)));
    }
}
