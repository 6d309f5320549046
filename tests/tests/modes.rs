//! What an acknowledgement means in each mode, and what becomes of it when the standby is gone.

use rand::RngExt;
use rustix::process::Signal;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tern_tests::{History, NbdClient, Pair, dice, rounds};

const BLOCK: [u8; 4096] = [7; 4096];

/// A pair in this mode whose promise holds.
fn pair(mode: &str, more: &[&str]) -> Pair {
    let pair = Pair::start(16, "1s");
    pair.a.tern(&[&["replicate", "vm1", "--to", "oregon", "--rpo", "1s", "--mode", mode], more].concat());
    let seen = held(&pair, mode);
    assert_eq!(seen["mode"], mode);
    pair
}

/// Waits until the mode's promise holds.
fn held(pair: &Pair, mode: &str) -> Value {
    let holds = |seen: &Value| seen["mode"] == mode && seen["promise_held"] == true && seen["state"] == "in-sync";
    pair.a.wait_until(mode, holds)
}

fn connect(pair: &Pair) -> NbdClient {
    NbdClient::connect(&pair.a.socket("nbd")).unwrap()
}

#[test]
fn in_sync_every_acknowledged_write_outlives_the_primary() {
    for _ in 0..rounds("SYNC_FAILOVERS", 2) {
        let mut pair = pair("sync", &[]);
        let (mut client, mut history) = (connect(&pair), History::new(512));
        let span = Duration::from_millis(dice().random_range(300..1500));
        let end = std::thread::scope(|scope| {
            let writer = scope.spawn(|| history.write_for(&mut client, Duration::from_secs(60)));
            std::thread::sleep(span);
            pair.a.kill();
            writer.join().unwrap()
        });
        end.unwrap_err();
        pair.b.tern(&["promote", "vm1", "--force"]);
        let prefix = history.assert_prefix(&mut NbdClient::connect(&pair.b.socket("nbd")).unwrap());
        assert!(history.acknowledged() > 0 && prefix >= history.acknowledged(), "{prefix} of {}", history.acknowledged());
        pair.b.assert_no_panic();
    }
}

#[test]
fn in_barrier_every_acknowledged_flush_outlives_the_primary() {
    for _ in 0..rounds("BARRIER_FAILOVERS", 2) {
        let mut pair = pair("barrier", &[]);
        let mut history = History::new(512);
        let clients = [connect(&pair), connect(&pair), connect(&pair)];
        let (stop, mut flushed) = (AtomicBool::new(false), 0);
        let span = Duration::from_millis(dice().random_range(300..1500));
        std::thread::scope(|scope| {
            let [mut client, others @ ..] = clients;
            // Their flushes share epochs with those of the one who writes.
            for mut other in others {
                scope.spawn(move || while other.flush().is_ok() {});
            }
            let (history, flushed, stop) = (&mut history, &mut flushed, &stop);
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    let writes = std::cell::Cell::new(0);
                    let few = || writes.replace(writes.get() + 1) < 5;
                    if history.write_while(&mut client, few).and_then(|()| client.flush()).is_err() {
                        break;
                    }
                    *flushed = history.acknowledged();
                }
            });
            std::thread::sleep(span);
            pair.a.kill();
            stop.store(true, SeqCst);
        });
        pair.b.tern(&["promote", "vm1", "--force"]);
        let prefix = history.assert_prefix(&mut NbdClient::connect(&pair.b.socket("nbd")).unwrap());
        assert!(flushed > 0 && prefix >= flushed, "{prefix} of {flushed} that were flushed");
        pair.b.assert_no_panic();
    }
}

#[test]
fn a_mode_is_changed_while_the_guest_writes() {
    let pair = Pair::start(16, "1s");
    let (mut client, mut history) = (connect(&pair), History::new(1024));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| history.write_while(&mut client, || !stop.load(SeqCst)));
        for mode in ["sync", "barrier", "sync", "async", "barrier"] {
            assert_eq!(pair.a.tern(&["mode", "vm1", mode])["mode"], mode);
            pair.a.wait_until(mode, |seen| seen["mode"] == mode && seen["promise_held"] == true);
        }
        stop.store(true, SeqCst);
        writer.join().unwrap().unwrap();
    });
    pair.a.verify();
    pair.a.tern(&["replicate", "vm1", "--stop"]);
    client.flush().unwrap();
    pair.a.assert_no_panic();
}

#[test]
fn what_was_set_stays_until_it_is_changed_and_goes_with_the_disk() {
    let mut pair = pair("sync", &["--ack-timeout", "3s"]);
    pair.a.tern(&["replicate", "vm1", "--to", "oregon", "--bandwidth", "400Mbit"]);
    let as_set = |seen: &Value| {
        let limit = &seen["bandwidth_bits_per_second"];
        seen["mode"] == "sync" && seen["rpo_target_seconds"] == 1.0 && *limit == 400_000_000
    };
    assert!(as_set(&pair.a.volume()), "{}", pair.a.volume());
    // The same by a calendar, whatever the time: it is what the standby goes by, too.
    let calendar = "mon-sun 00:00-12:00=400Mbit,12:00-24:00=400Mbit,else=1Mbit";
    let told = pair.a.tern(&["replicate", "vm1", "--to", "oregon", "--bandwidth", calendar]);
    assert!(as_set(&told) && told["bandwidth"] == calendar, "{told}");
    let refused = pair.a.try_tern(&["replicate", "vm1", "--to", "oregon", "--bandwidth", "8:00-18:00=1Mbit"]).unwrap_err();
    assert!(refused.0 == 2 && refused.1.contains("times in UTC"), "{refused:?}");
    let standby = pair.b.volume();
    assert!(standby["bandwidth"] == calendar && standby["bandwidth_bits_per_second"] == 400_000_000, "{standby}");
    pair.b.tern(&["promote", "vm1"]);
    pair.b.wait_until("as set", |seen| as_set(seen) && seen["promise_held"] == true);
    // A change is at the standby when the operator is answered, and survives it.
    pair.b.tern(&["mode", "vm1", "barrier"]);
    pair.b.tern(&["replicate", "vm1", "--to", "osaka", "--bandwidth", "none", "--rpo", "2s"]);
    pair.a.kill();
    pair.b.kill();
    pair.a.restart();
    pair.a.tern(&["promote", "vm1", "--force"]);
    let seen = pair.a.volume();
    assert!(seen["mode"] == "barrier" && seen["rpo_target_seconds"] == 2.0 && seen["bandwidth_bits_per_second"].is_null(), "{seen}");
    pair.b.restart();
    pair.b.wait_until("stale", |seen| seen["role"] == "stale");
    pair.b.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    held(&pair, "barrier");
    pair.a.verify();
    pair.assert_no_panic();
}

#[test]
fn without_its_standby_it_degrades_loudly_remembers_that_and_returns_by_itself() {
    let mut pair = pair("sync", &["--ack-timeout", "700ms"]);
    let mut client = connect(&pair);
    client.write(0, &BLOCK).unwrap();
    pair.b.freeze();
    let began = Instant::now();
    client.write(4096, &BLOCK).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(700), "acknowledged after {:?}", began.elapsed());
    let seen = pair.a.wait_until("degraded", |seen| seen["state"] == "degraded");
    assert!(seen["promise_held"] == false && seen["last_error"].is_string(), "{seen}");
    let began = Instant::now();
    (2..20).for_each(|block| client.write(block * 4096, &BLOCK).unwrap());
    assert!(began.elapsed() < Duration::from_millis(700), "nobody waits again");
    assert!(!pair.a.logged(&["promise no longer holds"]).is_empty());
    // Whoever starts again knows that it does not hold.
    pair.a.kill();
    pair.a.restart();
    assert_eq!(pair.a.volume()["promise_held"], false);
    let mut client = connect(&pair);
    client.write(0, &BLOCK).unwrap();
    pair.b.signal(Signal::CONT);
    held(&pair, "sync");
    client.write(0, &[8; 4096]).unwrap();
    drop(client);
    pair.a.kill();
    // And whoever had it has it still, before the standby is there.
    pair.b.kill();
    pair.a.restart();
    pair.a.wait_until("held", |seen| seen["promise_held"] == true);
    pair.b.restart();
    pair.a.verify();
    pair.a.assert_no_panic();
}

#[test]
fn suspended_requests_wait_reads_too_and_go_on_and_do_not_keep_the_daemon_from_ending() {
    let mut pair = pair("sync", &["--ack-timeout", "300ms", "--on-disconnect", "suspend"]);
    let mut client = connect(&pair);
    pair.b.freeze();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| client.write(0, &BLOCK));
        pair.a.wait_until("suspended", |seen| seen["state"] == "suspended" && seen["promise_held"] == true);
        // Whoever comes is let in at once, and nothing of it is begun: what it reads might be lost with this site.
        let mut other = connect(&pair);
        other.set_patience(Duration::from_millis(300)).unwrap();
        other.read(0, &mut [0; 4096]).unwrap_err();
        let reader = scope.spawn(|| connect(&pair).read(0, &mut [0; 4096]));
        pair.b.signal(Signal::CONT);
        writer.join().unwrap().unwrap();
        reader.join().unwrap().unwrap();
    });
    held(&pair, "sync");
    // The operator lets the guest go on without the standby, and takes that back.
    pair.b.kill();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| client.write(0, &BLOCK));
        pair.a.wait_until("suspended", |seen| seen["state"] == "suspended");
        pair.a.tern(&["mode", "vm1", "async"]);
        writer.join().unwrap().unwrap();
    });
    pair.b.restart();
    pair.a.tern(&["mode", "vm1", "sync"]);
    held(&pair, "sync");
    pair.b.kill();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| client.write(0, &[9; 4096]));
        pair.a.wait_until("suspended", |seen| seen["last_error"].as_str().is_some_and(|error| error.ends_with(": 1")));
        let began = Instant::now();
        pair.a.stop();
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        writer.join().unwrap().unwrap_err();
    });
    pair.a.restart();
    pair.b.restart();
    pair.a.verify();
    pair.a.assert_no_panic();
}
