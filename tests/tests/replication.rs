//! Replication between two daemons: handover, failover, and the proof that both hold the same.

use rand::RngExt;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tern_tests::{History, NbdClient, Pair, dice, rounds};

#[test]
fn a_handover_loses_nothing_and_replication_turns_round() {
    let mut pair = Pair::start(16, "1s");
    let mut history = History::new(1024);
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    history.write_for(&mut client, Duration::from_secs(1)).unwrap();
    let (code, said) = pair.b.try_tern(&["promote", "vm1"]).unwrap_err();
    assert!(code == 4 && said.contains("client-active"), "{code} {said}");
    drop(client);
    pair.a.wait_until("without a client", |volume| volume["attached"].as_array().is_some_and(Vec::is_empty));
    let promotion = pair.b.tern(&["promote", "vm1"]);
    assert_eq!((&promotion["kind"], &promotion["lost_bytes"]), (&"handover".into(), &0.into()), "{promotion}");
    let mut client = NbdClient::connect(&pair.b.socket("nbd")).unwrap();
    assert_eq!(history.assert_prefix(&mut client), history.acknowledged());
    history.write_for(&mut client, Duration::from_millis(500)).unwrap();
    pair.b.verify();
    pair.b.restart();
    pair.b.verify();
    assert_eq!(pair.a.volume()["role"], "standby");
    pair.assert_no_panic();
}

/// Lesson: a promotion does not wait for a site that is dead (ceph#51540).
#[test]
fn after_a_failover_the_disk_is_a_prefix_of_the_history_and_the_old_primary_follows() {
    for _ in 0..rounds("FAILOVERS", 3) {
        let rpo = Duration::from_secs(1);
        let mut pair = Pair::start(16, "1s");
        let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
        let history = Mutex::new(History::new(1024));
        let span = Duration::from_millis(dice().random_range(1000..4000));
        let killed = std::thread::scope(|scope| {
            let writer = scope.spawn(|| history.lock().unwrap().write_for(&mut client, Duration::from_secs(60)));
            std::thread::sleep(span);
            let killed = Instant::now();
            pair.a.kill();
            writer.join().unwrap().unwrap_err();
            killed
        });
        let history = history.into_inner().unwrap();
        let (code, said) = pair.b.try_tern(&["promote", "vm1"]).unwrap_err();
        assert!(code == 4 && said.contains("--force"), "{code} {said}");
        let promotion = pair.b.tern(&["promote", "vm1", "--force"]);
        assert_eq!(promotion["kind"], "failover", "{promotion}");
        let mut client = NbdClient::connect(&pair.b.socket("nbd")).unwrap();
        let prefix = history.assert_prefix(&mut client);
        // A machine that is too busy for a single write has shown nothing.
        assert!(prefix > 0 || history.acknowledged() == 0, "none of {}", history.acknowledged());
        // What is asked for is a second; `bench rpo` measures it. A machine that builds something beside this may be late.
        assert!(history.lost(prefix, killed) <= 2 * rpo, "{prefix} of {}", history.acknowledged());
        drop(client);

        pair.a.restart();
        pair.a.wait_until("stale", |volume| volume["role"] == "stale");
        let (code, said) = pair.a.try_tern(&["resync", "vm1"]).unwrap_err();
        assert!(code == 4 && said.contains("--discard-local"), "{code} {said}");
        pair.a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
        pair.b.verify();
        pair.assert_no_panic();
    }
}

/// Lesson: verify looks again before it reports (drbd#68).
#[test]
fn verify_counts_the_blocks_that_differ_holes_included() {
    let pair = Pair::start(512, "1s");
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    History::new(1 << 17).write_for(&mut client, Duration::from_millis(300)).unwrap();
    client.write(0, &[1; 8192]).unwrap();
    pair.a.tern(&["snapshot", "vm1"]);
    pair.a.verify();
    // The primary's: a standby finds out by itself what its disk has lost, and has it mended between two looks.
    let backing = pair.a.tern(&["volume", "list"])["volumes"][0]["backing"].as_str().unwrap().to_owned();
    let image = std::fs::File::options().write(true).open(backing).unwrap();
    // One block of data, and every second one of a stretch that had none or nearly none.
    image.write_all_at(&[2; 100], 4096).unwrap();
    (0..3000).for_each(|block| image.write_all_at(b"x", (100_000 + block * 2) * 4096 + 17).unwrap());
    image.sync_all().unwrap();
    let (code, said) = pair.a.try_tern(&["verify", "vm1"]).unwrap_err();
    assert!(code == 1 && said.contains("\"blocks_compared\":131072,\"blocks_different\":3001"), "{code} {said}");
}
