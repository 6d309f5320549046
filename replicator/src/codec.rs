//! Content to payload and back: zero blocks cost nothing, the rest is one zstd frame a message.

use bytes::Bytes;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use replicator_engine::wire::{Blocks, Compare, Content, Encoding, Fingerprint};
use std::io;

const ZERO_BLOCK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
/// Fast enough for a link of several Gbit/s on one core.
const LEVEL: i32 = 1;

/// Encodes messages; keeps its compressor and buffers between them.
pub struct Encoder {
    zstd: zstd::bulk::Compressor<'static>,
    dense: Vec<u8>,
}

/// Decodes messages; keeps its decompressor and buffer between them.
pub struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
    content: Vec<u8>,
}

/// Why a payload is not what its message says.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
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
        Ok(Self { zstd: zstd::bulk::Compressor::new(LEVEL)?, dense: Vec::new() })
    }

    /// The message for the blocks of `runs`, whose content lies one after the other in `content`.
    pub fn encode(&mut self, runs: &[Run], content: &[u8]) -> Blocks {
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
        let (encoding, payload) = match self.zstd.compress(&self.dense) {
            Ok(compressed) if compressed.len() < self.dense.len() => (Encoding::Zstd, Bytes::from(compressed)),
            _ => (Encoding::Plain, Bytes::copy_from_slice(&self.dense)),
        };
        Blocks { runs: marked, encoding, digest, payload }
    }
}

impl Decoder {
    /// A new decoder.
    pub fn new() -> io::Result<Self> {
        Ok(Self { zstd: zstd::bulk::Decompressor::new()?, content: Vec::new() })
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
        let mut noise = vec![0; BLOCK_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
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
}
