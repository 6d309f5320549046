//! Three sites: a primary that fences itself, a standby that is promoted without the operator, and a witness that holds no data.

use rand::RngExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tern_tests::{NbdClient, Pair, Relay, Site, dice, eventually, rounds};

const BLOCK: usize = 4096;
const LEASE: Duration = Duration::from_secs(1);
/// What a busy machine may add to anything.
const SLACK: Duration = Duration::from_millis(700);
/// Longer than silence, leases and retries together.
const LONG_ENOUGH: Duration = Duration::from_secs(6);

/// The links between two sites, both ways.
struct Links([Relay; 2]);

impl Links {
    fn between(one: &Site, other: &Site) -> Self {
        Self([Relay::to(one.listen()), Relay::to(other.listen())])
    }

    fn addresses(&self) -> [String; 2] {
        self.0.each_ref().map(Relay::address)
    }

    fn cut(&self) {
        self.0.iter().for_each(Relay::cut);
    }

    fn heal(&self) {
        self.0.iter().for_each(Relay::heal);
    }
}

/// A pair and a witness, of which any two can be parted.
struct Trio {
    pair: Pair,
    witness: Site,
    between: Links,
    to_witness: [Links; 2],
}

fn join(one: &Site, other: &Site, links: &Links) {
    let [one_at, other_at] = links.addresses();
    let invite = one.tern(&["peer", "invite", "--address", &one_at]);
    other.tern(&["peer", "join", invite["token"].as_str().unwrap(), "--address", &other_at]);
}

const FENCED: [&str; 8] = ["--fence", "lease", "--lease", "1s", "--witness", "kyoto", "--auto-promote", "2s"];

impl Trio {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at: &Path = directory.path();
        let (a, b, witness) = (Site::start("osaka", at), Site::start("oregon", at), Site::start_with("kyoto", at, &["--witness"]));
        let (between, to_witness) = (Links::between(&a, &b), [Links::between(&a, &witness), Links::between(&b, &witness)]);
        a.tern(&["volume", "create", "vm1", "--size", "16M"]);
        let addresses = between.addresses();
        let pair = Pair::of(directory, a, b, addresses.each_ref().map(String::as_str), "1s");
        join(&pair.a, &witness, &to_witness[0]);
        join(&pair.b, &witness, &to_witness[1]);
        let trio = Self { pair, witness, between, to_witness };
        trio.fence(&trio.pair.a, "oregon", "sync");
        trio
    }

    /// Has the primary fence itself, and the standby be promoted by itself.
    fn fence(&self, primary: &Site, to: &str, mode: &str) {
        let settings = ["replicate", "vm1", "--to", to, "--rpo", "1s", "--mode", mode, "--ack-timeout", "500ms"];
        primary.tern(&[&settings[..], &FENCED].concat());
        granted(primary);
    }

    fn sites(&self) -> [&Site; 2] {
        [&self.pair.a, &self.pair.b]
    }
}

/// Waits until both others grant, and everything is in order.
fn granted(primary: &Site) {
    primary.wait_until("granted", |seen| {
        let lease = &seen["lease"];
        lease["standby_grants"] == true
            && lease["witness_grants"] == true
            && lease["ready"] == true
            && seen["state"] == "in-sync"
            && seen["promise_held"] == true
    });
}

/// An acknowledged write: where, between when and when.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    site: usize,
    began: Instant,
    ended: Instant,
    number: u64,
}

/// Writes rising numbers into a block of its own at a site, whenever that answers, until it is told to stop.
fn write_at(index: usize, site: &Path, stop: &AtomicBool, all: &Mutex<Vec<Acknowledged>>, first: u64) {
    let mut number = first;
    while !stop.load(SeqCst) {
        let Ok(mut client) = NbdClient::connect(site) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        client.set_patience(Duration::from_secs(1)).unwrap();
        while !stop.load(SeqCst) {
            number += 1;
            let (mut block, began) = ([0; BLOCK], Instant::now());
            block[..8].copy_from_slice(&number.to_le_bytes());
            if client.write((index * BLOCK) as u64, &block).is_err() {
                break;
            }
            all.lock().unwrap().push(Acknowledged { site: index, began, ended: Instant::now(), number });
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Does something while clients write at both sites; what was acknowledged meanwhile. Panics if both sites acknowledged at once.
fn under_load(sockets: [&Path; 2], first: u64, act: impl FnOnce(&Mutex<Vec<Acknowledged>>)) -> Vec<Acknowledged> {
    let (stop, all) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for (index, socket) in sockets.into_iter().enumerate() {
            let (stop, all) = (&stop, &all);
            scope.spawn(move || write_at(index, socket, stop, all, first));
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&all)));
        stop.store(true, SeqCst);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    let mut all = all.into_inner().unwrap();
    all.sort_by_key(|write| write.ended);
    // At most one of the two takes over from the other: then nothing that began after its first acknowledgement is the other's.
    let last = all.last().expect("something was acknowledged").site;
    let taken_over = all.iter().find(|write| write.site == last).unwrap().ended;
    let late = all.iter().find(|write| write.site != last && write.began > taken_over);
    assert!(late.is_none(), "both acknowledge: {late:?} after {taken_over:?}");
    all
}

/// What was acknowledged is there.
fn assert_kept(primary: &Site, all: &[Acknowledged]) {
    let mut client = NbdClient::connect(&primary.socket("nbd")).unwrap();
    for index in 0..2 {
        let mut block = [0; BLOCK];
        client.read((index * BLOCK) as u64, &mut block).unwrap();
        let there = u64::from_le_bytes(block[..8].try_into().unwrap());
        let told = all.iter().filter(|write| write.site == index).map(|write| write.number).max().unwrap_or(0);
        assert!(there >= told, "{there} at block {index}, but {told} was acknowledged");
    }
}

#[test]
fn a_primary_that_is_cut_off_stops_and_its_standby_follows_by_itself() {
    let trio = Trio::start();
    let [a, b] = trio.sites();
    // Or the first write without the standby would wait for that, and not for the lease.
    trio.fence(a, "oregon", "async");
    let mut cut_at = Instant::now();
    let all = under_load([&a.socket("nbd"), &b.socket("nbd")], 0, |_| {
        std::thread::sleep(LEASE);
        cut_at = Instant::now();
        trio.between.cut();
        trio.to_witness[0].cut();
        b.wait_until("promoted", |seen| seen["role"] == "primary");
        let seen = a.wait_until("without a lease", |seen| seen["state"] == "suspended");
        assert_eq!((seen["role"].as_str(), seen["lease"]["left_seconds"].as_f64()), (Some("primary"), Some(0.0)), "{seen}");
        assert!(seen["last_error"].as_str().is_some_and(|error| error.contains("--fence none")), "{seen}");
        std::thread::sleep(LEASE);
    });
    let last_of_a = all.iter().rfind(|write| write.site == 0).unwrap();
    let first_of_b = all.iter().find(|write| write.site == 1).unwrap();
    assert!((cut_at + LEASE / 2..cut_at + LEASE + SLACK).contains(&last_of_a.ended), "{:?} after the cut", last_of_a.ended - cut_at);
    println!("the last one at {:?}, the first one at {:?}", last_of_a.ended - cut_at, first_of_b.ended - cut_at);
    trio.between.heal();
    trio.to_witness[0].heal();
    a.wait_until("fenced", |seen| seen["role"] == "stale" && seen["state"] == "fenced");
    a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    granted(b);
    b.verify();
    [a, b, &trio.witness].into_iter().for_each(Site::assert_no_panic);
}

#[test]
fn a_promotion_by_force_waits_for_the_lease_of_a_primary_out_of_reach() {
    let trio = Trio::start();
    let [a, b] = trio.sites();
    let all = under_load([&a.socket("nbd"), &b.socket("nbd")], 0, |all| {
        std::thread::sleep(LEASE);
        trio.between.cut();
        trio.to_witness[0].cut();
        assert_eq!(b.tern(&["promote", "vm1", "--force"])["kind"], "failover");
        eventually("written at the new primary", || all.lock().unwrap().iter().any(|write| write.site == 1));
    });
    assert_kept(b, &all);
    trio.between.heal();
    trio.to_witness[0].heal();
    a.wait_until("fenced", |seen| seen["role"] == "stale" && seen["state"] == "fenced");
    a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    granted(b);
}

#[test]
fn a_handover_takes_the_lease_along_and_a_forced_one_loses_nothing() {
    let trio = Trio::start();
    let [a, b] = trio.sites();
    assert_eq!(b.tern(&["promote", "vm1"])["kind"], "handover");
    granted(b);
    a.wait_until("its standby", |seen| seen["role"] == "standby");
    // A client is active: the primary is in reach, and is fenced first.
    let all = under_load([&a.socket("nbd"), &b.socket("nbd")], 0, |all| {
        eventually("written at the primary", || all.lock().unwrap().len() > 10);
        assert_eq!(a.tern(&["promote", "vm1", "--force"])["lost_bytes"], 0);
        eventually("written at the new primary", || all.lock().unwrap().iter().any(|write| write.site == 0));
    });
    assert_kept(a, &all);
    b.wait_until("its standby", |seen| seen["role"] == "standby");
    granted(a);
}

#[test]
fn where_only_the_link_between_the_two_is_cut_the_primary_stays_it() {
    let mut trio = Trio::start();
    let [a, b] = trio.sites();
    let mut client = NbdClient::connect(&a.socket("nbd")).unwrap();
    trio.between.cut();
    let began = Instant::now();
    while began.elapsed() < LONG_ENOUGH {
        client.write(0, &[1; BLOCK]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    let seen = a.volume();
    assert_eq!((seen["role"].as_str(), seen["state"].as_str()), (Some("primary"), Some("degraded")), "{seen}");
    assert_eq!((&seen["lease"]["standby_grants"], &seen["lease"]["witness_grants"]), (&false.into(), &true.into()), "{seen}");
    let seen = b.wait_until("standing", |seen| seen["lease"]["standing"] == true);
    assert_eq!(seen["role"], "standby");
    // What it acknowledged alone would be lost: the operator has to say so.
    trio.pair.a.kill();
    std::thread::sleep(LONG_ENOUGH);
    let b = &trio.pair.b;
    let seen = b.wait_until("held back", |seen| seen["last_error"].as_str().is_some_and(|error| error.contains("--force")));
    assert_eq!(seen["role"], "standby", "{seen}");
    trio.pair.a.restart();
    trio.between.heal();
    granted(&trio.pair.a);
    let seen = trio.pair.b.wait_until("following", |seen| seen["lease"]["standing"] == false);
    assert_eq!(seen["role"], "standby");
    trio.pair.a.verify();
}

#[test]
fn without_the_witness_nothing_is_promoted_and_a_primary_with_its_standby_goes_on() {
    let mut trio = Trio::start();
    trio.witness.kill();
    let mut client = NbdClient::connect(&trio.pair.a.socket("nbd")).unwrap();
    let began = Instant::now();
    while began.elapsed() < 3 * LEASE {
        client.write(0, &[1; BLOCK]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    // Nor can automatic promotion be ended behind its back.
    let (code, said) = trio.pair.a.try_tern(&["replicate", "vm1", "--stop"]).unwrap_err();
    assert!(code == 1 && said.contains("kyoto") && said.contains("--force"), "{code} {said}");
    trio.pair.a.kill();
    std::thread::sleep(LONG_ENOUGH);
    let seen = trio.pair.b.wait_until("waiting", |seen| seen["last_error"].as_str().is_some_and(|error| error.contains("kyoto")));
    assert_eq!((seen["role"].as_str(), &seen["lease"]["standing"]), (Some("standby"), &true.into()), "{seen}");
    // Once it is back, it waits for what it may have granted, and agrees.
    trio.witness.restart();
    trio.pair.b.wait_until("promoted", |seen| seen["role"] == "primary");
}

#[test]
fn what_cannot_work_is_refused_with_what_to_do() {
    let trio = Trio::start();
    let refused = |arguments: &[&str], words: &[&str]| {
        let (code, said) = trio.pair.a.try_tern(&[&["replicate", "vm1", "--to", "oregon"], arguments].concat()).unwrap_err();
        assert!(code == 2 && words.iter().all(|word| said.contains(word)), "{arguments:?}: {code} {said}");
    };
    refused(&["--fence", "lease", "--auto-promote", "30s"], &["without a witness", "blockd --witness"]);
    refused(&["--fence", "lease", "--witness", "kyoto", "--auto-promote", "15s"], &["twice the lease"]);
    refused(&["--fence", "lease", "--witness", "oregon"], &["third site"]);
    refused(&["--fence", "lease", "--lease", "10ms"], &["1s or more"]);
    let (code, said) = trio.witness.try_tern(&["volume", "create", "vm2", "--size", "16M"]).unwrap_err();
    assert!(code == 1 && said.contains("holds no volumes"), "{code} {said}");
    // Where nothing is said of it, the fence stays; ended, nothing is left of it.
    trio.pair.a.tern(&["replicate", "vm1", "--to", "oregon", "--rpo", "2s"]);
    assert_eq!(trio.pair.a.volume()["lease"]["auto_promote_seconds"], 2.0);
    trio.pair.a.tern(&["replicate", "vm1", "--to", "oregon", "--fence", "none"]);
    assert!(trio.pair.a.volume()["lease"].is_null());
    trio.pair.a.tern(&["replicate", "vm1", "--stop"]);
}

#[test]
fn whatever_is_killed_never_two_acknowledge_and_what_was_acknowledged_stays() {
    let mut trio = Trio::start();
    let (mut dice, mut number) = (dice(), 0);
    let sockets = [trio.pair.a.socket("nbd"), trio.pair.b.socket("nbd")];
    for round in 0..rounds("LEASE_KILLS", 2) {
        let (victim, wait_ms, down_ms) = (dice.random_range(0..3), dice.random_range(0..1500), dice.random_range(0..6000));
        println!("round {round}: {victim} after {wait_ms} ms, for {down_ms} ms");
        let all = under_load([&sockets[0], &sockets[1]], number, |_| {
            std::thread::sleep(LEASE + Duration::from_millis(wait_ms));
            let site = match victim {
                0 => &mut trio.pair.a,
                1 => &mut trio.pair.b,
                _ => &mut trio.witness,
            };
            site.kill();
            std::thread::sleep(Duration::from_millis(down_ms));
            site.restart();
            heal(&trio.pair);
        });
        number = all.iter().map(|write| write.number).max().unwrap_or(number);
        let (primary, to) = if trio.pair.a.volume()["role"] == "primary" { (&trio.pair.a, "oregon") } else { (&trio.pair.b, "osaka") };
        trio.fence(primary, to, "sync");
        assert_kept(primary, &all);
    }
    [&trio.pair.a, &trio.pair.b, &trio.witness].into_iter().for_each(Site::assert_no_panic);
}

/// Returns once one site is primary, acknowledges, and the other one is its standby.
fn heal(pair: &Pair) {
    eventually("one primary and its standby", || {
        let seen = [&pair.a, &pair.b].map(Site::volume);
        for (site, volume) in [&pair.a, &pair.b].into_iter().zip(&seen) {
            if volume["role"] == "stale" {
                let _ = site.try_tern(&["resync", "vm1", "--discard-local", "--yes"]);
            }
        }
        let is = |volume: &serde_json::Value, role: &str| volume["role"] == role;
        let acknowledges = |volume: &serde_json::Value| is(volume, "primary") && volume["lease"]["left_seconds"].as_f64() > Some(0.0);
        let [a, b] = &seen;
        (acknowledges(a) && is(b, "standby")) || (acknowledges(b) && is(a, "standby"))
    });
}
