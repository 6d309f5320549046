//! `kill -9` of the primary, the standby, or both, under load, in any mode: what was promised is there, and both sites come to hold the same.
//!
//! `KILLS=1000 cargo test --release -p tern-tests --test kills -- --nocapture` is the long run. Each round prints what was drawn for it.

use rand::RngExt;
use rand::rngs::StdRng;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tern_tests::{History, NbdClient, Pair, Site, dice, rounds};

const RPO: Duration = Duration::from_millis(500);
/// Longer than a standby is ever away here.
const NEVER: &str = "2m";
const SOON: &str = "200ms";

/// What a round does.
#[derive(Debug)]
struct Plan {
    mode: &'static str,
    on_disconnect: &'static str,
    ack_timeout: &'static str,
    /// Writes go on for so long before the mode is changed, and after that.
    spans: [Duration; 2],
    waits_for_promise: bool,
    victims: Victims,
    aftermath: Aftermath,
    verified: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victims {
    Primary,
    Standby,
    PrimaryFirst,
    StandbyFirst,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Aftermath {
    AllStartAgain,
    SiteLost,
}

impl Plan {
    fn draw(dice: &mut StdRng) -> Self {
        let mut one_of = |words: &[&'static str]| words[dice.random_range(0..words.len())];
        let mode = one_of(&["async", "barrier", "sync", "snapshot"]);
        let on_disconnect = one_of(&["continue", "degrade", "suspend"]);
        let ack_timeout = one_of(&[SOON, NEVER]);
        let mut span = |most_ms| Duration::from_millis(dice.random_range(0..most_ms));
        let spans = [span(200), span(500)];
        let victims = [Victims::Primary, Victims::Standby, Victims::PrimaryFirst, Victims::StandbyFirst][dice.random_range(0..4)];
        let is_lost = victims != Victims::Standby && dice.random_bool(0.6);
        Self {
            mode,
            on_disconnect,
            ack_timeout,
            spans,
            waits_for_promise: dice.random_bool(0.7),
            victims,
            aftermath: if is_lost { Aftermath::SiteLost } else { Aftermath::AllStartAgain },
            verified: dice.random_bool(0.5),
        }
    }
}

/// What is known of the promise when the killing is over: everything acknowledged until then is covered.
#[derive(Debug, Clone, Copy)]
struct Promised {
    until: Instant,
}

fn ask_promise(site: &Site, mode: &str) -> Option<Promised> {
    let until = Instant::now();
    if mode == "snapshot" {
        site.tern(&["snapshot", "vm1"]);
        return Some(Promised { until });
    }
    let seen = site.volume();
    (seen["mode"] == mode && seen["promise_held"] == true).then_some(Promised { until })
}

/// Writes and flushes until told to stop, or until something fails.
fn work(history: &mut History, client: &mut NbdClient, stop: &AtomicBool) {
    let mut dice = dice();
    while !stop.load(SeqCst) {
        let few = dice.random_range(1..8);
        let mut write_few = || (0..few).try_for_each(|_| history.write(client, &mut dice));
        if write_few().and_then(|()| history.flush(client)).is_err() {
            return;
        }
    }
}

/// The load, the change of mode under it, and the kills.
fn strike(plan: &Plan, pair: &mut Pair, histories: &mut [History; 2]) -> Option<Promised> {
    let stop = AtomicBool::new(false);
    let rpo = format!("{}ms", RPO.as_millis());
    let follow = ["replicate", "vm1", "--to", pair.b.name, "--rpo", &rpo, "--mode", "barrier"];
    pair.a.tern(&[&follow[..], &["--on-disconnect", plan.on_disconnect, "--ack-timeout", plan.ack_timeout]].concat());
    std::thread::scope(|scope| {
        for history in histories {
            let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
            let stop = &stop;
            scope.spawn(move || work(history, &mut client, stop));
        }
        std::thread::sleep(plan.spans[0]);
        pair.a.tern(&["mode", "vm1", plan.mode]);
        if plan.waits_for_promise && plan.mode != "snapshot" {
            pair.a.wait_until("held", |seen| seen["mode"] == plan.mode && seen["promise_held"] == true);
        }
        std::thread::sleep(plan.spans[1]);
        let asked = ask_promise(&pair.a, plan.mode);
        let killed = kill(plan.victims, pair);
        stop.store(true, SeqCst);
        if plan.victims == Victims::Standby {
            // Whoever waits for it is served again.
            pair.b.restart();
        }
        // With the standby gone, a rule may have ended the promise after the question.
        let lowered = plan.victims == Victims::StandbyFirst && (plan.on_disconnect == "continue" || plan.ack_timeout == SOON);
        asked.map(|asked| if lowered || matches!(plan.mode, "async" | "snapshot") { asked } else { Promised { until: killed } })
    })
}

/// When the primary was about to be killed, if it was.
fn kill(victims: Victims, pair: &mut Pair) -> Instant {
    if matches!(victims, Victims::Standby | Victims::StandbyFirst) {
        pair.b.kill();
    }
    let killed = Instant::now();
    if victims != Victims::Standby {
        pair.a.kill();
    }
    if victims == Victims::PrimaryFirst {
        pair.b.kill();
    }
    killed
}

fn connect(site: &Site) -> NbdClient {
    NbdClient::connect(&site.socket("nbd")).unwrap()
}

/// The primary's site is gone: the standby goes on from a prefix that has all that was promised, and the other one comes back as standby.
fn fail_over(plan: &Plan, pair: &mut Pair, histories: &mut [History; 2], promised: Option<Promised>) {
    if plan.victims != Victims::Primary {
        pair.b.restart();
    }
    let promotion = pair.b.tern(&["promote", "vm1", "--force"]);
    assert_eq!(promotion["kind"], "failover", "{promotion}");
    for history in histories {
        let prefix = history.assert_prefix(&mut connect(&pair.b));
        if let Some(Promised { until }) = promised {
            match plan.mode {
                "sync" | "snapshot" => {
                    assert!(prefix >= history.acknowledged_by(until), "{prefix} of {} acknowledged", history.acknowledged_by(until));
                }
                "barrier" => assert!(prefix >= history.flushed_by(until), "{prefix} of {} flushed", history.flushed_by(until)),
                _ => assert!(history.lost(prefix, until) <= RPO, "{:?} lost", history.lost(prefix, until)),
            }
        }
        history.forget_beyond(prefix);
    }
    pair.a.restart();
    pair.a.wait_until("stale", |volume| volume["role"] == "stale");
    pair.a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    std::mem::swap(&mut pair.a, &mut pair.b);
}

/// All processes start again: the primary has every write that it acknowledged.
fn start_again(plan: &Plan, pair: &mut Pair, histories: &mut [History; 2]) {
    if plan.victims != Victims::Standby {
        pair.a.restart();
    }
    if plan.victims != Victims::Primary {
        pair.b.restart();
    }
    for history in histories {
        let mut client = connect(&pair.a);
        history.settle(&mut client);
        assert_eq!(history.assert_prefix(&mut client), history.len(), "a write that was acknowledged is gone");
    }
}

/// Lesson: black boxes beside the simulator (Jepsen and TigerBeetle).
#[test]
fn whatever_dies_in_any_mode_what_was_promised_is_there_and_both_sites_come_to_hold_the_same() {
    let mut pair = Pair::start(4, "500ms");
    let mut dice = dice();
    let mut histories = [History::within(0..512), History::within(512..1024)];
    let (mut in_sync, mut failovers, mut promises) = (true, 0, 0);
    for round in 0..rounds("KILLS", 40) {
        let plan = Plan::draw(&mut dice);
        println!("round {round}: {plan:?}");
        if plan.aftermath == Aftermath::SiteLost && !in_sync {
            // A standby that has never been in sync cannot be promoted.
            pair.a.verify();
        }
        let promised = strike(&plan, &mut pair, &mut histories);
        match plan.aftermath {
            Aftermath::AllStartAgain => start_again(&plan, &mut pair, &mut histories),
            Aftermath::SiteLost => {
                fail_over(&plan, &mut pair, &mut histories, promised);
                (in_sync, failovers, promises) = (false, failovers + 1, promises + u32::from(promised.is_some()));
            }
        }
        if plan.verified {
            pair.a.verify();
            in_sync = true;
            assert_eq!(pair.a.volume()["last_error"], serde_json::Value::Null, "round {round}");
        }
        pair.assert_no_panic();
    }
    pair.a.verify();
    assert!(failovers < 5 || promises > 0, "no site was lost while a promise held");
    println!("{failovers} sites lost, {promises} of them while the promise held");
}
