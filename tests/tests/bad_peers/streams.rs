//! What a paired site may not send on a replication stream.

use crate::forger::{Forger, Replication, ask, soon};
use crate::{Scene, id, lineage};
use bytes::Bytes;
use quinn::Connection;
use replicator::codec::Encoder;
use replicator::identity::Identity;
use replicator_engine::block::{BLOCK_BYTES, Run};
use replicator_engine::generation::{Generation, Id, Lineage};
use replicator_engine::sender::Compression;
use replicator_engine::wire::{
    Against, Attach, Attached, Base, Blocks, Commit, Compare, Content, Encoding, Envelope, EpochDigest, MAX_COMPARE_BLOCKS,
    MAX_CONTENT_BLOCKS, Message, Refusal,
};
use serde_json::json;

/// The volume that the forger has a standby of.
const SIZE_BYTES: u64 = 1 << 20;

fn encode(generation: Generation, message: Message) -> Bytes {
    Envelope { generation, message }.encode()
}

fn attach(volume: Id, size_bytes: u64, lineage: &Lineage) -> Bytes {
    encode(lineage.current(), Message::Attach(Attach { volume, size_bytes, lineage: lineage.clone() }))
}

fn blocks(start: u32, digest: [u8; 32]) -> Blocks {
    let runs = vec![(Run::new(start, 1).unwrap(), Content::Data)];
    Blocks { runs, encoding: Encoding::Plain, digest, payload: Bytes::from(vec![b'f'; BLOCK_BYTES]) }
}

fn honest(start: u32) -> Blocks {
    // Of the payload, as a primary computes it.
    blocks(start, *blake3::hash(&[b'f'; BLOCK_BYTES]).as_bytes())
}

/// A piece of a stream of which the beginning never came, and a beginning that grows beyond its blocks.
fn forged_streams() -> [Blocks; 2] {
    let run = Run::new(0, MAX_CONTENT_BLOCKS).unwrap();
    let content = vec![1; run.len_bytes() as usize];
    let large = Encoder::new().unwrap().encode_with(&[run], &content, Compression::WithHistory(3));
    [Blocks { encoding: Encoding::History, ..honest(3) }, Blocks { encoding: large.encoding, payload: large.payload, ..honest(3) }]
}

fn commit(epoch: u64, sent: &[Blocks]) -> Message {
    let mut digest = EpochDigest::default();
    sent.iter().for_each(|blocks| digest.add(blocks));
    let (blocks, digest) = digest.value();
    Message::Commit(Commit { epoch, blocks, digest, size_bytes: SIZE_BYTES, cut_unix_ms: 0, group: None })
}

/// A link, and a standby at the other side.
async fn with_standby(scene: &Scene) -> Connection {
    let link = scene.forger.link().await;
    let first = json!([{"counter": 1, "id": id(1).to_string(), "branch_epoch": 0}]);
    let question = json!({"ask": "create-standby", "name": "vm7", "volume": id(7).to_string(), "size_bytes": SIZE_BYTES, "lineage": first});
    assert_eq!(ask(&link, &serde_json::to_vec(&question).unwrap()).await["answer"], "done");
    link
}

/// A stream that has begun well.
async fn attached(link: &Connection, lineage: &Lineage) -> (Replication, Attached) {
    let mut stream = Replication::open(link, id(7)).await;
    stream.send(&attach(id(7), SIZE_BYTES, lineage)).await;
    match stream.receive().await {
        Message::Attached(attached) => (stream, attached),
        other => panic!("{other:?}"),
    }
}

/// Makes a recovery point.
async fn make_point(link: &Connection, lineage: &Lineage, epoch: u64) {
    let (mut stream, _) = attached(link, lineage).await;
    stream.send(&encode(lineage.current(), Message::Blocks(honest(3)))).await;
    stream.send(&encode(lineage.current(), commit(epoch, &[honest(3)]))).await;
    assert_eq!(stream.receive().await, Message::Committed(epoch));
}

/// Lesson: a migration stream is trusted (QEMU CVE-2014-7840): blocks lie within the size that the stream began with.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_break_the_rules_are_refused_and_change_nothing() {
    let scene = Scene::start().await;
    let link = with_standby(&scene).await;
    make_point(&link, &lineage(), 5).await;
    let now = lineage().current();
    let other = Generation { counter: 9, ..now };
    let wide = vec![(Run::new(0, MAX_COMPARE_BLOCKS + 1).unwrap(), Content::Data)];
    let fingerprints = vec![[0; 16]; MAX_COMPARE_BLOCKS as usize + 1];
    let [middle, bomb] = forged_streams();
    for (frame, reason, words) in [
        (Bytes::from_static(&[0xee; 500]), Refusal::Protocol, "no message"),
        (Bytes::new(), Refusal::Protocol, "cut short"),
        (encode(now, Message::Blocks(honest(3))).slice(..100), Refusal::Protocol, "out of range"),
        (encode(now, Message::Blocks(blocks(3, [0; 32]))), Refusal::Protocol, ""),
        (encode(now, Message::Blocks(middle)), Refusal::Protocol, "the beginning is missing"),
        (encode(now, Message::Blocks(bomb)), Refusal::Protocol, "does not decompress to the length"),
        (encode(now, commit(6, &[honest(3)])), Refusal::Protocol, "count or digest"),
        (encode(now, commit(5, &[])), Refusal::Protocol, "not after the last"),
        (encode(now, Message::Committed(6)), Refusal::Protocol, "not to a standby"),
        (encode(other, Message::Abandon), Refusal::Stale, "another generation"),
        (
            encode(now, Message::Compare(Compare { ticket: 1, against: Against::Point, runs: wide, fingerprints })),
            Refusal::Protocol,
            "number of blocks",
        ),
    ] {
        let (mut stream, Attached { committed, base, .. }) = attached(&link, &lineage()).await;
        assert_eq!((committed, base), (5, Base::Point));
        stream.send(&frame).await;
        stream.expect_refusal(reason, words).await;
    }
    for (frame, reason, words) in [
        (encode(now, Message::Blocks(honest(3))), Refusal::Protocol, "did not begin with an attach"),
        (attach(id(8), SIZE_BYTES, &lineage()), Refusal::Unrelated, "another volume"),
        (attach(id(7), u64::MAX, &lineage()), Refusal::Protocol, "no volume can have that size"),
        (attach(id(7), SIZE_BYTES, &Lineage::first(id(9))), Refusal::Unrelated, "no generation in common"),
    ] {
        let mut stream = Replication::open(&link, id(7)).await;
        stream.send(&frame).await;
        stream.expect_refusal(reason, words).await;
    }
    let lines = scene.pair.a.logged(&["WARN", "the primary is refused"]).len();
    assert!((10..=15).contains(&lines), "a line each, up to a limit: {lines}");
    scene.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_or_a_rival_generation_is_refused_and_the_newer_one_goes_on() {
    let scene = Scene::start().await;
    let link = with_standby(&scene).await;
    make_point(&link, &lineage(), 5).await;
    let (newer, rival) = (lineage().promoted(id(2), 5), lineage().promoted(id(3), 5));
    make_point(&link, &newer, 6).await;
    for (old, reason, words) in [(lineage(), Refusal::Stale, "a later generation"), (rival, Refusal::SplitBrain, "both sites were primary")]
    {
        let mut stream = Replication::open(&link, id(7)).await;
        stream.send(&attach(id(7), SIZE_BYTES, &old)).await;
        stream.expect_refusal(reason, words).await;
    }
    let (_, Attached { committed, .. }) = attached(&link, &newer).await;
    assert_eq!(committed, 6);
    // The volume of others, with a generation that none of them has seen.
    let volume = scene.volume();
    let bytes: Vec<u8> = (0..16).map(|at| u8::from_str_radix(&volume[2 * at..2 * at + 2], 16).unwrap()).collect();
    let volume = Id(bytes.try_into().unwrap());
    let mut stream = Replication::open(&link, volume).await;
    stream.send(&attach(volume, 16 << 20, &newer)).await;
    stream.expect_refusal(Refusal::NotStandby, "no standby of the volume").await;
    scene.end();
}

fn settings(mode: &str, others: serde_json::Value) -> Vec<u8> {
    let settings = json!({"mode": mode, "rpo_ms": 5000, "others": others});
    serde_json::to_vec(&json!({"ask": "settings", "volume": id(7).to_string(), "settings": settings})).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_primary_that_is_attached_says_how_a_volume_is_replicated_or_what_others_have() {
    let scene = Scene::start().await;
    let (directory, token) = (tempfile::tempdir().unwrap(), scene.pair.a.tern(&["peer", "invite"]));
    let second = Forger::paired(directory.path(), "second", scene.pair.a.listen(), token["token"].as_str().unwrap()).await;
    let link = with_standby(&scene).await;
    assert_eq!(ask(&link, &settings("sync", json!([]))).await["code"], "wrong-state", "nobody is attached");
    let (stream, _) = attached(&link, &lineage()).await;
    let site = Identity::load_or_create(directory.path()).unwrap().id().to_string();
    let others = json!([{"site": site, "name": "second", "settings": {"mode": "async", "rpo_ms": 5000}}]);
    assert_eq!(ask(&link, &settings("barrier", others)).await["answer"], "done");
    let theirs = second.link().await;
    let everywhere = json!({"ask": "everywhere", "volume": id(7).to_string(), "epoch": 9});
    for question in [settings("async", json!([])), serde_json::to_vec(&everywhere).unwrap()] {
        assert_eq!(ask(&theirs, &question).await["code"], "wrong-state", "another standby of the volume");
        assert_eq!(scene.pair.a.tern(&["status", "vm7"])["volumes"][0]["mode"], "barrier");
    }
    drop(stream);
    scene.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_costs_neither_memory_nor_log() {
    let scene = Scene::start().await;
    let link = with_standby(&scene).await;
    make_point(&link, &lineage(), 5).await;
    let mut half = Vec::new();
    for _ in 0..200 {
        // The largest frame, of which only the beginning ever comes.
        let (mut stream, _) = attached(&link, &lineage()).await;
        soon(stream.send.write_all(&(4_u32 << 20).to_le_bytes())).await.unwrap();
        soon(stream.send.write_all(&[1; 1000])).await.unwrap();
        half.push(stream);
    }
    let (mut stream, _) = attached(&link, &lineage()).await;
    // Empty frames, more than anybody could want to keep: they are refused, and what comes behind is not kept either.
    let empty = vec![0; 4 * 250_000];
    let _ = soon(stream.send.write_all(&empty)).await;
    drop(half);
    for _ in 0..100 {
        let (mut stream, _) = attached(&link, &lineage()).await;
        stream.send(&[0xee; 100]).await;
        stream.expect_refusal(Refusal::Protocol, "").await;
    }
    let lines = scene.pair.a.logged(&["the primary is refused"]).len();
    assert!(lines <= 15, "{lines} lines");
    scene.end();
}
