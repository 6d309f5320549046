//! Links that flap or are slow, and clocks that go back: what clients notice, and what the operator sees.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tern_tests::{History, Linked, NbdClient, Pair, Site, client, dice, is_installed, rounds};

const ACK_TIMEOUT: Duration = Duration::from_millis(400);
/// For what waits for nothing, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(5);

fn connect(site: &Site) -> NbdClient {
    NbdClient::connect(&site.socket("nbd")).unwrap()
}

/// Sets mode and rule, and waits until the promise holds.
fn follow(pair: &Pair, mode: &str, on_disconnect: &str) {
    let timeout = format!("{}ms", ACK_TIMEOUT.as_millis());
    let to = ["replicate", "vm1", "--to", "oregon", "--rpo", "1s", "--mode", mode];
    pair.a.tern(&[&to[..], &["--on-disconnect", on_disconnect, "--ack-timeout", &timeout]].concat());
    held(pair, mode);
}

fn held(pair: &Pair, mode: &str) -> Value {
    pair.a.wait_until(mode, |seen| seen["mode"] == mode && seen["promise_held"] == true && seen["state"] == "in-sync")
}

fn last_error(seen: &Value) -> &str {
    seen["last_error"].as_str().unwrap_or_default()
}

/// Lesson: whatever stands still says why (drbd#40).
/// `SLOW_SECONDS=10` is the long run.
#[test]
fn a_standby_that_answers_late_degrades_or_suspends_as_the_rule_says_and_the_operator_sees_which() {
    let late = Duration::from_secs(rounds("SLOW_SECONDS", 2).into());
    let linked = Linked::start(16);
    let pair = &linked.pair;
    let mut history = History::new(512);
    for (mode, on_disconnect) in
        ["barrier", "sync"].into_iter().flat_map(|mode| ["continue", "degrade", "suspend"].map(|rule| (mode, rule)))
    {
        follow(pair, mode, on_disconnect);
        linked.delay(late);
        let mut client = connect(&pair.a);
        let began = Instant::now();
        let waited = std::thread::scope(|scope| {
            let request = scope.spawn(|| {
                history.write(&mut client, &mut dice()).and_then(|()| history.flush(&mut client)).unwrap();
                began.elapsed()
            });
            if on_disconnect == "suspend" {
                let seen = pair.a.wait_until("suspended", |seen| seen["state"] == "suspended");
                assert!(seen["promise_held"] == true && last_error(&seen).contains("wait for the standby"), "{seen}");
            } else {
                let seen = pair.a.wait_until("degraded", |seen| seen["state"] == "degraded");
                assert!(seen["promise_held"] == false && last_error(&seen).contains("does not keep up"), "{seen}");
            }
            linked.delay(Duration::ZERO);
            request.join().unwrap()
        });
        println!("{mode} {on_disconnect}: the request took {waited:?}");
        assert!(waited >= ACK_TIMEOUT && (on_disconnect == "suspend" || waited < late), "{mode} {on_disconnect}: {waited:?}");
        held(pair, mode);
    }
    pair.a.verify();
    pair.assert_no_panic();
}

/// What was seen while the link flapped.
#[derive(Debug, Default)]
struct Flapping {
    states: BTreeSet<String>,
    promises: BTreeSet<bool>,
    longest_wait: Duration,
    writes: usize,
}

/// Cuts the link for a second, heals it for a second, and so on, while a client writes and the operator looks.
fn flap(linked: &Linked, history: &mut History, seconds: u32) -> Flapping {
    let (over, mut seen, before) = (AtomicBool::new(false), Flapping::default(), history.len());
    let mut client = connect(&linked.pair.a);
    std::thread::scope(|scope| {
        let (over, history) = (&over, &mut *history);
        let writer = scope.spawn(move || {
            let (mut dice, mut longest) = (dice(), Duration::ZERO);
            while !over.load(SeqCst) {
                let began = Instant::now();
                history.write(&mut client, &mut dice).and_then(|()| history.flush(&mut client)).unwrap();
                longest = longest.max(began.elapsed());
            }
            longest
        });
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(seconds.into()) {
            if began.elapsed().as_secs().is_multiple_of(2) {
                linked.cut();
            } else {
                linked.heal();
            }
            let status = linked.pair.a.volume();
            seen.states.insert(status["state"].as_str().unwrap().to_owned());
            seen.promises.insert(status["promise_held"] == true);
        }
        linked.heal();
        over.store(true, SeqCst);
        seen.longest_wait = writer.join().unwrap();
    });
    seen.writes = history.len() - before;
    seen
}

/// Lesson: whether a standby has everything is computed, never stored (drbd#30).
/// `FLAP_SECONDS=60` is the long run.
#[test]
fn a_link_that_flaps_costs_a_time_out_or_a_wait_and_never_a_false_word_about_the_promise() {
    let seconds = rounds("FLAP_SECONDS", 4);
    let linked = Linked::start(16);
    let mut history = History::new(512);
    for (mode, on_disconnect) in [("async", "continue"), ("sync", "degrade"), ("barrier", "suspend")] {
        follow(&linked.pair, mode, on_disconnect);
        let seen = flap(&linked, &mut history, seconds);
        println!("{mode} {on_disconnect}: {seen:?}");
        let among = |states: &[&str]| seen.states.iter().all(|state| states.contains(&state.as_str()));
        match on_disconnect {
            "suspend" => assert!(among(&["in-sync", "catching-up", "suspended"]) && !seen.promises.contains(&false), "{seen:?}"),
            "degrade" => {
                assert!(among(&["in-sync", "catching-up", "not-converging", "degraded"]) && seen.states.contains("degraded"), "{seen:?}");
                assert!(seen.longest_wait < 2 * ACK_TIMEOUT + PATIENCE, "{seen:?}");
            }
            _ => {
                assert!(among(&["in-sync", "catching-up", "not-converging", "disconnected"]), "{seen:?}");
                assert!(seen.longest_wait < PATIENCE, "{seen:?}");
            }
        }
        held(&linked.pair, mode);
    }
    let told = linked.pair.a.logged(&["promise no longer holds"]).len();
    assert!((1..=seconds as usize).contains(&told), "once a flap, and no more: {told}");
    linked.pair.a.verify();
    linked.pair.assert_no_panic();
}

/// A site's wall clock, which only its daemon goes by.
struct Clock(PathBuf);

impl Clock {
    fn of(site: &mut Site, directory: &Path) -> Option<Self> {
        if !is_installed("faketime") {
            return None;
        }
        let library = client("sh", &["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"]);
        let clock = Self(directory.join(site.name));
        clock.set("+0");
        let file = clock.0.display().to_string();
        let how = [("FAKETIME_NO_CACHE", "1"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1"), ("FAKETIME_DONT_RESET", "1")];
        site.set_environment(&[&how[..], &[("LD_PRELOAD", library.trim()), ("FAKETIME_TIMESTAMP_FILE", &file)]].concat());
        site.restart();
        Some(clock)
    }

    /// Sets it so far from this machine's.
    fn set(&self, offset: &str) {
        // Renamed into place: it is read all the time.
        let next = self.0.with_extension("next");
        fs::write(&next, offset).unwrap();
        fs::rename(next, &self.0).unwrap();
    }
}

#[test]
fn a_clock_that_is_set_back_an_hour_at_either_site_changes_nothing_that_is_promised_or_seen() {
    let directory = tempfile::tempdir().unwrap();
    let mut pair = Pair::start(16, "1s");
    let clocks = [Clock::of(&mut pair.a, directory.path()), Clock::of(&mut pair.b, directory.path())];
    let [Some(at_a), Some(at_b)] = clocks else { return };
    let mut history = History::new(512);
    let mut client = connect(&pair.a);
    for (clock, mode) in [(&at_a, "async"), (&at_b, "sync")] {
        follow(&pair, mode, if mode == "async" { "continue" } else { "degrade" });
        history.write_for(&mut client, Duration::from_millis(300)).unwrap();
        let site = if clock.0 == at_b.0 { &pair.b } else { &pair.a };
        let expiry = || site.tern(&["peer", "invite"])["expires_at"].as_str().unwrap().to_owned();
        let before = expiry();
        clock.set("-3600");
        assert!(expiry() < before, "the daemon goes by this clock");
        for _ in 0..10 {
            let began = Instant::now();
            history.write(&mut client, &mut dice()).and_then(|()| history.flush(&mut client)).unwrap();
            assert!(began.elapsed() < PATIENCE, "{mode}: {:?}", began.elapsed());
            let seen = pair.a.volume();
            assert!((mode == "async" || seen["promise_held"] == true) && seen["rpo_seconds"].as_f64() < Some(60.0), "{seen}");
            assert!(
                seen["last_error"].is_null() && ["in-sync", "catching-up", "not-converging"].contains(&seen["state"].as_str().unwrap()),
                "{seen}"
            );
        }
        pair.a.tern(&["snapshot", "vm1"]);
        held(&pair, mode);
        pair.b.wait_until("in sync", |seen| seen["state"] == "in-sync");
        pair.a.verify();
    }
    let acknowledged = history.acknowledged();
    pair.a.kill();
    pair.b.tern(&["promote", "vm1", "--force"]);
    assert_eq!(history.assert_prefix(&mut connect(&pair.b)), acknowledged);
    pair.assert_no_panic();
}
