//! Going back after an unplanned failover: only what differs crosses the wire.

use rand::{Rng, RngExt};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};
use tern_tests::{NbdClient, Pair, Site, dice, rounds};

const BLOCK_BYTES: u64 = 4096;
/// What one compare by hash covers at most: extents of the activity log.
const EXTENT_BLOCKS: u64 = 1024;
/// A hash, and its share of what is around it.
const HASH_BYTES: u64 = 40;
/// Handshakes, and all that is said while nothing is sent.
const TALK_BYTES: u64 = 64 << 10;
/// Longer than it takes until what crossed the wire is counted.
const COUNTING: Duration = Duration::from_secs(2);

/// Writes random blocks within a range, with content that nothing makes shorter; which they were.
fn write(site: &Site, count: u32, within: Range<u64>) -> BTreeSet<u64> {
    let (mut client, mut dice) = (NbdClient::connect(&site.socket("nbd")).unwrap(), dice());
    let mut content = [0; BLOCK_BYTES as usize];
    let blocks: BTreeSet<_> = (0..count).map(|_| dice.random_range(within.clone())).collect();
    for block in &blocks {
        dice.fill_bytes(&mut content);
        client.write(block * BLOCK_BYTES, &content).unwrap();
    }
    client.flush().unwrap();
    blocks
}

/// Fills the volume, so that no block that differs is a hole at the other site.
fn fill(site: &Site, mib: u32) {
    let (mut client, mut content) = (NbdClient::connect(&site.socket("nbd")).unwrap(), vec![0; 1 << 20]);
    for at in 0..mib {
        dice().fill_bytes(&mut content);
        client.write(u64::from(at) << 20, &content).unwrap();
    }
}

/// All that crossed the wire for the volume, as the site counted it.
fn wire_bytes(site: &Site) -> u64 {
    let volume = site.volume();
    volume["wire_bytes_sent"].as_u64().unwrap() + volume["wire_bytes_received"].as_u64().unwrap()
}

/// The same, once at least so much has been counted and nothing is added any more.
fn final_wire_bytes(site: &Site, at_least: u64) -> u64 {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = wire_bytes(site);
        if now != last {
            (last, since) = (now, Instant::now());
        } else if now >= at_least && since.elapsed() > COUNTING {
            return now;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{now} bytes, not {at_least}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum OldPrimary {
    Unreachable,
    Crashed,
}

/// `FAILBACK_BLOCKS=100000` is an hour's worth.
#[test]
fn a_failback_after_an_unplanned_failover_sends_only_what_differs() {
    let blocks = rounds("FAILBACK_BLOCKS", 1000);
    let volume_mib = (blocks / 40).clamp(32, 4096);
    let volume_blocks = u64::from(volume_mib) << 8;
    for old_primary in [OldPrimary::Unreachable, OldPrimary::Crashed] {
        let mut pair = Pair::start(volume_mib, "1s");
        fill(&pair.a, volume_mib);
        pair.a.tern(&["snapshot", "vm1"]);
        pair.b.freeze();
        // What it has alone lies in some corner.
        let unsent = write(&pair.a, blocks / 10, 0..4 * EXTENT_BLOCKS);
        if old_primary == OldPrimary::Crashed {
            pair.a.kill();
        } else {
            pair.a.freeze();
        }
        pair.b.signal(Signal::CONT);
        pair.b.tern(&["promote", "vm1", "--force"]);
        let new = write(&pair.b, blocks, 0..volume_blocks);
        if old_primary == OldPrimary::Crashed {
            pair.a.restart();
        } else {
            pair.a.signal(Signal::CONT);
        }
        let Pair { a, b, .. } = &pair;
        a.wait_until("stale", |volume| volume["role"] == "stale");
        let before = wire_bytes(b);
        a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
        b.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
        let union = unsent.union(&new).count() as u64 * BLOCK_BYTES;
        let sent = final_wire_bytes(b, before + new.len() as u64 * BLOCK_BYTES) - before;
        let hashes = if old_primary == OldPrimary::Crashed { 4 * EXTENT_BLOCKS * HASH_BYTES } else { 0 };
        println!("{old_primary:?}: {sent} bytes for {union} that differ: {:.3}, hashes {hashes}", sent as f64 / union as f64);
        assert!(
            sent <= union * 11 / 10 + hashes + TALK_BYTES,
            "{old_primary:?}: {sent} bytes for {union} that differ, and {hashes} of hashes"
        );
        b.verify();
        a.assert_no_panic();
        b.assert_no_panic();
    }
}
