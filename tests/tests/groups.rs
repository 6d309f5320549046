//! Consistency groups: a client writes to one volume, waits, and then to the other. No point of the group has the second write without the
//! first, whatever is killed.

use rand::RngExt;
use serde_json::Value;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use tern_tests::{Flush, NbdClient, Shop, Site, count, dice, eventually, rounds};

const BLOCK: usize = 4096;
/// Beyond them there is load.
const LOAD_FROM: u64 = 1 << 20;
/// What the writes of a group may be held for.
const MOST_HELD_SECONDS: f64 = 0.05;

/// What the daemon measures of its holds, against what the machine kept it from running meanwhile.
struct Holds<'a> {
    shop: &'a Shop,
    seen: Vec<(f64, f64)>,
}

impl<'a> Holds<'a> {
    fn of(shop: &'a Shop) -> Self {
        let mut holds = Self { shop, seen: Vec::new() };
        holds.look();
        holds
    }

    /// A hold that is longer than promised began before the last look but one at the earliest: the cuts' threads were kept waiting for the rest of it.
    fn look(&mut self) -> Value {
        let shown = self.shop.shown(&self.shop.pair.a);
        let longest = shown["longest_hold_seconds"].as_f64().expect("what the daemon measured");
        let delayed = self.shop.pair.a.run_delay_seconds("tern-primary");
        if let Some((before, _)) = self.seen.last()
            && longest > *before
            && longest > MOST_HELD_SECONDS
        {
            let (_, since) = self.seen[self.seen.len().saturating_sub(2)];
            assert!(longest - MOST_HELD_SECONDS <= delayed - since, "kept from running for {} s: {shown}", delayed - since);
        }
        self.seen.push((longest, delayed));
        shown
    }

    fn watch(&mut self, span: Duration) {
        let began = Instant::now();
        while began.elapsed() < span {
            thread::sleep(Duration::from_millis(50));
            self.look();
        }
    }

    fn end(mut self) -> Value {
        self.look()
    }
}

/// Content that does not compress, for one of the volumes: its epochs take longer on their way.
fn load(socket: &Path, go_on: &AtomicBool) -> io::Result<()> {
    let (mut client, mut dice) = (NbdClient::connect_to(socket, "vm2")?, dice());
    while go_on.load(SeqCst) {
        let noise: Vec<u8> = (0..16 * BLOCK / 8).flat_map(|_| dice.random::<u64>().to_le_bytes()).collect();
        client.write(LOAD_FROM + dice.random_range(0..256) * BLOCK as u64, &noise)?;
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn no_point_of_a_group_has_a_write_without_the_acknowledged_one_before_it() {
    for _ in 0..rounds("GROUP_KILLS", 2) {
        let mut shop = Shop::start(2, &[]);
        let (told, go_on) = (AtomicU64::new(0), AtomicBool::new(true));
        let (mut writers, socket) = (shop.clients(&shop.pair.a), shop.pair.a.socket("nbd"));
        let mut cut = (0, 0);
        thread::scope(|scope| {
            let counting = scope.spawn(|| count(&mut writers, &told, Flush::Never, || true));
            let loading = scope.spawn(|| load(&socket, &go_on));
            let mut holds = Holds::of(&shop);
            for _ in 0..4 {
                let before = told.load(SeqCst);
                cut = (shop.pair.a.tern(&["snapshot", "shop"])["epoch"].as_u64().unwrap(), before);
                holds.watch(Duration::from_millis(dice().random_range(100..500)));
            }
            let held = holds.end();
            assert!(held["cuts"].as_u64() > Some(4), "{held}");
            assert!(held["state"] == "in-sync" && held["reason"].is_null(), "{held}");
            println!("held {} s at most in {} cuts", held["longest_hold_seconds"], held["cuts"]);
            assert!(shop.drilled(&shop.pair.b, &["--at", &cut.0.to_string()]) >= cut.1);
            thread::sleep(Duration::from_millis(dice().random_range(0..400)));
            shop.pair.a.kill();
            go_on.store(false, SeqCst);
            let _ = (counting.join(), loading.join());
        });
        let all = shop.points(&shop.pair.b);
        assert!(all.len() >= 4 && all.is_sorted() && all.contains(&cut.0), "{all:?}");
        let mut before = 0;
        for point in [all[1], all[all.len() / 2], cut.0] {
            let seen = shop.drilled(&shop.pair.b, &["--at", &point.to_string()]);
            assert!(point < all[1] || seen >= before, "{seen} after {before}");
            before = before.max(seen);
        }
        let (code, said) = shop.pair.b.try_tern(&["promote", "vm1", "--force"]).unwrap_err();
        assert!(code == 1 && said.contains("shop"), "{code} {said}");
        assert_eq!(shop.pair.b.try_tern(&["promote", "shop"]).unwrap_err().0, 4);
        let promotion = shop.pair.b.tern(&["promote", "shop", "--force"]);
        assert_eq!((promotion["epoch"].as_u64(), &promotion["kind"]), (all.last().copied(), &"failover".into()), "{promotion}");
        let last = shop.counted(&shop.pair.b);
        assert!(last >= cut.1 && last <= told.load(SeqCst), "{last}");
        shop.pair.assert_no_panic();
    }
}

#[test]
fn in_mode_barrier_a_flush_of_one_volume_is_in_the_groups_newest_point() {
    for _ in 0..rounds("GROUP_KILLS", 2) {
        let mut shop = Shop::start(2, &["--mode", "barrier"]);
        eventually("the promise holds", || shop.shown(&shop.pair.a)["promise_held"] == true);
        let told = AtomicU64::new(0);
        let mut writers = shop.clients(&shop.pair.a);
        let promised = thread::scope(|scope| {
            let counting = scope.spawn(|| count(&mut writers, &told, Flush::Each, || true));
            let mut holds = Holds::of(&shop);
            holds.watch(Duration::from_millis(dice().random_range(500..1500)));
            let held = holds.end();
            assert!(held["promise_held"] == true, "{held}");
            shop.pair.a.kill();
            let _ = counting.join();
            told.load(SeqCst)
        });
        assert!(promised > 5, "{promised}");
        shop.pair.b.tern(&["promote", "shop", "--force"]);
        let last = shop.counted(&shop.pair.b);
        assert!(last >= promised, "{promised} were flushed, and {last} are there");
        println!("{promised} flushed counters");
        shop.pair.b.assert_no_panic();
    }
}

#[test]
fn a_group_is_handed_over_as_a_whole_and_back() {
    let shop = Shop::start(2, &[]);
    let told = AtomicU64::new(0);
    let mut writers = shop.clients(&shop.pair.a);
    count(&mut writers, &told, Flush::Never, || told.load(SeqCst) < 100).unwrap();
    eventually("it is in sync", || shop.shown(&shop.pair.a)["state"] == "in-sync");
    let (code, said) = shop.pair.b.try_tern(&["promote", "shop"]).unwrap_err();
    assert!(code == 4 && said.contains("client is active"), "{code} {said}");
    drop(writers.remove(0));
    // One client is enough, wherever it is: nothing has stopped.
    eventually("vm2 is in the way", || {
        let (code, said) = shop.pair.b.try_tern(&["promote", "shop"]).unwrap_err();
        code == 4 && said.contains("vm2")
    });
    assert_eq!(shop.shown(&shop.pair.a)["role"], "primary");
    drop(writers);
    for (to, from) in [(&shop.pair.b, &shop.pair.a), (&shop.pair.a, &shop.pair.b)] {
        eventually("nobody is attached", || {
            let seen = from.tern(&["status"]);
            seen["volumes"].as_array().unwrap().iter().all(|volume| volume["attached"].as_array().is_some_and(Vec::is_empty))
        });
        let promotion = to.tern(&["promote", "shop"]);
        assert_eq!((&promotion["kind"], &promotion["lost_bytes"]), (&"handover".into(), &0.into()), "{promotion}");
        let mut writers = shop.clients(to);
        count(&mut writers, &told, Flush::Never, || told.load(SeqCst) % 100 < 50).unwrap();
        told.fetch_add(49, SeqCst);
        count(&mut writers, &told, Flush::Never, || !told.load(SeqCst).is_multiple_of(100)).unwrap();
        drop(writers);
        assert_eq!(to.tern(&["wait", "shop", "--for", "primary", "--timeout", "60s"])["role"], "primary");
        eventually("the roles have changed", || shop.shown(from)["role"] == "standby");
        let waited = to.tern(&["wait", "shop", "--for", "in-sync", "--timeout", "60s"]);
        assert_eq!((&waited["name"], &waited["state"]), (&"shop".into(), &"in-sync".into()), "{waited}");
        let number = to.tern(&["snapshot", "shop"])["epoch"].as_u64().unwrap();
        let there = from.tern(&["wait", "shop", "--for", &format!("committed={number}"), "--timeout", "60s"]);
        assert!(there["point"].as_u64() >= Some(number), "{there}");
        let (code, said) = from.try_tern(&["wait", "shop", "--for", "primary", "--timeout", "100ms"]).unwrap_err();
        assert!(code == 3 && said.contains("shop did not reach primary"), "{code} {said}");
        assert!(shop.points(from).contains(&number));
    }
    shop.pair.assert_no_panic();
}

#[test]
fn a_group_that_the_other_site_cannot_note_keeps_no_other_from_being_made() {
    let mut shop = Shop::open(4, &[], |_| None);
    shop.pair.a.tern(&["group", "create", "bank", "vm3", "vm4"]);
    shop.pair.a.kill();
    eventually("it can be ended there", || shop.pair.b.try_tern(&["group", "delete", "bank"]).is_ok());
    shop.pair.b.tern(&["volume", "create", "bank", "--size", "1M"]);
    shop.pair.a.restart();
    let [a, b] = [&shop.pair.a, &shop.pair.b];
    a.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
    a.tern(&["group", "create", "shop", "vm1", "vm2"]);
    assert_eq!(shop.shown(b)["volumes"], serde_json::json!(["vm1", "vm2"]));
    assert_eq!(b.tern(&["group", "list"])["groups"].as_array().map(Vec::len), Some(1));
    b.tern(&["volume", "delete", "bank", "--yes"]);
    eventually("it has noted that one, too", || b.tern(&["group", "list"])["groups"].as_array().map(Vec::len) == Some(2));
    a.assert_no_panic();
    b.assert_no_panic();
}

#[test]
fn both_sites_have_the_same_groups_whatever_is_killed() {
    let mut shop = Shop::start(2, &[]);
    assert_eq!(shop.shown(&shop.pair.b)["volumes"], serde_json::json!(shop.volumes));
    for (verb, hint) in [
        (vec!["group", "create", "shop", "vm1", "vm2"], "exists"),
        (vec!["group", "create", "vm1", "vm1", "vm2"], "exists"),
        (vec!["group", "create", "other", "vm1", "vm2"], "shop"),
        (vec!["volume", "create", "shop", "--size", "1M"], "exists"),
        (vec!["replicate", "vm1", "--stop"], "group"),
        (vec!["demote", "vm1"], "group"),
        (vec!["mode", "vm1", "snapshot"], "group"),
        (vec!["group", "remove", "shop", "vm1"], "2 to"),
    ] {
        let (code, said) = shop.pair.a.try_tern(&verb).unwrap_err();
        assert!(code > 0 && said.contains(hint), "{verb:?}: {code} {said}");
    }
    shop.pair.b.kill();
    shop.pair.b.restart();
    shop.pair.a.kill();
    shop.pair.a.restart();
    eventually("it is in sync again", || shop.shown(&shop.pair.a)["state"] == "in-sync" && shop.shown(&shop.pair.b)["point"].is_u64());
    shop.pair.a.tern(&["group", "delete", "shop"]);
    eventually("the standby has heard", || shop.pair.b.tern(&["group", "list"])["groups"].as_array().is_some_and(Vec::is_empty));

    // Killed at any moment of it: afterwards both sites have it, or neither.
    for _ in 0..rounds("GROUP_KILLS", 2) {
        thread::scope(|scope| {
            let create = scope.spawn(|| shop.pair.a.try_tern(&["group", "create", "shop", "vm1", "vm2"]).is_ok());
            thread::sleep(Duration::from_micros(dice().random_range(0..30_000)));
            shop.pair.a.signal(rustix::process::Signal::KILL);
            drop(create.join());
        });
        shop.pair.a.restart();
        let names = |site: &Site| site.tern(&["group", "list"])["groups"].as_array().unwrap().len();
        let began = Instant::now();
        eventually("both say the same", || names(&shop.pair.a) == names(&shop.pair.b) && began.elapsed() > Duration::from_secs(3));
        if names(&shop.pair.a) == 1 {
            shop.pair.a.tern(&["group", "delete", "shop"]);
        }
        eventually("there is none", || names(&shop.pair.a) + names(&shop.pair.b) == 0);
    }
    shop.pair.a.tern(&["group", "create", "shop", "vm1", "vm2"]);
    eventually("it is in sync", || shop.shown(&shop.pair.a)["state"] == "in-sync");
    shop.pair.assert_no_panic();
}
