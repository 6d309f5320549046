//! A site that was promoted at an older recovery point serves it at once, while its image is still being led back to it.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::ops::Range;
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
    pair.a.assert_no_panic();
    pair.b.assert_no_panic();
}
