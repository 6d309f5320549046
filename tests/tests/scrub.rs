//! A standby's disk that loses what was written: found, told, and mended from the primary.

use std::fs::File;
use std::os::unix::fs::FileExt;
use tern_tests::{NbdClient, Pair, Site};

const BLOCK: usize = 4096;
/// Blocks that are written, one beside the other.
const BLOCKS: u64 = 512;

/// Content that no two blocks share.
fn content(block: u64, round: u8) -> [u8; BLOCK] {
    let mut content = [round; BLOCK];
    content[..8].copy_from_slice(&block.to_le_bytes());
    content
}

fn write(client: &mut NbdClient, round: u8) {
    for block in 0..BLOCKS {
        client.write(block * BLOCK as u64, &content(block, round)).unwrap();
    }
}

/// The image that a site's daemon made.
fn image(site: &Site) -> File {
    let dir = site.state_dir().join("images");
    let path = std::fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    File::options().read(true).write(true).open(path).unwrap()
}

/// The disk loses one bit.
fn flip(site: &Site, block: u64) {
    let (image, offset) = (image(site), block * BLOCK as u64 + 1234);
    let mut byte = [0];
    image.read_exact_at(&mut byte, offset).unwrap();
    image.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    image.sync_all().unwrap();
}

fn at_disk(site: &Site, block: u64) -> [u8; BLOCK] {
    let mut content = [0; BLOCK];
    image(site).read_exact_at(&mut content, block * BLOCK as u64).unwrap();
    content
}

/// What was found and mended, and what is left to be.
fn counts(site: &Site) -> (u64, u64, u64) {
    let seen = site.volume();
    let count = |name: &str| seen["scrub"][name].as_u64().unwrap_or_else(|| panic!("{seen}"));
    (count("found_blocks"), count("repaired_blocks"), count("damaged_blocks"))
}

fn mended(site: &Site, found: u64) {
    site.wait_until("mended", |seen| {
        seen["scrub"]["found_blocks"] == found && seen["scrub"]["repaired_blocks"] == found && seen["scrub"]["damaged_blocks"] == 0
    });
}

#[test]
fn a_flipped_bit_in_a_standbys_image_is_found_told_and_mended_from_the_primary() {
    let pair = Pair::start(16, "500ms");
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    write(&mut client, 1);
    pair.a.tern(&["snapshot", "vm1"]);
    let scrubbed = pair.b.tern(&["scrub", "vm1"]);
    assert!(scrubbed["found_blocks"] == 0 && scrubbed["unknown_blocks"] == 0 && scrubbed["last"].is_string(), "{scrubbed}");
    for block in [3, 300, 2000] {
        flip(&pair.b, block);
    }
    // By the time it ends the primary may have sent all of them.
    let _ = pair.b.try_tern(&["scrub", "vm1"]);
    mended(&pair.b, 3);
    assert_eq!((at_disk(&pair.b, 3), at_disk(&pair.b, 300)), (content(3, 1), content(300, 1)));
    assert_eq!(at_disk(&pair.b, 2000), [0; BLOCK], "where nobody ever wrote");
    assert!(!pair.b.logged(&["does not give back what was written"]).is_empty());
    pair.a.verify();
    let points = pair.b.tern(&["points", "vm1"]);
    assert!(points["points"].as_array().unwrap().len() > 1, "older points outlive a repair: {points}");
    pair.assert_no_panic();
}

#[test]
fn damage_is_remembered_over_a_restart_and_told_to_whoever_promotes() {
    let mut pair = Pair::start(16, "500ms");
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    write(&mut client, 1);
    pair.a.tern(&["snapshot", "vm1"]);
    drop(client);
    pair.a.kill();
    // Folds what has come: it would mend the block.
    pair.b.tern(&["points", "vm1"]);
    flip(&pair.b, 7);
    let (code, said) = pair.b.try_tern(&["scrub", "vm1"]).unwrap_err();
    assert!(code == 1 && said.contains("\"first_damaged_block\": 7") || said.contains("\"first_damaged_block\":7"), "{code} {said}");
    pair.b.stop();
    pair.b.restart();
    assert_eq!(counts(&pair.b), (1, 0, 1));
    let seen = pair.b.volume();
    assert!(seen["last_error"].as_str().is_some_and(|error| error.contains("the first of them 7")), "{seen}");
    pair.a.restart();
    mended(&pair.b, 1);

    pair.a.kill();
    flip(&pair.b, 8);
    assert_eq!(pair.b.try_tern(&["scrub", "vm1"]).unwrap_err().0, 1);
    let promoted = pair.b.tern(&["promote", "vm1", "--force"]);
    assert_eq!(promoted["damaged_blocks"], 1, "{promoted}");
    pair.b.assert_no_panic();
}

#[test]
fn kills_damage_nothing_and_an_old_primary_is_checked_once_it_was_compared() {
    let mut pair = Pair::start(16, "200ms");
    for round in 0..4 {
        let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
        write(&mut client, round);
        drop(client);
        pair.b.kill();
        pair.b.restart();
        pair.a.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
        let scrubbed = pair.b.tern(&["scrub", "vm1"]);
        assert_eq!((scrubbed["found_blocks"].as_u64(), scrubbed["unknown_blocks"].as_u64()), (Some(0), Some(0)), "{scrubbed}");
    }
    // The primary may not have seen yet that its standby was gone.
    pair.b.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
    pair.b.tern(&["promote", "vm1"]);
    pair.b.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
    let scrubbed = pair.a.tern(&["scrub", "vm1"]);
    assert!(scrubbed["unknown_blocks"].as_u64() > Some(BLOCKS), "{scrubbed}");
    pair.b.verify();
    assert_eq!(pair.a.tern(&["scrub", "vm1"])["unknown_blocks"], 0);
    flip(&pair.a, 5);
    let _ = pair.a.try_tern(&["scrub", "vm1"]);
    mended(&pair.a, 1);
    pair.b.verify();
    pair.assert_no_panic();
}

#[test]
fn both_sites_are_compared_on_a_schedule_and_what_was_found_survives_a_restart() {
    let mut pair = Pair::start(16, "500ms");
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    write(&mut client, 1);
    drop(client);
    assert!(pair.a.volume()["verified"].is_null());
    pair.a.set_flags(&["--proof-verify", "2s", "--proof-verify-rate", "8MiB"]);
    pair.a.restart();
    let seen = pair.a.wait_until("verified", |seen| seen["verified"]["blocks_compared"].as_u64() >= Some(4096));
    assert_eq!((seen["verified"]["blocks_different"].as_u64(), &seen["verified"]["error"]), (Some(0), &serde_json::Value::Null), "{seen}");

    // The primary's disk loses a bit behind everybody's back: nobody else can tell.
    flip(&pair.a, 9);
    let seen = pair.a.wait_until("found different", |seen| seen["verified"]["blocks_different"] == 1);
    assert!(seen["last_error"].as_str().is_some_and(|error| error.contains("differed in 1 blocks")), "{seen}");
    let damaged = pair.b.tern(&["scrub", "vm1"]);
    assert_eq!(damaged["found_blocks"], 0, "the standby has what it was sent: {damaged}");
    assert_eq!(pair.a.try_tern(&["verify", "vm1"]).unwrap_err().0, 1);
    pair.a.set_flags(&["--proof-verify", "none"]);
    pair.a.restart();
    assert_eq!(pair.a.volume()["verified"]["blocks_different"], 1);
    pair.a.assert_no_panic();
}
