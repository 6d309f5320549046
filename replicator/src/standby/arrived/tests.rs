//! Differences: wherever their bases lie they lead to what was sent, or nowhere.

use super::*;
use crate::codec::{Encoder, exclusive_or};
use crate::disk::BlockDevice;
use crate::standby::SegmentDir;
use crate::standby::tests::{Image, Primary, Site};
use bytes::Bytes;
use replicator_engine::sender::Compression;
use replicator_engine::wire::{Against, Base, Commit, Compare, Encoding, EpochDigest, Message};

const HISTORY: Compression = Compression::WithHistory(3);
const BLOCKS: u32 = 64;

/// A primary that sends differences, and what it has.
struct Differing {
    primary: Primary,
    encoder: Encoder,
    digest: EpochDigest,
    content: Vec<u8>,
    deltas: u32,
    seed: u64,
    level: i32,
}

impl Differing {
    fn attach(standby: &mut Standby<SegmentDir>) -> Self {
        let (primary, content) = (Primary { blocks: BLOCKS.into(), epoch: 0 }, vec![0; BLOCKS as usize * BLOCK_BYTES]);
        standby.handle_frame(primary.attach_frame()).unwrap();
        let encoder = Encoder::with_bases(BasesMemory::new([1 << 20; 2])).unwrap();
        Self { primary, encoder, digest: EpochDigest::default(), content, deltas: 0, seed: 1, level: 3 }
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.seed >> 33
    }

    /// Writes a few bytes here and there, now and then a whole block; the frame that sends them.
    fn write(&mut self) -> Bytes {
        let start = self.random() as u32 % (BLOCKS - 4);
        let run = Run::new(start, 1 + self.random() as u32 % 4).unwrap();
        for block in run.blocks() {
            let random = self.random();
            let range = block as usize * BLOCK_BYTES..(block as usize + 1) * BLOCK_BYTES;
            match random % 8 {
                0 => self.content[range].fill(0),
                1 => self.content[range].iter_mut().enumerate().for_each(|(at, byte)| *byte = (random >> (at % 13)) as u8 ^ (at / 7) as u8),
                _ => self.content[range][random as usize % BLOCK_BYTES] ^= 1 + (random >> 20) as u8 % 255,
            }
        }
        self.send(run)
    }

    fn send(&mut self, run: Run) -> Bytes {
        let content = &self.content[run.offset() as usize..][..run.len_bytes() as usize];
        let blocks = self.encoder.encode_with(&[run], content, Compression::WithHistory(self.level));
        self.deltas += blocks.runs.iter().filter(|(_, kind)| *kind == Content::Delta).map(|(run, _)| run.len).sum::<u32>();
        self.digest.add(&blocks);
        Primary::frame(Message::Blocks(blocks))
    }

    fn commit(&mut self, standby: &mut Standby<SegmentDir>) {
        let (blocks, digest) = std::mem::take(&mut self.digest).value();
        self.primary.epoch += 1;
        let (epoch, size_bytes) = (self.primary.epoch, self.content.len() as u64);
        let commit = Commit { epoch, blocks, digest, size_bytes, cut_unix_ms: epoch, group: None };
        let answer = standby.handle_frame(Primary::frame(Message::Commit(commit))).unwrap();
        assert_eq!(answer, Some(Message::Committed(epoch)));
        self.encoder.handle_answer(&Message::Committed(epoch));
    }

    /// An epoch with blocks 5 and 6, which are not zeroes.
    fn begin(&mut self, standby: &mut Standby<SegmentDir>) {
        self.content[5 * BLOCK_BYTES..7 * BLOCK_BYTES].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7 / 5) as u8);
        let frame = self.send(Run::new(5, 2).unwrap());
        standby.handle_frame(frame).unwrap();
        self.commit(standby);
    }

    fn change(&mut self) -> Bytes {
        self.content[5 * BLOCK_BYTES + 77] ^= 9;
        self.send(Run::new(5, 2).unwrap())
    }
}

fn content_of(image: &Image) -> Vec<u8> {
    let mut content = vec![0; BLOCKS as usize * BLOCK_BYTES];
    image.read(Run::new(0, BLOCKS).unwrap(), &mut content).unwrap();
    content
}

#[test]
fn wherever_its_base_lies_a_difference_leads_to_what_was_sent() {
    for (base, memory_bytes) in [(Base::Point, 0), (Base::Blank, 0), (Base::Point, 1 << 20), (Base::Blank, 1 << 20)] {
        let (site, image) = (Site::new(BLOCKS.into(), base.clone()), Image::new(BLOCKS.into()));
        let mut standby = site.open(&image);
        standby.remember_bases(BasesMemory::new([memory_bytes; 2]));
        let mut primary = Differing::attach(&mut standby);
        for step in 0..600 {
            let frame = primary.write();
            standby.handle_frame(frame).unwrap_or_else(|error| panic!("{base:?}, step {step}: {error}"));
            // Bases are in what is staged, in the journal, and in the image.
            match primary.random() % 8 {
                0 => primary.commit(&mut standby),
                1 => drop(standby.fold_one().unwrap()),
                2 => {
                    primary.commit(&mut standby);
                    while standby.fold_one().unwrap() {}
                }
                _ => {}
            }
        }
        primary.commit(&mut standby);
        standby.settle().unwrap();
        assert!(content_of(&image) == primary.content, "{base:?}: the copy is another");
        assert!(primary.deltas > 500, "{}", primary.deltas);
    }
}

#[test]
fn a_base_that_is_damaged_is_noticed_and_sent_whole_then() {
    let (site, image) = (Site::new(BLOCKS.into(), Base::Point), Image::new(BLOCKS.into()));
    let mut standby = site.open(&image);
    let mut primary = Differing::attach(&mut standby);
    primary.begin(&mut standby);
    while standby.fold_one().unwrap() {}
    image.write(Run::new(5, 1).unwrap(), &[3; BLOCK_BYTES]).unwrap();
    let answer = standby.handle_frame(primary.change());
    assert!(matches!(answer, Err(StandbyError::Payload(PayloadError::Base))), "{answer:?}");
    assert!(!standby.journal().has_staged());
    standby.handle_disconnected();
    let (epoch, content) = (primary.primary.epoch, primary.content);
    let mut primary = Differing { content, ..Differing::attach(&mut standby) };
    primary.primary.epoch = epoch;
    standby.handle_frame(primary.change()).unwrap();
    assert_eq!(primary.deltas, 0, "another connection");
    primary.commit(&mut standby);
    standby.settle().unwrap();
    assert!(content_of(&image) == primary.content);
}

/// A copy that has an epoch of a primary, is told something else, and then gets a difference to that epoch.
fn refuses_difference_after(between: impl FnOnce(&mut Standby<SegmentDir>, &mut Differing)) {
    let (site, image) = (Site::new(BLOCKS.into(), Base::Point), Image::new(BLOCKS.into()));
    let mut standby = site.open(&image);
    let mut primary = Differing::attach(&mut standby);
    primary.begin(&mut standby);
    between(&mut standby, &mut primary);
    let answer = standby.handle_frame(primary.change());
    assert!(matches!(answer, Err(StandbyError::Payload(PayloadError::NoBase(5)))), "{answer:?}");
    assert_eq!(primary.deltas, 2);
}

#[test]
fn a_difference_to_what_did_not_come_is_refused() {
    let zeroes = |run| {
        let digest = *blake3::hash(&[]).as_bytes();
        Blocks { runs: vec![(run, Content::Zero)], encoding: Encoding::Plain, digest, payload: Bytes::new() }
    };
    let told = |message: Message| {
        move |standby: &mut Standby<SegmentDir>, _: &mut Differing| drop(standby.handle_frame(Primary::frame(message)).unwrap())
    };
    refuses_difference_after(told(Message::Abandon));
    refuses_difference_after(told(Message::Blocks(zeroes(Run::new(0, u32::MAX - 1).unwrap()))));
    let frame = Encoder::new().unwrap().encode(&[Run::new(5, 1).unwrap()], &[1; BLOCK_BYTES]);
    refuses_difference_after(told(Message::Blocks(frame)));
    let mut question = Compare::new(1, Against::Epoch);
    question.add(5, [1; 16]);
    refuses_difference_after(told(Message::Compare(question)));
    refuses_difference_after(|standby, primary| {
        standby.handle_disconnected();
        standby.handle_frame(primary.primary.attach_frame()).unwrap();
        // Its stream begins anew, and nothing else does.
        let mut other = Encoder::with_bases(BasesMemory::new([1 << 20; 2])).unwrap();
        other.handle_answer(&Message::Committed(1));
        for byte in [1, 2] {
            other.encode_with(&[Run::new(5, 2).unwrap()], &[byte; 2 * BLOCK_BYTES], HISTORY);
        }
        let begins = other.encode_with(&[Run::new(9, 1).unwrap()], &[1; BLOCK_BYTES], Compression::WithHistory(5));
        standby.handle_frame(Primary::frame(Message::Blocks(begins))).unwrap();
        primary.content[5 * BLOCK_BYTES..7 * BLOCK_BYTES].fill(2);
        (primary.encoder, primary.level) = (other, 5);
    });
}

#[test]
fn a_difference_by_itself_is_no_message() {
    let mut content = [1; BLOCK_BYTES];
    exclusive_or(&[2; BLOCK_BYTES], &mut content);
    let mut blocks = Encoder::new().unwrap().encode(&[Run::new(5, 1).unwrap()], &content);
    blocks.runs[0].1 = Content::Delta;
    let (site, image) = (Site::new(BLOCKS.into(), Base::Point), Image::new(BLOCKS.into()));
    let mut standby = site.open(&image);
    Differing::attach(&mut standby);
    assert!(matches!(standby.handle_frame(Primary::frame(Message::Blocks(blocks))), Err(StandbyError::Frame(_))));
}

#[test]
fn what_came_too_long_ago_leaves_the_index() {
    let mut arrived = Arrived::default();
    let payload = Bytes::from(vec![1; BLOCK_BYTES]);
    for block in 0..3 * MAX_BASE_AGE_BLOCKS as u32 {
        let runs = vec![(Run::new(block, 1).unwrap(), Content::Data)];
        arrived.add(&Blocks { runs, encoding: Encoding::Plain, digest: [0; 32], payload: payload.clone() }, None);
    }
    let len = arrived.places.len() as u64;
    assert!((MAX_BASE_AGE_BLOCKS..=MAX_BASE_AGE_BLOCKS + SWEEP_BLOCKS).contains(&len), "{len} entries");
}
