//! Consistency groups: a client writes to one volume, waits, and then to the other. No point of the group has the second write without the
//! first, whatever is killed.

use rand::RngExt;
use serde_json::Value;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use tern_tests::{NbdClient, Pair, Site, dice, eventually, rounds};

const BLOCK: usize = 4096;
/// Counters go round in so many blocks of each volume.
const RING: u64 = 64;
/// Beyond them there is load.
const LOAD_FROM: u64 = 1 << 20;
const VOLUMES: [&str; 2] = ["vm1", "vm2"];
/// What the writes of a group may be held for.
const MOST_HELD_SECONDS: f64 = 0.05;

/// Two volumes at both sites, and a group of them.
fn pair(flags: [&[&str]; 2], more: &[&str]) -> Pair {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Site::start_with("osaka", directory.path(), flags[0]), Site::start_with("oregon", directory.path(), flags[1]));
    let at = [a.listen().to_owned(), b.listen().to_owned()];
    VOLUMES.iter().for_each(|volume| drop(a.tern(&["volume", "create", volume, "--size", "32M"])));
    let pair = Pair::of(directory, a, b, [&at[0], &at[1]], "400ms");
    pair.a.tern(&["replicate", "vm2", "--to", "oregon", "--rpo", "400ms"]);
    for site in [&pair.a, &pair.b] {
        let export = ["volume", "export", "vm2", "--nbd", &format!("unix:{}", site.socket("nbd").display())];
        eventually("vm2 is served", || site.try_tern(&export).is_ok());
    }
    for volume in VOLUMES {
        if !more.is_empty() {
            pair.a.tern(&[&["replicate", volume, "--to", "oregon"], more].concat());
        }
        pair.a.tern(&["wait", volume, "--for", "in-sync", "--timeout", "60s"]);
    }
    pair.a.tern(&["group", "create", "shop", "vm1", "vm2"]);
    pair
}

fn clients(socket: &Path) -> [NbdClient; 2] {
    VOLUMES.map(|volume| NbdClient::connect_to(socket, volume).unwrap())
}

fn shown(site: &Site) -> Value {
    site.tern(&["group", "show", "shop"])
}

/// Writes counters to one volume and then to the other, each once the one before is acknowledged. `told` is the last that both have.
fn count(clients: &mut [NbdClient; 2], told: &AtomicU64, flush: Flush, go_on: impl Fn() -> bool) -> io::Result<()> {
    while go_on() {
        let next = told.load(SeqCst) + 1;
        let block: Vec<u8> = next.to_le_bytes().repeat(BLOCK / 8);
        for client in &mut *clients {
            client.write(next % RING * BLOCK as u64, &block)?;
            if flush == Flush::Each {
                client.flush()?;
            }
        }
        told.store(next, SeqCst);
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flush {
    Never,
    Each,
}

/// The last counter in each volume. Each has all before it, and the second none that the first lacks.
fn counted(mut clients: [NbdClient; 2]) -> u64 {
    let last = clients.each_mut().map(|client| {
        let mut ring = vec![0; RING as usize * BLOCK];
        client.read(0, &mut ring).unwrap();
        let number = |at: usize| u64::from_le_bytes(ring[at * BLOCK..][..8].try_into().unwrap());
        let last = (0..RING as usize).map(number).max().unwrap();
        for at in 0..RING {
            let expected = (last.saturating_sub(RING - 1)..=last).find(|counter| counter % RING == at).unwrap_or(0);
            assert_eq!(number(at as usize), expected, "block {at} at {last}");
        }
        last
    });
    assert!(last[0] == last[1] || last[0] == last[1] + 1, "the volumes are of different instants: {last:?}");
    last[1]
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

fn points(site: &Site) -> Vec<u64> {
    site.tern(&["points", "shop"])["points"].as_array().unwrap().iter().map(|point| point["epoch"].as_u64().unwrap()).collect()
}

/// What a drill of the group shows.
fn drilled(site: &Site, at: &[&str]) -> u64 {
    let socket = site.socket("drill");
    let drill = site.tern(&[&["drill", "shop", "--nbd", &format!("unix:{}", socket.display())], at].concat());
    assert_eq!(drill["members"].as_array().map(Vec::len), Some(2), "{drill}");
    let last = counted(clients(&socket));
    let ended = site.tern(&["drill", "shop", "--end"]);
    assert_eq!(ended["state"], "ended", "{ended}");
    last
}

#[test]
fn no_point_of_a_group_has_a_write_without_the_acknowledged_one_before_it() {
    for _ in 0..rounds("GROUP_KILLS", 2) {
        let mut pair = pair([&[], &[]], &[]);
        let (told, go_on) = (AtomicU64::new(0), AtomicBool::new(true));
        let (mut writers, socket) = (clients(&pair.a.socket("nbd")), pair.a.socket("nbd"));
        let mut cut = (0, 0);
        thread::scope(|scope| {
            let counting = scope.spawn(|| count(&mut writers, &told, Flush::Never, || true));
            let loading = scope.spawn(|| load(&socket, &go_on));
            for _ in 0..4 {
                let before = told.load(SeqCst);
                cut = (pair.a.tern(&["snapshot", "shop"])["epoch"].as_u64().unwrap(), before);
                thread::sleep(Duration::from_millis(dice().random_range(100..500)));
            }
            let held = shown(&pair.a);
            assert!(held["longest_hold_seconds"].as_f64() < Some(MOST_HELD_SECONDS) && held["cuts"].as_u64() > Some(4), "{held}");
            assert!(held["state"] == "in-sync" && held["reason"].is_null(), "{held}");
            println!("held {} s at most in {} cuts", held["longest_hold_seconds"], held["cuts"]);
            assert!(drilled(&pair.b, &["--at", &cut.0.to_string()]) >= cut.1);
            thread::sleep(Duration::from_millis(dice().random_range(0..400)));
            pair.a.kill();
            go_on.store(false, SeqCst);
            let _ = (counting.join(), loading.join());
        });
        let all = points(&pair.b);
        assert!(all.len() >= 4 && all.is_sorted() && all.contains(&cut.0), "{all:?}");
        let mut before = 0;
        for point in [all[1], all[all.len() / 2], cut.0] {
            let seen = drilled(&pair.b, &["--at", &point.to_string()]);
            assert!(point < all[1] || seen >= before, "{seen} after {before}");
            before = before.max(seen);
        }
        let (code, said) = pair.b.try_tern(&["promote", "vm1", "--force"]).unwrap_err();
        assert!(code == 1 && said.contains("shop"), "{code} {said}");
        assert_eq!(pair.b.try_tern(&["promote", "shop"]).unwrap_err().0, 4);
        let promotion = pair.b.tern(&["promote", "shop", "--force"]);
        assert_eq!((promotion["epoch"].as_u64(), &promotion["kind"]), (all.last().copied(), &"failover".into()), "{promotion}");
        let last = counted(clients(&pair.b.socket("nbd")));
        assert!(last >= cut.1 && last <= told.load(SeqCst), "{last}");
        pair.a.assert_no_panic();
        pair.b.assert_no_panic();
    }
}

#[test]
fn in_mode_barrier_a_flush_of_one_volume_is_in_the_groups_newest_point() {
    for _ in 0..rounds("GROUP_KILLS", 2) {
        let mut pair = pair([&[], &[]], &["--mode", "barrier"]);
        eventually("the promise holds", || shown(&pair.a)["promise_held"] == true);
        let told = AtomicU64::new(0);
        let mut writers = clients(&pair.a.socket("nbd"));
        let promised = thread::scope(|scope| {
            let counting = scope.spawn(|| count(&mut writers, &told, Flush::Each, || true));
            thread::sleep(Duration::from_millis(dice().random_range(500..1500)));
            let held = shown(&pair.a);
            assert!(held["promise_held"] == true && held["longest_hold_seconds"].as_f64() < Some(MOST_HELD_SECONDS), "{held}");
            pair.a.kill();
            let _ = counting.join();
            told.load(SeqCst)
        });
        assert!(promised > 5, "{promised}");
        pair.b.tern(&["promote", "shop", "--force"]);
        let last = counted(clients(&pair.b.socket("nbd")));
        assert!(last >= promised, "{promised} were flushed, and {last} are there");
        println!("{promised} flushed counters");
        pair.b.assert_no_panic();
    }
}

#[test]
fn a_group_is_handed_over_as_a_whole_and_back() {
    let pair = pair([&[], &[]], &[]);
    let told = AtomicU64::new(0);
    let mut writers = clients(&pair.a.socket("nbd"));
    count(&mut writers, &told, Flush::Never, || told.load(SeqCst) < 100).unwrap();
    eventually("it is in sync", || shown(&pair.a)["state"] == "in-sync");
    let (code, said) = pair.b.try_tern(&["promote", "shop"]).unwrap_err();
    assert!(code == 4 && said.contains("client is active"), "{code} {said}");
    let [first, second] = writers;
    drop(first);
    // One client is enough, wherever it is: nothing has stopped.
    eventually("vm2 is in the way", || {
        let (code, said) = pair.b.try_tern(&["promote", "shop"]).unwrap_err();
        code == 4 && said.contains("vm2")
    });
    assert_eq!(shown(&pair.a)["role"], "primary");
    drop(second);
    for (to, from) in [(&pair.b, &pair.a), (&pair.a, &pair.b)] {
        eventually("nobody is attached", || {
            let seen = from.tern(&["status"]);
            seen["volumes"].as_array().unwrap().iter().all(|volume| volume["attached"].as_array().is_some_and(Vec::is_empty))
        });
        let promotion = to.tern(&["promote", "shop"]);
        assert_eq!((&promotion["kind"], &promotion["lost_bytes"]), (&"handover".into(), &0.into()), "{promotion}");
        let mut writers = clients(&to.socket("nbd"));
        count(&mut writers, &told, Flush::Never, || told.load(SeqCst) % 100 < 50).unwrap();
        told.fetch_add(49, SeqCst);
        count(&mut writers, &told, Flush::Never, || !told.load(SeqCst).is_multiple_of(100)).unwrap();
        drop(writers);
        eventually("the roles have changed", || shown(to)["role"] == "primary" && shown(from)["role"] == "standby");
        eventually("it is in sync", || shown(to)["state"] == "in-sync");
        let number = to.tern(&["snapshot", "shop"])["epoch"].as_u64().unwrap();
        assert!(points(from).contains(&number));
    }
    pair.a.assert_no_panic();
    pair.b.assert_no_panic();
}

#[test]
fn both_sites_have_the_same_groups_whatever_is_killed() {
    let mut pair = pair([&[], &[]], &[]);
    assert_eq!(shown(&pair.b)["volumes"], serde_json::json!(VOLUMES));
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
        let (code, said) = pair.a.try_tern(&verb).unwrap_err();
        assert!(code > 0 && said.contains(hint), "{verb:?}: {code} {said}");
    }
    pair.b.kill();
    pair.b.restart();
    pair.a.kill();
    pair.a.restart();
    eventually("it is in sync again", || shown(&pair.a)["state"] == "in-sync" && shown(&pair.b)["point"].is_u64());
    pair.a.tern(&["group", "delete", "shop"]);
    eventually("the standby has heard", || pair.b.tern(&["group", "list"])["groups"].as_array().is_some_and(Vec::is_empty));

    // Killed at any moment of it: afterwards both sites have it, or neither.
    for _ in 0..rounds("GROUP_KILLS", 2) {
        thread::scope(|scope| {
            let create = scope.spawn(|| pair.a.try_tern(&["group", "create", "shop", "vm1", "vm2"]).is_ok());
            thread::sleep(Duration::from_micros(dice().random_range(0..30_000)));
            pair.a.signal(rustix::process::Signal::KILL);
            drop(create.join());
        });
        pair.a.restart();
        let names = |site: &Site| site.tern(&["group", "list"])["groups"].as_array().unwrap().len();
        let began = Instant::now();
        eventually("both say the same", || names(&pair.a) == names(&pair.b) && began.elapsed() > Duration::from_secs(3));
        if names(&pair.a) == 1 {
            pair.a.tern(&["group", "delete", "shop"]);
        }
        eventually("there is none", || names(&pair.a) + names(&pair.b) == 0);
    }
    pair.a.tern(&["group", "create", "shop", "vm1", "vm2"]);
    eventually("it is in sync", || shown(&pair.a)["state"] == "in-sync");
    pair.a.assert_no_panic();
    pair.b.assert_no_panic();
}
