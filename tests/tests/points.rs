//! Older recovery points: listed, kept over a crash, and gone back to.

use tern_tests::{NbdClient, Pair};

const BLOCK: usize = 4096;

fn write(client: &mut NbdClient, letter: u8) {
    for block in 0..8 {
        client.write(block * 7 * BLOCK as u64, &[letter; BLOCK]).unwrap();
    }
}

fn letters(client: &mut NbdClient) -> String {
    let letter = |block: u64| {
        let mut content = vec![0; BLOCK];
        client.read(block * 7 * BLOCK as u64, &mut content).unwrap();
        char::from(content[0])
    };
    (0..8).map(letter).collect()
}

/// The epochs of the points that the standby holds.
fn points(pair: &Pair) -> Vec<u64> {
    let list = pair.b.tern(&["points", "vm1"]);
    let points = list["points"].as_array().unwrap();
    assert!(points.iter().all(|point| point["time"].as_str().is_some_and(|time| time.ends_with('Z'))), "{list}");
    points.iter().map(|point| point["epoch"].as_u64().unwrap()).collect()
}

#[test]
fn a_standby_is_promoted_at_an_older_point_and_the_old_primary_follows_it() {
    let mut pair = Pair::start(16, "4s");
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    let cut = |client: &mut NbdClient, letter: u8, pair: &Pair| {
        write(client, letter);
        pair.a.tern(&["snapshot", "vm1"])["epoch"].as_u64().unwrap()
    };
    let epochs = b"abcde".map(|letter| cut(&mut client, letter, &pair));
    let kept = points(&pair);
    assert!(epochs.iter().all(|epoch| kept.contains(epoch)), "{epochs:?}: {kept:?}");
    assert!(pair.b.volume()["undo_bytes"].as_u64() > Some(0));

    pair.b.kill();
    pair.b.restart();
    assert_eq!(points(&pair), kept, "after a crash");

    let at = epochs[1].to_string();
    let (code, said) = pair.b.try_tern(&["promote", "vm1", "--at", &at]).unwrap_err();
    assert!(code == 4 && said.contains("--force"), "{code} {said}");
    let (code, said) = pair.b.try_tern(&["promote", "vm1", "--at", "99999", "--force"]).unwrap_err();
    assert!(code == 1 && said.contains("tern points"), "{code} {said}");

    pair.b.wait_until("the primary has attached again: it can be reached", |volume| volume["state"] != "disconnected");
    let promoted = pair.b.tern(&["promote", "vm1", "--at", &at, "--force"]);
    assert_eq!((promoted["kind"].as_str(), promoted["epoch"].as_u64()), (Some("failover"), Some(epochs[1])));
    // A busy machine may answer too late to be taken for reachable: then it hears of the new generation.
    pair.a.wait_until("the old primary stops", |volume| volume["state"] == "fenced" || volume["role"] == "stale");
    let mut there = NbdClient::connect(&pair.b.socket("nbd")).unwrap();
    assert_eq!(letters(&mut there), "bbbbbbbb");
    let stale = pair.a.wait_until("fenced", |volume| volume["role"] == "stale");
    let here = &stale["diverged"]["here"];
    assert!(here["blocks"].is_null() && here["exact"] == false, "what the other one gave up is not nothing: {stale}");

    write(&mut there, b'x');
    drop((client, there));
    pair.a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    pair.b.verify();
    pair.assert_no_panic();
}
