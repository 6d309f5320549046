//! What goes in comes out, in fewer bytes, or not at all.

use super::*;
use crate::documented::{PROTOCOL, example};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::wire::Envelope;

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
fn the_documented_difference_is_what_its_page_says() {
    let mut decoder = Decoder::new().unwrap();
    decoder.detach(Encoder::new().unwrap().encode_with(&[run(0, 1)], &noise(BLOCK_BYTES), HISTORY)).unwrap();
    let envelope = Envelope::decode(example(PROTOCOL, "blocks-with-a-difference").into()).unwrap();
    let Message::Blocks(blocks) = envelope.message else { panic!("another message") };
    let detached = decoder.detach(blocks).unwrap();
    let mut content = detached.payload.to_vec();
    exclusive_or(&[b'A'; BLOCK_BYTES], &mut content);
    assert_eq!(content, [b'B'; BLOCK_BYTES]);
    assert_eq!(blake3::hash(&content).as_bytes(), &detached.digest);
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

/// An encoder with memory for bases, whose standby has an epoch.
fn differing() -> Encoder {
    let mut encoder = Encoder::with_bases(BasesMemory::new([1 << 20; 2])).unwrap();
    encoder.handle_answer(&Message::Committed(1));
    encoder
}

const HISTORY: Compression = Compression::WithHistory(3);

#[test]
fn a_block_that_changed_a_little_goes_as_what_differs() {
    let (mut encoder, mut decoder) = (differing(), Decoder::new().unwrap());
    let mut content = noise(4 * BLOCK_BYTES);
    decoder.detach(encoder.encode_with(&[run(7, 4)], &content, HISTORY)).unwrap();
    let base = content.clone();
    content[BLOCK_BYTES + 9] ^= 1;
    content[2 * BLOCK_BYTES..3 * BLOCK_BYTES].fill(0);
    content[3 * BLOCK_BYTES..].copy_from_slice(&noise(5 * BLOCK_BYTES)[4 * BLOCK_BYTES..]);
    let sent = encoder.encode_with(&[run(7, 4)], &content, HISTORY);
    let kinds = [(run(7, 2), Content::Delta), (run(9, 1), Content::Zero), (run(10, 1), Content::Data)];
    assert_eq!(sent.runs, kinds);
    assert!(sent.payload.len() < BLOCK_BYTES + 100, "{}", sent.payload.len());
    let mut there = decoder.detach(sent).unwrap().payload.to_vec();
    exclusive_or(&base[..2 * BLOCK_BYTES], &mut there[..2 * BLOCK_BYTES]);
    assert_eq!(there, [&content[..2 * BLOCK_BYTES], &content[3 * BLOCK_BYTES..]].concat());
    let again = encoder.encode_with(&[run(9, 1)], &base[..BLOCK_BYTES], HISTORY);
    assert_eq!(again.runs, [(run(9, 1), Content::Data)], "zeroes are no base");
}

#[test]
fn differences_go_as_such_when_there_is_no_time_to_compress() {
    let (mut encoder, content) = (differing(), noise(4 * BLOCK_BYTES));
    encoder.encode_with(&[run(0, 4)], &content, HISTORY);
    let kind = encoder.encode_with(&[run(0, 3)], &content[..3 * BLOCK_BYTES], Compression::Quick).runs[0];
    assert_eq!(kind, (run(0, 3), Content::Delta));
    let rest = encoder.encode_with(&[run(3, 4)], &content, Compression::Quick);
    assert_eq!((rest.runs[0], rest.encoding.needs_history()), ((run(3, 4), Content::Data), false), "all of it is new");
}

#[test]
fn nothing_goes_as_a_difference_to_what_the_standby_may_not_have() {
    let content = noise(BLOCK_BYTES);
    let kind_after = |between: fn(&mut Encoder)| {
        let mut encoder = differing();
        encoder.encode_with(&[run(7, 1)], &noise(BLOCK_BYTES), HISTORY);
        between(&mut encoder);
        encoder.encode_with(&[run(7, 1)], &content, HISTORY).runs[0].1
    };
    assert_eq!(kind_after(|_| {}), Content::Delta);
    assert_eq!(kind_after(Encoder::forget_history), Content::Data);
    assert_eq!(kind_after(|encoder| encoder.handle_answer(&Message::Damaged(vec![run(0, 9)]))), Content::Data);
    fn asked(against: Against) -> Message {
        let mut question = Compare::new(1, against);
        question.add(7, [1; 16]);
        Message::Compare(question)
    }
    assert_eq!(kind_after(|encoder| encoder.handle_sending(&asked(Against::Epoch))), Content::Data);
    assert_eq!(kind_after(|encoder| encoder.handle_sending(&asked(Against::Point))), Content::Delta);
    fn hole() -> Blocks {
        Encoder::new().unwrap().encode(&[run(7, 1)], &[0; BLOCK_BYTES])
    }
    assert_eq!(kind_after(|encoder| encoder.handle_sending(&Message::Blocks(hole()))), Content::Data);
    let abandoned = |encoder: &mut Encoder| {
        encoder.handle_sending(&Message::Abandon);
        encoder.handle_answer(&Message::Committed(1));
    };
    assert_eq!(kind_after(abandoned), Content::Data);
    assert_eq!(kind_after(|encoder| drop(encoder.encode(&[run(7, 1)], &noise(BLOCK_BYTES)))), Content::Data);
    assert_eq!(kind_after(|encoder| encoder.sends_deltas = false), Content::Data, "no epoch arrived");
}

#[test]
fn random_data_costs_no_more_than_it_is_long() {
    let mut encoder = differing();
    let content = noise(64 * BLOCK_BYTES);
    for level in [3, 5, 7] {
        let sent = encoder.encode_with(&[run(0, 64)], &content, Compression::WithHistory(level));
        encoder.forget_history();
        let frame = Envelope { generation: Lineage::first(Id([1; 16])).current(), message: Message::Blocks(sent) }.encode();
        assert!(frame.len() * 1000 < content.len() * 1001, "{} for {}", frame.len(), content.len());
    }
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
