//! From messages to bytes.

use super::{Base, Content, Envelope, Message};
use crate::block::Run;
use crate::generation::{Generation, Lineage};
use bytes::{BufMut, Bytes, BytesMut};

impl Envelope {
    /// The message as the bytes of a frame.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(128 + self.message.payload_bytes());
        out.put_u8(self.message.kind());
        put_generation(&mut out, &self.generation);
        self.message.put(&mut out);
        out.freeze()
    }
}

impl Message {
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Attach(_) => 1,
            Self::Blocks(_) => 2,
            Self::Compare(_) => 3,
            Self::Commit(_) => 4,
            Self::Abandon => 5,
            Self::Attached(_) => 129,
            Self::Refused(_) => 130,
            Self::Compared(_) => 131,
            Self::Committed(_) => 132,
            Self::Damaged(_) => 133,
        }
    }

    fn payload_bytes(&self) -> usize {
        match self {
            Self::Blocks(blocks) => blocks.payload.len() + blocks.runs.len() * 9,
            Self::Compare(compare) => compare.fingerprints.len() * 16 + compare.runs.len() * 9,
            _ => 0,
        }
    }

    fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Attach(attach) => {
                out.put_slice(&attach.volume.0);
                out.put_u64_le(attach.size_bytes);
                put_lineage(out, &attach.lineage);
            }
            Self::Blocks(blocks) => {
                out.put_u8(blocks.encoding as u8);
                out.put_slice(&blocks.digest);
                put_content_runs(out, &blocks.runs);
                out.put_slice(&blocks.payload);
            }
            Self::Compare(compare) => {
                out.put_u64_le(compare.ticket);
                out.put_u8(compare.against as u8);
                put_content_runs(out, &compare.runs);
                compare.fingerprints.iter().for_each(|fingerprint| out.put_slice(fingerprint));
            }
            Self::Commit(commit) => {
                out.put_u64_le(commit.epoch);
                out.put_u64_le(commit.blocks);
                out.put_slice(&commit.digest);
                out.put_u64_le(commit.size_bytes);
                out.put_u64_le(commit.cut_unix_ms);
                if let Some(cut) = &commit.group {
                    out.put_slice(&cut.group.0);
                    out.put_u64_le(cut.number);
                }
            }
            Self::Abandon => {}
            Self::Attached(attached) => {
                out.put_slice(&attached.replica.0);
                out.put_u64_le(attached.committed);
                put_base(out, &attached.base);
            }
            Self::Refused(refused) => {
                out.put_u8(refused.reason as u8);
                put_text(out, &refused.text);
                put_lineage(out, &refused.lineage);
            }
            Self::Compared(compared) => {
                out.put_u64_le(compared.ticket);
                put_runs(out, &compared.different);
            }
            Self::Committed(epoch) => out.put_u64_le(*epoch),
            Self::Damaged(runs) => put_runs(out, runs),
        }
    }
}

fn put_generation(out: &mut BytesMut, generation: &Generation) {
    out.put_u64_le(generation.counter);
    out.put_slice(&generation.id.0);
    out.put_u64_le(generation.branch_epoch);
}

fn put_lineage(out: &mut BytesMut, lineage: &Lineage) {
    out.put_u16_le(lineage.generations().len() as u16);
    lineage.generations().iter().for_each(|generation| put_generation(out, generation));
}

fn put_run(out: &mut BytesMut, run: Run) {
    out.put_u32_le(run.start);
    out.put_u32_le(run.len);
}

fn put_runs(out: &mut BytesMut, runs: &[Run]) {
    out.put_u32_le(runs.len() as u32);
    runs.iter().for_each(|run| put_run(out, *run));
}

fn put_content_runs(out: &mut BytesMut, runs: &[(Run, Content)]) {
    out.put_u32_le(runs.len() as u32);
    for (run, content) in runs {
        put_run(out, *run);
        out.put_u8(*content as u8);
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    let text = &text[..text.floor_char_boundary(super::MAX_TEXT_BYTES)];
    out.put_u16_le(text.len() as u16);
    out.put_slice(text.as_bytes());
}

fn put_base(out: &mut BytesMut, base: &Base) {
    match base {
        Base::Blank => out.put_u8(0),
        Base::Unfinished => out.put_u8(1),
        Base::Point => out.put_u8(2),
        Base::PointBut(blocks) => {
            out.put_u8(3);
            blocks.serialize_into(out.writer()).expect("writing to memory does not fail");
        }
    }
}
