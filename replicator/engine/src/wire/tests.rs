//! Every message survives the wire; nothing else gets through it.

use super::*;
use crate::generation::MAX_NUMBER;
use proptest::prelude::*;

fn lineage() -> Lineage {
    Lineage::first(Id([1; 16])).promoted(Id([2; 16]), 17)
}

fn messages() -> Vec<Message> {
    let run = |start, len| Run::new(start, len).unwrap();
    vec![
        Message::Attach(Attach { volume: Id([7; 16]), size_bytes: 1 << 40, lineage: lineage() }),
        Message::Blocks(Blocks {
            runs: vec![(run(0, 1 << 28), Content::Zero), (run(5, 1), Content::Data)],
            encoding: Encoding::Plain,
            digest: [9; 32],
            payload: Bytes::from(vec![3; 4096]),
        }),
        Message::Compare(Compare {
            ticket: 4,
            against: Against::Point,
            runs: vec![(run(8, 2), Content::Data), (run(20, 9), Content::Zero)],
            fingerprints: vec![[1; 16], [2; 16]],
        }),
        Message::Commit(Commit { epoch: 8, blocks: 3, digest: [1; 32], size_bytes: 4096, cut_unix_ms: 77, group: None }),
        Message::Abandon,
        Message::Attached(Attached { replica: Id([3; 16]), committed: 9, base: Base::PointBut((5..700).collect()) }),
        Message::Attached(Attached { replica: Id([3; 16]), committed: 0, base: Base::Blank }),
        Message::Refused(Refused { reason: Refusal::Stale, text: "no".into(), lineage: lineage() }),
        Message::Compared(Compared { ticket: 4, different: vec![run(9, 1)] }),
        Message::Committed(MAX_NUMBER),
        Message::Damaged(vec![run(9, 1), run(700, 2)]),
    ]
}

fn frames() -> Vec<Bytes> {
    let generation = lineage().current();
    messages().into_iter().map(|message| Envelope { generation, message }.encode()).collect()
}

#[test]
fn every_message_survives_the_wire() {
    for (message, frame) in messages().into_iter().zip(frames()) {
        assert_eq!(Envelope::decode(frame).unwrap().message, message);
    }
}

#[test]
fn a_message_cut_short_or_with_more_behind_it_is_refused() {
    for (message, frame) in messages().iter().zip(frames()) {
        for len in 0..frame.len() {
            assert!(Envelope::decode(frame.slice(..len)).is_err(), "{message:?} cut at {len}");
        }
        let longer = [frame.as_ref(), &[0]].concat();
        assert!(Envelope::decode(longer.into()).is_err(), "{message:?} with a byte more");
    }
}

#[test]
fn limits_are_limits() {
    let generation = lineage().current();
    let compare = |blocks: u32, zeroes: u32| {
        let zeroes = Run::new(1 << 20, zeroes).map(|run| (run, Content::Zero));
        let runs = [(Run::new(0, blocks).unwrap(), Content::Data)].into_iter().chain(zeroes).collect();
        let fingerprints = vec![[0; 16]; blocks as usize];
        let message = Message::Compare(Compare { ticket: 0, against: Against::Epoch, runs, fingerprints });
        Envelope::decode(Envelope { generation, message }.encode())
    };
    assert!(compare(MAX_COMPARE_BLOCKS - 1, 0).is_ok() && compare(MAX_COMPARE_BLOCKS, 0).is_ok());
    assert_eq!(compare(MAX_COMPARE_BLOCKS + 1, 0), Err(DecodeError::OutOfRange("number of blocks")));
    assert!(compare(1, MAX_COMPARE_ZEROES - 1).is_ok());
    assert_eq!(compare(1, MAX_COMPARE_ZEROES), Err(DecodeError::OutOfRange("number of blocks")));
    let blocks = |blocks: u32| {
        let payload = Bytes::from(vec![0; blocks as usize * 4096]);
        let runs = vec![(Run::new(0, blocks).unwrap(), Content::Data)];
        let message = Message::Blocks(Blocks { runs, encoding: Encoding::Plain, digest: [0; 32], payload });
        Envelope::decode(Envelope { generation, message }.encode())
    };
    assert!(blocks(MAX_CONTENT_BLOCKS - 1).is_ok() && blocks(MAX_CONTENT_BLOCKS).is_ok());
    assert_eq!(blocks(MAX_CONTENT_BLOCKS + 1), Err(DecodeError::OutOfRange("content")));
}

#[test]
fn numbers_that_cannot_be_counted_on_from_are_refused() {
    let decode = |generation, message| Envelope::decode(Envelope { generation, message }.encode());
    let sound = lineage().current();
    let commit = Commit { epoch: MAX_NUMBER + 1, blocks: 0, digest: [0; 32], size_bytes: 4096, cut_unix_ms: 0, group: None };
    let attached = Attached { replica: Id([3; 16]), committed: u64::MAX, base: Base::Point };
    for message in [Message::Commit(commit), Message::Attached(attached), Message::Committed(u64::MAX)] {
        assert_eq!(decode(sound, message), Err(DecodeError::OutOfRange("epoch")));
    }
    for generation in [Generation { counter: u64::MAX, ..sound }, Generation { branch_epoch: u64::MAX, ..sound }] {
        assert_eq!(decode(generation, Message::Abandon), Err(DecodeError::OutOfRange("generation")));
    }
}

#[test]
fn a_text_that_is_no_text_is_not_longer_than_one() {
    let refused = Refused { reason: Refusal::Stale, text: "x".repeat(MAX_TEXT_BYTES), lineage: lineage() };
    let mut frame = Envelope { generation: lineage().current(), message: Message::Refused(refused) }.encode().to_vec();
    frame[36..36 + MAX_TEXT_BYTES].fill(0xff);
    let decoded = Envelope::decode(frame.into()).unwrap();
    assert_eq!(Envelope::decode(decoded.encode()), Ok(decoded));
}

proptest! {
    #[test]
    fn no_frame_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Envelope::decode(bytes.into());
    }

    #[test]
    fn no_damaged_frame_panics(which in 0usize..10, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut frame = frames()[which].to_vec();
        let at = at.index(frame.len().min(200));
        frame[at] = byte;
        let _ = Envelope::decode(frame.into());
    }
}
