//! Every message as docs/protocol.md shows it, byte for byte: another release has to read what this one writes.

use super::documented::{PROTOCOL, check_limit, example};
use super::*;
use crate::generation::{MAX_LINEAGE, MAX_NUMBER};
use crate::group::GroupCut;

fn run(start: u32, len: u32) -> Run {
    Run::new(start, len).unwrap()
}

fn lineage() -> Lineage {
    Lineage::first(Id([0x11; 16])).promoted(Id([0x22; 16]), 17)
}

fn content() -> [u8; 4096] {
    [b'A'; 4096]
}

fn fingerprint(block: &[u8]) -> Fingerprint {
    blake3::hash(block).as_bytes()[..16].try_into().unwrap()
}

fn blocks() -> Blocks {
    // A zstd frame by hand, so that no version of the library can make another: one block of 4096 times the same byte.
    let payload = Bytes::from_static(&[0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f, 0x03, 0x80, 0x00, b'A']);
    let runs = vec![(run(5, 1), Content::Data), (run(8, 1024), Content::Zero)];
    Blocks { runs, encoding: Encoding::Zstd, digest: *blake3::hash(&content()).as_bytes(), payload }
}

/// The payload is a zstd block by hand, too: 4096 times the same byte.
fn difference() -> Blocks {
    let payload = Bytes::from_static(&[0x02, 0x80, 0x00, b'A' ^ b'B']);
    Blocks {
        runs: vec![(run(5, 1), Content::Delta)],
        encoding: Encoding::History,
        digest: *blake3::hash(&[b'B'; 4096]).as_bytes(),
        payload,
    }
}

fn commit() -> Commit {
    let mut digest = EpochDigest::default();
    digest.add(&blocks());
    let (blocks, digest) = digest.value();
    Commit { epoch: 18, blocks, digest, size_bytes: 1 << 30, cut_unix_ms: 1_800_000_000_000, group: None }
}

fn attached(base: Base) -> Message {
    Message::Attached(Attached { replica: Id([0x88; 16]), committed: 17, base })
}

fn messages() -> [(&'static str, Message); 13] {
    let mut compare = Compare::new(7, Against::Epoch);
    compare.add(9, fingerprint(&content()));
    compare.add_zeroes(run(20, 900));
    let refused = Refused { reason: Refusal::Stale, text: "this site was promoted meanwhile".into(), lineage: lineage() };
    [
        ("attach", Message::Attach(Attach { volume: Id([0x77; 16]), size_bytes: 1 << 30, lineage: lineage() })),
        ("blocks", Message::Blocks(blocks())),
        ("blocks-with-a-difference", Message::Blocks(difference())),
        ("compare", Message::Compare(compare)),
        ("commit", Message::Commit(commit())),
        ("commit-of-a-group", Message::Commit(Commit { group: Some(GroupCut { group: Id([0x99; 16]), number: 21 }), ..commit() })),
        ("abandon", Message::Abandon),
        ("attached", attached(Base::Point)),
        ("attached-but", attached(Base::PointBut(RoaringBitmap::from_iter([3, 4, 70_000])))),
        ("refused", Message::Refused(refused)),
        ("compared", Message::Compared(Compared { ticket: 7, different: vec![run(9, 1)] })),
        ("committed", Message::Committed(18)),
        ("damaged", Message::Damaged(vec![run(9, 1), run(700, 2)])),
    ]
}

#[test]
fn every_message_has_the_documented_bytes() {
    for (name, message) in messages() {
        let (bytes, envelope) = (example(PROTOCOL, name), Envelope { generation: lineage().current(), message });
        assert_eq!(envelope.encode(), bytes, "{name}");
        assert_eq!(Envelope::decode(bytes.into()), Ok(envelope), "{name}");
    }
}

#[test]
fn every_code_of_an_enum_is_documented() {
    for (reason, words) in ["stale", "split brain", "unrelated", "the site is not a standby", "the standby has", "the message", "no room"]
        .into_iter()
        .enumerate()
    {
        assert!(PROTOCOL.contains(&format!("| {} | {words}", reason + 1)), "{words}");
    }
    assert_eq!([Refusal::Stale as u8, Refusal::Storage as u8], [1, 7]);
}

#[test]
fn every_limit_is_documented() {
    check_limit(PROTOCOL, "MAX_BASE_AGE_BLOCKS", MAX_BASE_AGE_BLOCKS);
    check_limit(PROTOCOL, "MAX_RUNS", MAX_RUNS as u64);
    check_limit(PROTOCOL, "MAX_CONTENT_BLOCKS", MAX_CONTENT_BLOCKS.into());
    check_limit(PROTOCOL, "MAX_COMPARE_BLOCKS", MAX_COMPARE_BLOCKS.into());
    check_limit(PROTOCOL, "MAX_COMPARE_ZEROES", MAX_COMPARE_ZEROES.into());
    check_limit(PROTOCOL, "MAX_DIFFERENT_RUNS", MAX_DIFFERENT_RUNS as u64);
    check_limit(PROTOCOL, "MAX_TEXT_BYTES", MAX_TEXT_BYTES as u64);
    check_limit(PROTOCOL, "MAX_LINEAGE", MAX_LINEAGE as u64);
    check_limit(PROTOCOL, "MAX_NUMBER", MAX_NUMBER);
}
