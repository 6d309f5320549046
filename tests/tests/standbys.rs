//! One volume at three sites: a standby near in `sync`, one far in `async`, and what becomes of the others when one is promoted.

use rand::RngExt;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use tern_tests::{History, NbdClient, Site, Three, dice, eventually, in_sync, replica, rounds};

const BLOCK: usize = 4096;
const SIZE_MIB: u32 = 64;

fn content(stamp: u8) -> Vec<u8> {
    vec![stamp; BLOCK]
}

#[test]
fn near_in_sync_and_far_in_async_each_is_kept_as_it_was_asked_for() {
    let three = Three::start(SIZE_MIB);
    let seen = three.p.volume();
    assert_eq!((&replica(&seen, "oregon")["mode"], &replica(&seen, "milan")["mode"]), (&"sync".into(), &"async".into()));
    let refused = three.p.try_tern(&["replicate", "vm1", "--to", "milan", "--fence", "lease"]).unwrap_err();
    assert!(refused.1.contains("leases are for a volume with one standby"), "{refused:?}");
    assert!(three.p.try_tern(&["mode", "vm1", "barrier"]).unwrap_err().1.contains("--to SITE"));
    assert!(three.p.try_tern(&["replicate", "vm1", "--stop"]).unwrap_err().1.contains("--to SITE"));

    // The far one is gone: the near one's promise holds, and the status describes the far one.
    three.cut_far();
    let mut client = three.client(&three.p);
    let far_gone = |seen: &Value| replica(seen, "milan")["state"] == "disconnected";
    three.p.wait_until("without the far one", far_gone);
    (0..300).for_each(|block| client.write(block * 5 * BLOCK as u64, &content(0xaa)).unwrap());
    let seen = three.p.wait_until("behind", |seen| replica(seen, "milan")["backlog_bytes"].as_u64() >= Some(300 * BLOCK as u64));
    assert_eq!((&seen["peer"], &seen["state"], &seen["mode"]), (&"milan".into(), &"disconnected".into(), &"async".into()), "{seen}");
    assert_eq!((&replica(&seen, "oregon")["state"], &replica(&seen, "oregon")["rpo_seconds"]), (&"in-sync".into(), &0.0.into()), "{seen}");
    three.heal_far();
    in_sync(&three.p, "milan");
    three.p.verify();

    // A group has one standby site, and a trial one standby to take back.
    three.p.tern(&["volume", "create", "vm2", "--size", "4M"]);
    three.p.tern(&["replicate", "vm2", "--to", "oregon"]);
    let refused = three.p.try_tern(&["group", "create", "shop", "vm1", "vm2"]).unwrap_err();
    assert!(refused.1.contains("more than one site"), "{refused:?}");
    let refused = three.near.try_tern(&["promote", "vm1", "--force", "--trial", "1m"]).unwrap_err();
    assert!(refused.1.contains("more than one standby"), "{refused:?}");

    // Both in sync: a write waits for both, and no longer for one that is no standby any more.
    three.p.tern(&["mode", "vm1", "sync", "--to", "milan"]);
    three.p.wait_until("in sync twice", |seen| seen["promise_held"] == true && replica(seen, "milan")["mode"] == "sync");
    client.write(0, &content(0xbb)).unwrap();
    three.p.tern(&["replicate", "vm1", "--to", "milan", "--mode", "sync", "--on-disconnect", "suspend"]);
    three.cut_far();
    three.p.wait_until("suspended", |seen| replica(seen, "milan")["state"] == "suspended");
    three.p.tern(&["replicate", "vm1", "--stop", "--to", "milan"]);
    client.write(0, &content(0xcc)).unwrap();
    let seen = three.p.wait_until("with one standby", |seen| seen["replicas"].as_array().unwrap().len() == 1);
    assert_eq!((&seen["peer"], &seen["mode"], &seen["promise_held"]), (&"oregon".into(), &"sync".into(), &true.into()), "{seen}");
    three.p.verify();
    three.p.tern(&["group", "create", "shop", "vm1", "vm2"]);
    let refused = three.p.try_tern(&["replicate", "vm1", "--to", "milan"]).unwrap_err();
    assert!(refused.1.contains("member of group shop"), "{refused:?}");
    three.assert_no_panic();
}

/// Blocks that a test writes at the primary, at the beginning of each of so many regions that no two share one.
fn scattered(client: &mut NbdClient, stamp: u8, count: u64) {
    (0..count).for_each(|place| client.write(place * 37 * BLOCK as u64, &content(stamp)).unwrap());
    client.flush().unwrap();
}

/// Bytes that the site sent for the volume since it had sent `before`, once this standby is in sync.
fn sent_until_in_sync(primary: &Site, standby: &str, before: u64) -> u64 {
    in_sync(primary, standby)["wire_bytes_sent"].as_u64().unwrap() - before
}

/// Points that are kept until the operator lets them go.
fn pinned(site: &Site) -> Vec<Value> {
    let points = site.tern(&["points", "vm1"])["points"].as_array().unwrap().clone();
    points.into_iter().filter(|point| point["pinned"] == true).collect()
}

fn committed(site: &Site) -> u64 {
    site.volume()["epoch_committed"].as_u64().unwrap()
}

#[test]
fn the_far_one_follows_the_near_one_that_was_promoted_with_a_short_resync() {
    let mut three = Three::start(SIZE_MIB);
    let mut client = three.client(&three.p);
    // The near one gets further ahead, and knows by how much.
    three.cut_far();
    scattered(&mut client, 0x11, 100);
    assert!(committed(&three.near) > committed(&three.far));
    three.p.kill();
    drop(client);
    let before = three.near.volume()["wire_bytes_sent"].as_u64().unwrap();
    three.near.tern(&["promote", "vm1", "--force"]);
    let sent = sent_until_in_sync(&three.near, "milan", before);
    // Hashes and frames beside.
    assert!(sent < 100 * (BLOCK as u64 + 64) + 64 * 1024, "{sent} bytes sent for 100 blocks");
    let mut client = three.client(&three.near);
    scattered(&mut client, 0x22, 50);
    in_sync(&three.near, "milan");
    assert_eq!(three.far.volume()["peer"], "oregon");
    assert!(three.near.try_tern(&["verify", "vm1"]).is_err(), "the old primary is gone");

    // A crash of the new primary changes nothing of that, and the old one comes back, after its own changes are given up.
    three.near.kill();
    three.near.restart();
    in_sync(&three.near, "milan");
    three.old_primary_follows();
    three.near.verify();
    three.assert_no_panic();
}

#[test]
fn a_standby_that_is_ahead_of_the_promoted_one_gives_up_only_what_nobody_was_promised() {
    for promised in [true, false] {
        let mut three = Three::start(SIZE_MIB);
        // The far one, promised or not, gets what the near one lacks.
        let modes = if promised { ["async", "sync"] } else { ["async", "async"] };
        for (site, mode) in ["oregon", "milan"].iter().zip(modes) {
            three.p.tern(&["replicate", "vm1", "--to", site, "--mode", mode, "--rpo", "1s"]);
        }
        three.p.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
        three.p.wait_until("as promised", |seen| seen["promise_held"] == true);
        // From here on both know what changed.
        three.p.tern(&["snapshot", "vm1"]);
        three.cut_near();
        let at_both = committed(&three.near).max(committed(&three.far));
        let mut client = three.client(&three.p);
        scattered(&mut client, 0x33, 80);
        eventually("the far one is ahead", || committed(&three.far) > at_both);
        drop(client);
        three.p.kill();
        three.heal_near();
        assert!(committed(&three.near) <= at_both);
        assert_eq!(three.far.volume()["mode"], modes[1]);
        let before = three.near.volume()["wire_bytes_sent"].as_u64().unwrap();
        three.near.tern(&["promote", "vm1", "--force"]);
        if promised {
            let seen = three.far.wait_until("split", |seen| seen["state"] == "split-brain");
            assert!(seen["last_error"].as_str().unwrap().contains("does not give up by itself"), "{seen}");
            let (code, said) = three.far.try_tern(&["resync", "vm1"]).unwrap_err();
            assert!(code == 4 && said.contains("recovery points after"), "{code} {said}");
            assert_eq!(three.far.tern(&["resync", "vm1", "--discard-local"])["kept"], true);
        }
        let sent = sent_until_in_sync(&three.near, "milan", before);
        assert!(sent < 80 * (BLOCK as u64 + 64) + 64 * 1024, "{sent} bytes sent for 80 blocks");
        assert_eq!(three.far.volume()["last_error"], Value::Null);
        // What was discarded is kept until the operator lets it go, and can be looked at.
        assert_eq!(pinned(&three.far).len(), 1);
        three.far.tern(&["resync", "vm1", "--discard-local", "--yes"]);
        assert!(pinned(&three.far).is_empty());
        three.old_primary_follows();
        three.near.verify();
        three.assert_no_panic();
    }
}

#[test]
fn a_standby_that_gave_way_to_the_new_primary_does_not_take_the_old_one_back_before_that_one_comes() {
    let mut three = Three::start(SIZE_MIB);
    three.p.tern(&["replicate", "vm1", "--to", "oregon", "--mode", "async", "--rpo", "1s"]);
    let mut client = three.client(&three.p);
    scattered(&mut client, 0x65, 10);
    three.p.tern(&["snapshot", "vm1"]);
    three.cut_near();
    let at_both = committed(&three.far);
    scattered(&mut client, 0x66, 80);
    eventually("the far one is ahead", || committed(&three.far) > at_both);
    // The old primary is out of reach: it does not hear why the far one lets it go.
    drop(client);
    three.p.kill();
    three.cut_far();
    three.p.restart();
    three.near.tern(&["promote", "vm1", "--force"]);
    eventually("the far one has given way", || pinned(&three.far).len() == 1);
    // Before it tries again, and is taken.
    three.near.kill();
    let mut client = three.client(&three.p);
    (0..50).for_each(|place| client.write((place * 37 + 5) * BLOCK as u64, &content(0x77)).unwrap());
    three.heal_far();
    three.p.wait_until("overtaken", |seen| seen["role"] == "stale");
    drop(client);
    three.near.restart();
    in_sync(&three.near, "milan");
    three.heal_near();
    three.p.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    in_sync(&three.near, "osaka");
    three.near.verify();
    three.assert_no_panic();
}

#[test]
fn after_a_handover_the_others_follow_with_nothing_sent() {
    let three = Three::start(SIZE_MIB);
    let mut client = three.client(&three.p);
    scattered(&mut client, 0x44, 60);
    drop(client);
    let before = three.near.volume()["wire_bytes_sent"].as_u64().unwrap();
    let done = three.near.tern(&["promote", "vm1"]);
    assert_eq!((&done["kind"], &done["lost_bytes"]), (&"handover".into(), &0.into()));
    let _ = sent_until_in_sync(&three.near, "osaka", before);
    let sent = sent_until_in_sync(&three.near, "milan", before);
    assert!(sent < 16 * 1024, "{sent} bytes sent for nothing");
    // And on to the far one, and back: any of them may be primary.
    for (site, others) in [(&three.far, ["osaka", "oregon"]), (&three.p, ["oregon", "milan"])] {
        let mut client = three.client([&three.near, &three.far][usize::from(site.name == "osaka")]);
        scattered(&mut client, 0x55, 20);
        drop(client);
        assert_eq!(site.tern(&["promote", "vm1"])["kind"], "handover");
        others.iter().for_each(|other| drop(in_sync(site, other)));
        site.verify();
    }
    three.assert_no_panic();
}

#[test]
fn when_one_goes_back_to_an_older_point_the_others_follow_it_there() {
    let three = Three::start(SIZE_MIB);
    let mut client = three.client(&three.p);
    scattered(&mut client, 0x66, 40);
    three.p.tern(&["snapshot", "vm1"]);
    in_sync(&three.p, "milan");
    let point = committed(&three.near);
    scattered(&mut client, 0x77, 60);
    three.p.tern(&["snapshot", "vm1"]);
    drop(client);
    assert!(committed(&three.far) > point && committed(&three.near) > point);
    let done = three.near.tern(&["promote", "vm1", "--at", &point.to_string(), "--force"]);
    assert_eq!((&done["kind"], done["epoch"].as_u64()), (&"failover".into(), Some(point)));
    let mut client = three.client(&three.near);
    let mut shown = content(0);
    client.read(37 * BLOCK as u64, &mut shown).unwrap();
    assert_eq!(shown, content(0x66));
    in_sync(&three.near, "milan");
    assert_eq!(pinned(&three.far).len(), 1, "what it had beyond the point");
    three.p.wait_until("overtaken", |seen| seen["role"] == "stale");
    three.p.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    in_sync(&three.near, "osaka");
    scattered(&mut client, 0x88, 10);
    three.near.wait_until("led back", |seen| seen["going_back"].is_null());
    three.near.verify();
    three.assert_no_panic();
}

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Near,
    Far,
    Primary,
    PrimaryAndFar,
}

fn kill_under_load(three: &mut Three, victim: Victim, history: &mut History, span: Duration) {
    let (mut client, stop) = (three.client(&three.p), AtomicBool::new(false));
    let fails = matches!(victim, Victim::Primary | Victim::PrimaryAndFar);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| history.write_while(&mut client, || !stop.load(SeqCst)));
        std::thread::sleep(span);
        match victim {
            Victim::Near => {
                three.near.kill();
                three.near.restart();
            }
            Victim::Far => {
                three.far.kill();
                std::thread::sleep(span);
                three.far.restart();
            }
            Victim::Primary => three.p.kill(),
            Victim::PrimaryAndFar => {
                three.far.kill();
                three.p.kill();
                three.far.restart();
            }
        }
        stop.store(!fails, SeqCst);
        assert_eq!(load.join().unwrap().is_err(), fails);
    });
}

/// The near one goes on, with all that was acknowledged; the far one follows, and the old primary is handed the volume back.
fn fail_over_and_back(three: &mut Three, history: &mut History, known_to_both: usize) {
    let before = three.near.volume()["wire_bytes_sent"].as_u64().unwrap();
    three.near.tern(&["promote", "vm1", "--force"]);
    let prefix = history.assert_prefix(&mut three.client(&three.near));
    assert!(prefix >= history.acknowledged(), "{prefix} of {} acknowledged writes", history.acknowledged());
    history.forget_beyond(prefix);
    let sent = sent_until_in_sync(&three.near, "milan", before);
    let union = history.blocks_since(known_to_both) as u64;
    assert!(sent <= (union * (BLOCK as u64 + 64)) * 11 / 10 + 96 * 1024, "{sent} bytes sent where {union} blocks differ");
    three.old_primary_follows();
    assert_eq!(three.p.tern(&["promote", "vm1"])["kind"], "handover");
}

/// `STANDBY_KILLS=200` is a long run. Each round prints what was drawn for it.
#[test]
fn whoever_of_three_dies_under_load_the_near_one_has_what_was_acknowledged_and_the_far_one_follows_shortly() {
    let mut three = Three::start(SIZE_MIB);
    let (mut history, mut dice) = (History::within(4096..4608), dice());
    for round in 0..rounds("STANDBY_KILLS", 4) {
        let victim = [Victim::Primary, Victim::Near, Victim::PrimaryAndFar, Victim::Far][round as usize % 4];
        let (span, lags) = (Duration::from_millis(dice.random_range(50..500)), dice.random_bool(0.5));
        println!("round {round}: {victim:?} dies after {span:?}, the far one lags: {lags}");
        ["oregon", "milan"].iter().for_each(|standby| drop(in_sync(&three.p, standby)));
        three.p.wait_until("held", |seen| replica(seen, "oregon")["mode"] == "sync" && replica(seen, "oregon")["promise_held"] == true);
        let known_to_both = history.len();
        if lags {
            three.cut_far();
        }
        kill_under_load(&mut three, victim, &mut history, span);
        three.heal_far();
        match victim {
            Victim::Primary | Victim::PrimaryAndFar => fail_over_and_back(&mut three, &mut history, known_to_both),
            Victim::Near | Victim::Far => {}
        }
        ["oregon", "milan"].iter().for_each(|standby| drop(in_sync(&three.p, standby)));
        let mut client = three.client(&three.p);
        assert_eq!(history.assert_prefix(&mut client), history.len(), "a write that was acknowledged is gone");
        drop(client);
        three.p.verify();
        three.assert_no_panic();
    }
}
