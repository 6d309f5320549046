//! A replicated volume grows: idle, under load, and while things break.

use rand::RngExt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use tern_tests::{NbdClient, Pair, dice};

const MIB: u64 = 1 << 20;

/// Grows `vm1` at the first site, and says how large it is now.
fn grow(pair: &Pair, size_mib: u64) -> u64 {
    let grown = pair.a.tern(&["volume", "resize", "vm1", &format!("{size_mib}M")]);
    assert_eq!(grown["size_bytes"], size_mib * MIB, "{grown}");
    size_mib * MIB
}

fn connect(pair: &Pair) -> NbdClient {
    NbdClient::connect(&pair.a.socket("nbd")).unwrap()
}

/// Holds the standby against the primary, and says that neither ever failed.
fn check(pair: &Pair, size_bytes: u64) {
    pair.a.verify();
    pair.b.wait_until("as large as the primary", |volume| volume["size_bytes"] == size_bytes);
    for site in [&pair.a, &pair.b] {
        assert_eq!(site.volume()["last_error"], serde_json::Value::Null);
        site.assert_no_panic();
    }
}

#[test]
fn an_idle_volume_grows_at_both_sites_and_keeps_its_size_when_it_moves() {
    let pair = Pair::start(16, "1s");
    let size_bytes = grow(&pair, 48);
    pair.b.wait_until("as large as the primary", |volume| volume["size_bytes"] == size_bytes);
    // What a guest does first: it writes into the new part, at its end, too.
    let size_bytes = grow(&pair, 64);
    let mut client = connect(&pair);
    for offset in [20 * MIB, 60 * MIB, size_bytes - 4096] {
        client.write(offset, &[7; 4096]).unwrap();
    }
    check(&pair, size_bytes);
    drop(client);
    pair.a.wait_until("without a client", |volume| volume["attached"].as_array().is_some_and(Vec::is_empty));
    assert_eq!(pair.b.tern(&["promote", "vm1"])["kind"], "handover");
    assert_eq!(pair.b.volume()["size_bytes"], size_bytes);
    let mut client = NbdClient::connect(&pair.b.socket("nbd")).unwrap();
    let mut content = vec![0; 4096];
    for (offset, byte) in [(20 * MIB, 7), (40 * MIB, 0), (60 * MIB, 7), (size_bytes - 4096, 7)] {
        client.read(offset, &mut content).unwrap();
        assert_eq!(content, [byte; 4096], "at {offset}");
    }
}

#[test]
fn a_volume_grows_under_load_whatever_dies_meanwhile_and_a_failover_shows_it() {
    let mut pair = Pair::start(16, "200ms");
    let mut rng = dice();
    let mut size_bytes = 16 * MIB;
    for round in 0..6 {
        let mut client = connect(&pair);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut rng = dice();
                let mut end = 16 * MIB;
                while !stop.load(SeqCst) {
                    // Over the end is an error until the volume has grown: the next write finds out.
                    let offset = rng.random_range(0..end / 4096) * 4096;
                    client.write(offset, &[rng.random_range(1..=255); 4096]).unwrap();
                    while client.write(end, &[rng.random_range(1..=255); 4096]).is_ok() {
                        end += 4 * MIB;
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(rng.random_range(0..300)));
            if round % 3 == 1 {
                pair.b.kill();
            }
            size_bytes = grow(&pair, size_bytes / MIB + 16);
            std::thread::sleep(Duration::from_millis(rng.random_range(0..300)));
            match round % 3 {
                0 => {}
                1 => pair.b.restart(),
                _ => {
                    pair.b.kill();
                    pair.b.restart();
                }
            }
            stop.store(true, SeqCst);
            writer.join().unwrap();
        });
        drop(client);
        if round == 4 {
            pair.a.kill();
            pair.a.restart();
        }
        check(&pair, size_bytes);
    }
    pair.a.kill();
    assert_eq!(pair.b.tern(&["promote", "vm1", "--force"])["kind"], "failover");
    assert_eq!(pair.b.volume()["size_bytes"], size_bytes);
    NbdClient::connect(&pair.b.socket("nbd")).unwrap().write(size_bytes - 4096, &[9; 4096]).unwrap();
    pair.a.restart();
    pair.a.wait_until("stale", |volume| volume["role"] == "stale");
    pair.a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    pair.b.verify();
}
