//! An old primary becomes a standby, and what it had is kept whole beside that, until the operator lets it go.

use tern_tests::{NbdClient, Pair, Site};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 600;

/// Content that no two blocks share, nor two rounds.
fn content(block: u64, round: u8) -> [u8; BLOCK] {
    let mut content = [round; BLOCK];
    content[..8].copy_from_slice(&block.to_le_bytes());
    content
}

fn write(client: &mut NbdClient, blocks: impl Iterator<Item = u64>, round: u8) {
    for block in blocks {
        client.write(block * BLOCK as u64, &content(block, round)).unwrap();
    }
}

/// The volume as the old primary left it: every third block is of its own.
fn assert_old(site: &Site, socket: &str) {
    let path = site.socket(socket);
    site.tern(&["drill", "vm1", "--nbd", &format!("unix:{}", path.display()), "--at", "kept"]);
    let mut client = NbdClient::connect(&path).unwrap();
    let mut found = [0; BLOCK];
    for block in 0..BLOCKS {
        client.read(block * BLOCK as u64, &mut found).unwrap();
        assert!(found == content(block, if block.is_multiple_of(3) { 2 } else { 1 }), "block {block} is of round {}", found[BLOCK - 1]);
    }
    client.read(2000 * BLOCK as u64, &mut found).unwrap();
    assert_eq!(found, [0; BLOCK], "nobody had written there");
    drop(client);
    site.tern(&["drill", "vm1", "--end"]);
}

/// A pair of which the one was primary, died, and is stale now; and a client of the other.
fn overtaken() -> (Pair, NbdClient) {
    let mut pair = Pair::start(16, "200ms");
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    write(&mut client, 0..BLOCKS, 1);
    pair.a.tern(&["snapshot", "vm1"]);
    pair.b.kill();
    write(&mut client, (0..BLOCKS).step_by(3), 2);
    client.flush().unwrap();
    drop(client);
    pair.a.kill();
    pair.b.restart();
    pair.b.tern(&["promote", "vm1", "--force"]);
    let mut client = NbdClient::connect(&pair.b.socket("nbd")).unwrap();
    write(&mut client, (0..BLOCKS).step_by(2), 3);
    pair.a.restart();
    pair.a.wait_until("stale", |volume| volume["role"] == "stale");
    (pair, client)
}

/// The disk loses the header of the record in the middle of what is kept.
fn rot(site: &Site) {
    let dir = std::fs::read_dir(site.state_dir().join("old")).unwrap().next().unwrap().unwrap().path();
    let segment = dir.join("0000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let records: Vec<usize> = bytes.windows(4).enumerate().filter(|(_, four)| four == b"TJR1").map(|(at, _)| at).collect();
    bytes[records[records.len() / 2]] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
}

#[test]
fn an_old_state_whose_log_is_damaged_is_never_shown_and_keeps_nothing_from_going_on() {
    let (mut pair, mut client) = overtaken();
    pair.a.tern(&["resync", "vm1", "--discard-local"]);
    pair.b.verify();
    pair.a.kill();
    rot(&pair.a);
    pair.a.restart();
    let seen = pair.a.wait_until("degraded", |volume| volume["state"] == "degraded");
    let why = seen["last_error"].as_str().unwrap();
    assert!(why.contains("old state") && why.contains("segment 1 cannot be read from byte") && why.contains("--yes"), "{why}");
    let points = pair.a.tern(&["points", "vm1"]);
    assert!(points["points"][0]["pinned"] == true && points["points"][0]["damaged_blocks"] == 4096, "{points}");
    let (code, said) = pair.a.try_tern(&["drill", "vm1", "--nbd", "unix:/nowhere/x", "--at", "kept"]).unwrap_err();
    assert!(code == 1 && said.contains("is lost"), "{code} {said}");
    write(&mut client, 0..BLOCKS, 4);
    pair.b.verify();
    pair.a.kill();
    pair.a.restart();
    pair.a.wait_until("degraded", |volume| volume["state"] == "degraded");
    pair.a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    pair.a.wait_until("in sync", |volume| volume["state"] == "in-sync" && volume["kept_bytes"] == 0);
    pair.a.kill();
    pair.a.restart();
    pair.a.wait_until("in sync", |volume| volume["state"] == "in-sync");
    assert!(pair.a.volume()["kept_bytes"] == 0, "it is gone");
    pair.a.assert_no_panic();
}

#[test]
fn what_an_old_primary_had_is_kept_whole_over_kills_and_new_writes_until_it_is_let_go() {
    let (mut pair, mut client) = overtaken();
    let given_up = pair.a.tern(&["resync", "vm1", "--discard-local"]);
    assert!(given_up["kept"] == true && given_up["blocks"].as_u64() >= Some(BLOCKS / 3), "{given_up}");
    // Killed while it is overwritten, again and again.
    for round in 4..8 {
        write(&mut client, (0..BLOCKS).skip(round as usize).step_by(5), round);
        pair.a.kill();
        pair.a.restart();
    }
    write(&mut client, 2000..2010, 9);
    pair.b.verify();
    let points = pair.a.tern(&["points", "vm1"]);
    assert!(points["points"][0]["pinned"] == true && points["points"][0]["bytes"].as_u64() > Some(BLOCKS / 3), "{points}");
    assert!(points["points"].as_array().unwrap()[1..].iter().all(|point| point["pinned"] == false), "{points}");
    assert_old(&pair.a, "drill");
    pair.a.kill();
    pair.a.restart();
    write(&mut client, 0..BLOCKS, 10);
    pair.b.verify();
    assert_old(&pair.a, "drill-again");

    drop(client);
    let (code, said) = pair.a.try_tern(&["promote", "vm1"]).unwrap_err();
    assert!(code == 4 && said.contains("--yes"), "{code} {said}");
    let (code, said) = pair.a.try_tern(&["resync", "vm1", "--discard-local"]).unwrap_err();
    assert!(code == 4 && said.contains("--yes"), "{code} {said}");
    assert!(pair.a.volume()["kept_bytes"].as_u64() > Some(0));
    assert_eq!(pair.a.tern(&["resync", "vm1", "--discard-local", "--yes"])["kept"], false);
    assert_eq!(pair.a.volume()["kept_bytes"], 0);
    assert_eq!(pair.a.try_tern(&["drill", "vm1", "--nbd", "unix:/nowhere/x", "--at", "kept"]).unwrap_err().0, 1);
    pair.a.kill();
    pair.a.restart();
    assert_eq!(pair.a.volume()["kept_bytes"], 0, "it is gone for good");
    pair.b.verify();
    pair.a.tern(&["promote", "vm1"]);
    pair.b.assert_no_panic();
    pair.a.assert_no_panic();
}
