//! Messages of replication from the fuzzer's bytes: they fit each other often enough to get somewhere, and break every rule otherwise.

use crate::Bytes;
use bytes::Bytes as Frame;
use replicator::codec::{BasesMemory, Encoder, fingerprint};
use replicator_engine::block::{BLOCK_BYTES, Run};
use replicator_engine::generation::{Generation, Id, Lineage};
use replicator_engine::sender::Compression;
use replicator_engine::wire::*;
use roaring::RoaringBitmap;

/// The volume of all messages, but for some.
pub const VOLUME: Id = Id([7; 16]);

/// What the messages of one stream have in common.
pub struct Writer {
    lineage: Lineage,
    size_bytes: u64,
    attached: bool,
    /// Of what was sent since the last commit.
    digest: EpochDigest,
    epoch: u64,
    /// Made when it is first needed: that takes longer than most inputs.
    encoder: Option<Encoder>,
}

/// One of a few lineages: an ancestor, its successors, their rival, a stranger.
pub fn lineage(bytes: &mut Bytes<'_>) -> Lineage {
    let id = |value: u8| Id([value; 16]);
    let epoch = u64::from(bytes.u8() % 8);
    match bytes.u8() % 6 {
        0 | 1 => Lineage::first(id(1)),
        2 => Lineage::first(id(1)).promoted(id(2), epoch),
        3 => Lineage::first(id(1)).promoted(id(2), epoch).promoted(id(3), epoch + 2),
        4 => Lineage::first(id(1)).promoted(id(4), epoch),
        _ => Lineage::first(id(5)),
    }
}

/// Mostly within a few blocks, sometimes anywhere.
fn run(bytes: &mut Bytes<'_>) -> Run {
    let (start, len) = match bytes.u8() % 16 {
        0 => (bytes.u32(), bytes.u32()),
        1 => (u32::MAX - u32::from(bytes.u8()), u32::from(bytes.u8())),
        2..6 => (u32::from(bytes.u8()) * 2, 1 + u32::from(bytes.u8() % 8)),
        _ => (u32::from(bytes.u8()) / 2, 1 + u32::from(bytes.u8() % 4)),
    };
    Run::new(start, len).unwrap_or(Run { start: 0, len: 1 })
}

fn runs(bytes: &mut Bytes<'_>) -> Vec<Run> {
    (0..bytes.u8() % 5).map(|_| run(bytes)).collect()
}

/// A size around that of the blocks that are written.
pub fn size_bytes(bytes: &mut Bytes<'_>) -> u64 {
    match bytes.u8() % 16 {
        0 => bytes.u64(),
        1 => u64::from(u32::MAX) * BLOCK_BYTES as u64,
        _ => (256 + u64::from(bytes.u8() % 4) * 128) * BLOCK_BYTES as u64,
    }
}

fn digest(bytes: &mut Bytes<'_>) -> Digest {
    bytes.array()
}

/// A number that may be anything.
fn number(bytes: &mut Bytes<'_>, likely: u64) -> u64 {
    if bytes.u8().is_multiple_of(8) { bytes.u64() >> (bytes.u8() % 64) } else { likely + u64::from(bytes.u8() % 3) }
}

impl Writer {
    /// A writer whose stream has not begun.
    pub fn new() -> Self {
        Self {
            lineage: Lineage::first(Id([1; 16])),
            size_bytes: 256 * BLOCK_BYTES as u64,
            attached: false,
            digest: EpochDigest::default(),
            epoch: 1,
            encoder: None,
        }
    }

    /// The stream ended: what comes next begins another one, most of the time.
    pub fn handle_refused(&mut self) {
        self.attached = false;
        self.encoder.iter_mut().for_each(Encoder::forget_history);
    }

    /// A message from a primary to a standby, as a frame.
    pub fn primary(&mut self, bytes: &mut Bytes<'_>) -> Frame {
        let choice = if self.attached { bytes.u8() % 16 } else { bytes.u8() % 16 / 4 };
        let message = match choice {
            0 | 1 => self.attach(bytes),
            2..7 => Message::Blocks(self.blocks(bytes)),
            7..10 => Message::Compare(compare(bytes)),
            10..14 => self.commit(bytes),
            14 => {
                self.digest = EpochDigest::default();
                Message::Abandon
            }
            _ => return Frame::copy_from_slice(bytes.slice(200)),
        };
        self.frame(bytes, message)
    }

    /// A message from a standby to a primary whose open epoch is `epoch`, as a frame.
    pub fn standby(&mut self, bytes: &mut Bytes<'_>, epoch: u64) -> Frame {
        let acked = epoch.saturating_sub(2);
        let message = match bytes.u8() % 8 {
            0 | 1 => {
                Message::Attached(Attached { replica: Id([8 + bytes.u8() % 2; 16]), committed: number(bytes, acked), base: base(bytes) })
            }
            2..5 => Message::Committed(number(bytes, acked)),
            5 => Message::Damaged(runs(bytes)),
            6 => Message::Compared(Compared { ticket: number(bytes, 0) & !(1 << 63), different: runs(bytes) }),
            _ => Message::Refused(Refused { reason: Refusal::Stale, text: "no".into(), lineage: lineage(bytes) }),
        };
        self.frame(bytes, message)
    }

    fn frame(&self, bytes: &mut Bytes<'_>, message: Message) -> Frame {
        let mut generation = self.lineage.current();
        if bytes.u8().is_multiple_of(32) {
            generation = Generation { counter: number(bytes, 1), ..generation };
        }
        Envelope { generation, message }.encode()
    }

    fn attach(&mut self, bytes: &mut Bytes<'_>) -> Message {
        match bytes.u8() % 16 {
            0..3 => self.lineage = lineage(bytes),
            3..6 => self.size_bytes = size_bytes(bytes),
            _ => {}
        }
        self.attached = true;
        self.digest = EpochDigest::default();
        let volume = if bytes.u8().is_multiple_of(32) { Id::default() } else { VOLUME };
        Message::Attach(Attach { volume, size_bytes: self.size_bytes, lineage: self.lineage.clone() })
    }

    fn blocks(&mut self, bytes: &mut Bytes<'_>) -> Blocks {
        let runs = runs(bytes);
        let blocks = if bytes.u8().is_multiple_of(8) {
            // Whatever decodes.
            let runs = runs.into_iter().map(|run| (run, Content::Zero)).collect();
            let encoding = [Encoding::Zstd, Encoding::HistoryBegins, Encoding::History][usize::from(bytes.u8() % 3)];
            Blocks { runs, encoding, digest: digest(bytes), payload: Frame::copy_from_slice(bytes.slice(40)) }
        } else {
            let short: Vec<Run> = runs.into_iter().filter(|run| run.len < 300).collect();
            let mut content = Vec::new();
            for block in short.iter().flat_map(|run| run.blocks()) {
                let byte = bytes.u8();
                content.resize(content.len() + BLOCK_BYTES, byte % 3 * (1 + block as u8 % 8));
                if let Some(last) = content.last_mut().filter(|last| **last > 0) {
                    *last += byte / 4;
                }
            }
            let encoder = self.encoder.get_or_insert_with(|| Encoder::with_bases(BasesMemory::new([1 << 20; 2])).expect("an encoder"));
            let compression = if bytes.u8().is_multiple_of(2) { Compression::Quick } else { Compression::WithHistory(3) };
            encoder.encode_with(&short, &content, compression)
        };
        self.digest.add(&blocks);
        blocks
    }

    fn commit(&mut self, bytes: &mut Bytes<'_>) -> Message {
        let (mut blocks, mut digest) = std::mem::take(&mut self.digest).value();
        let mut size = self.size_bytes;
        match bytes.u8() % 16 {
            0 => (blocks, digest) = (bytes.u64(), bytes.array()),
            1 => size = size_bytes(bytes),
            _ => {}
        }
        self.epoch += 1;
        self.encoder.iter_mut().for_each(|encoder| encoder.handle_answer(&Message::Committed(self.epoch)));
        let epoch = number(bytes, self.epoch);
        Message::Commit(Commit { epoch, blocks, digest, size_bytes: size, cut_unix_ms: bytes.u64(), group: None })
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

fn compare(bytes: &mut Bytes<'_>) -> Compare {
    let against = if bytes.u8().is_multiple_of(3) { Against::Point } else { Against::Epoch };
    let mut compare = Compare::new(bytes.u64(), against);
    for run in runs(bytes) {
        if bytes.u8().is_multiple_of(2) || run.len > 64 {
            compare.add_zeroes(run);
        } else {
            run.blocks().for_each(|block| compare.add(block, fingerprint(&[bytes.u8() % 3; BLOCK_BYTES])));
        }
    }
    compare
}

fn base(bytes: &mut Bytes<'_>) -> Base {
    match bytes.u8() % 4 {
        0 => Base::Blank,
        1 => Base::Unfinished,
        2 => Base::Point,
        _ => {
            let mut blocks = RoaringBitmap::new();
            for run in runs(bytes) {
                // A set of everything takes a hundred times as long as any other message.
                let len = if bytes.u8() == u8::MAX { run.len } else { run.len.min(1 << 20) };
                blocks.insert_range(run.start..=run.start + len);
            }
            Base::PointBut(blocks)
        }
    }
}
