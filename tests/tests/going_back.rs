//! A site that was promoted at an older recovery point serves it at once, while its image is still being led back to it.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::Value;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use tern_tests::{History, NbdClient, Pair, Site, dice};

const BLOCK: usize = 4096;
const MIB: u64 = 80;
/// What the point has in the volume's first part; the history is in the rest.
const STILL_MIB: u64 = 64;
const BLOCKS: Range<u32> = STILL_MIB as u32 * 256..MIB as u32 * 256;

fn kills() -> usize {
    std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(6)
}

fn client(site: &Site) -> NbdClient {
    NbdClient::connect(&site.socket("nbd")).unwrap()
}

/// Bytes that are still to be led back.
fn left(site: &Site) -> Option<u64> {
    site.volume()["going_back"]["bytes_left"].as_u64()
}

/// What the point has in one MiB: nobody can compress it.
fn noise(mib: u64) -> Vec<u8> {
    let mut noise = vec![0; 1 << 20];
    StdRng::seed_from_u64(mib).fill_bytes(&mut noise);
    noise
}

/// The point's content, and the whole history.
fn assert_whole(client: &mut NbdClient, history: &History) {
    let mut seen = vec![0; 1 << 20];
    for mib in 0..STILL_MIB {
        client.read(mib << 20, &mut seen).unwrap();
        assert!(seen == noise(mib), "MiB {mib} is not what it was at the point");
    }
    assert_eq!(history.assert_prefix(client), history.len());
}

/// A standby with a point that ends a history, and everything overwritten since; the point.
fn overwritten(history: &mut History) -> (Pair, String) {
    let pair = Pair::start(MIB as u32, "2s");
    let mut primary = client(&pair.a);
    let mut rng = dice();
    (0..STILL_MIB).for_each(|mib| primary.write(mib << 20, &noise(mib)).unwrap());
    for _ in 0..500 {
        history.write(&mut primary, &mut rng).unwrap();
    }
    let point = pair.a.tern(&["snapshot", "vm1"])["epoch"].to_string();
    // Every other block, so that it is led back block by block.
    (0..MIB << 20).step_by(2 * BLOCK).for_each(|offset| primary.write(offset, &[0xee; BLOCK]).unwrap());
    drop(primary);
    pair.a.tern(&["snapshot", "vm1"]);
    (pair, point)
}

/// Writes at the site until it is killed, after a while.
fn kill_under_load(site: &mut Site, history: &mut History, after: Duration) {
    let mut client = client(site);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let ended = history.write_while(&mut client, || !is_over.load(SeqCst));
            assert!(ended.is_err(), "it was killed");
        });
        thread::sleep(after);
        site.kill();
        is_over.store(true, SeqCst);
    });
}

/// `KILLS=n` kills more often.
#[test]
fn killed_again_and_again_while_it_is_led_back_it_is_the_point_and_what_was_acknowledged_since() {
    let mut history = History::within(BLOCKS);
    let (mut pair, point) = overwritten(&mut history);
    pair.a.kill();
    pair.b.tern(&["promote", "vm1", "--at", &point, "--force"]);
    let (mut rng, mut in_between) = (dice(), 0);
    for _ in 0..kills() {
        kill_under_load(&mut pair.b, &mut history, Duration::from_millis(rng.random_range(5..50)));
        pair.b.restart();
        in_between += usize::from(left(&pair.b) > Some(0));
        history.settle(&mut client(&pair.b));
    }
    assert!(in_between > 0, "it was done before it was killed");
    pair.b.wait_until("led back", |volume| volume["going_back"].is_null());
    pair.b.kill();
    pair.b.restart();
    assert_whole(&mut client(&pair.b), &history);
    pair.b.assert_no_panic();
}

#[test]
fn while_it_is_led_back_it_grows_and_replicates_and_does_not_step_down() {
    let mut history = History::within(BLOCKS);
    let (mut pair, point) = overwritten(&mut history);
    pair.b.tern(&["promote", "vm1", "--at", &point, "--force"]);
    let (code, said) = pair.b.try_tern(&["demote", "vm1"]).unwrap_err();
    assert!(code == 1 && (said.contains("led back") || left(&pair.b).is_none()), "{code} {said}");
    let (_, said) = pair.b.try_tern(&["drill", "vm1", "--nbd", "unix:/tmp/never"]).unwrap_err();
    assert!(said.contains("no standby"), "{said}");
    pair.b.tern(&["volume", "resize", "vm1", &format!("{}M", MIB + 16)]);
    let mut there = client(&pair.b);
    let beyond = (MIB + 8) << 20;
    there.write(beyond, &[b'g'; BLOCK]).unwrap();
    pair.b.kill();
    pair.b.restart();
    pair.a.wait_until("overtaken", |volume| volume["role"] == "stale");
    pair.a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    let mut there = client(&pair.b);
    history.write_for(&mut there, Duration::from_millis(500)).unwrap();
    pair.b.verify();
    assert_whole(&mut there, &history);
    let mut grown = vec![0; BLOCK];
    there.read(beyond, &mut grown).unwrap();
    assert_eq!(grown, [b'g'; BLOCK]);
    drop(there);
    pair.b.wait_until("led back", |volume| volume["going_back"].is_null());
    pair.a.tern(&["promote", "vm1"]);
    assert_whole(&mut client(&pair.a), &history);
    pair.assert_no_panic();
}

/// The disk loses a bit in the middle of what leads back.
fn rot(site: &Site) {
    let segments = walk(&site.state_dir().join("undo"));
    let largest = segments.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(largest, bytes).unwrap();
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn undo_that_cannot_be_read_is_told_and_what_it_costs_reads_as_zeroes_once_the_operator_accepts_that() {
    const MIB: u64 = 8;
    let mut pair = Pair::start(MIB as u32, "2s");
    let mut primary = client(&pair.a);
    (0..MIB).for_each(|mib| primary.write(mib << 20, &noise(mib)).unwrap());
    let point = pair.a.tern(&["snapshot", "vm1"])["epoch"].to_string();
    (0..MIB << 20).step_by(2 * BLOCK).for_each(|offset| primary.write(offset, &[0xee; BLOCK]).unwrap());
    drop(primary);
    pair.a.tern(&["snapshot", "vm1"]);
    // Once they are listed all is folded: the undo is there.
    pair.b.tern(&["points", "vm1"]);
    pair.b.kill();
    rot(&pair.b);
    pair.b.restart();
    pair.b.tern(&["promote", "vm1", "--at", &point, "--force"]);
    let told = |volume: &Value| {
        let of = |name: &str| volume["going_back"][name].as_u64();
        of("lost_blocks").is_some_and(|lost| lost > 0 && Some(lost * BLOCK as u64) == of("bytes_left"))
    };
    let seen = pair.b.wait_until("told", told);
    let (lost, first) = (seen["going_back"]["lost_blocks"].as_u64().unwrap(), seen["going_back"]["first_lost_block"].as_u64().unwrap());
    assert!(lost < 1000 && seen["last_error"].as_str().unwrap().contains("tern promote vm1 --force"), "{seen}");
    pair.b.kill();
    pair.b.restart();
    pair.b.wait_until("told again", told);
    let (code, said) = pair.b.try_tern(&["demote", "vm1"]).unwrap_err();
    assert!(code == 1 && said.contains("tern promote vm1 --force"), "{code} {said}");
    let mut content = vec![0xff; BLOCK];
    assert!(client(&pair.b).read(first * BLOCK as u64, &mut content).is_err());
    pair.a.wait_until("overtaken", |volume| volume["role"] == "stale");
    pair.a.tern(&["resync", "vm1", "--discard-local", "--yes"]);

    let (code, said) = pair.b.try_tern(&["promote", "vm1"]).unwrap_err();
    assert!(code == 4 && said.contains("zeroes"), "{code} {said}");
    let accepted = pair.b.tern(&["promote", "vm1", "--force"]);
    assert_eq!((accepted["damaged_blocks"].as_u64(), accepted["lost_bytes"].as_u64()), (Some(lost), Some(lost * BLOCK as u64)));
    pair.b.wait_until("led back", |volume| volume["going_back"].is_null() && volume["last_error"].is_null());
    assert_eq!(pair.b.try_tern(&["promote", "vm1", "--force"]).unwrap_err().0, 1, "that was all");
    let mut there = client(&pair.b);
    there.read(first * BLOCK as u64, &mut content).unwrap();
    assert_eq!(content, [0; BLOCK]);
    let (mut seen, mut zeroes) = (vec![0; 1 << 20], 0);
    for mib in 0..MIB {
        there.read(mib << 20, &mut seen).unwrap();
        for (found, expected) in seen.chunks(BLOCK).zip(noise(mib).chunks(BLOCK)) {
            assert!(found == expected || found == [0; BLOCK], "in MiB {mib}: neither the point nor a lost block");
            zeroes += u64::from(found != expected);
        }
    }
    assert_eq!(zeroes, lost);
    drop(there);
    pair.b.verify();
    pair.a.tern(&["promote", "vm1"]);
    pair.assert_no_panic();
}
