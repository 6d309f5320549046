//! A failover that can be taken back: made final, rolled back, over time and over crashes.

use rand::RngExt;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use tern_tests::{History, NbdClient, Pair, Site, dice};

const BLOCK: usize = 4096;
const MIB: u32 = 16;
const BLOCKS: u32 = MIB * 256;

fn client(site: &Site) -> NbdClient {
    NbdClient::connect(&site.socket("nbd")).unwrap()
}

/// A pair whose standby has all of a history.
fn written(history: &mut History) -> Pair {
    let pair = Pair::start(MIB, "1s");
    history.write_for(&mut client(&pair.a), Duration::from_millis(300)).unwrap();
    pair.a.tern(&["snapshot", "vm1"]);
    pair
}

fn is_on_trial(volume: &serde_json::Value) -> bool {
    volume["state"] == "trial" && volume["role"] == "primary"
}

/// Overwrites this and that for a while, then the site is killed and started again.
fn scribble_and_kill(site: &mut Site, for_how_long: Duration) {
    let mut client = client(site);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = dice();
            let mut write = || client.write(u64::from(dice.random_range(0..BLOCKS)) * BLOCK as u64, &[0xee; BLOCK]);
            while !is_over.load(SeqCst) {
                if write().is_err() {
                    return;
                }
            }
        });
        thread::sleep(for_how_long);
        site.kill();
        is_over.store(true, SeqCst);
    });
    site.restart();
}

#[test]
fn a_trial_that_is_rolled_back_leaves_the_standby_as_it_was_and_the_primary_goes_on() {
    let mut history = History::new(BLOCKS);
    let mut pair = written(&mut history);
    // What the standby lacks stays at the primary, and is not lost.
    history.write_for(&mut client(&pair.a), Duration::from_millis(20)).unwrap();
    let (code, said) = pair.b.try_tern(&["rollback", "vm1"]).unwrap_err();
    assert!(code == 1 && said.contains("not on trial"), "{code} {said}");
    let begun = pair.b.tern(&["promote", "vm1", "--force", "--trial", "10m"]);
    let seen = pair.b.volume();
    assert!(is_on_trial(&seen) && seen["generation"] == begun["generation"] && seen["trial"]["point"] == begun["epoch"], "{seen}");
    let fenced = pair.a.wait_until("fenced for the trial", |volume| volume["state"] == "fenced");
    assert!(fenced["role"] == "primary" && fenced["last_error"].as_str().unwrap().contains("on trial"), "{fenced}");

    for refused in [&["demote", "vm1"][..], &["points", "vm1"], &["promote", "vm1", "--force"], &["volume", "resize", "vm1", "32M"]] {
        let (code, said) = pair.b.try_tern(refused).unwrap_err();
        assert!(code == 1 && said.contains("tern rollback"), "{refused:?}: {code} {said}");
    }
    scribble_and_kill(&mut pair.b, Duration::from_millis(200));
    assert!(is_on_trial(&pair.b.volume()), "after a crash it is a trial still");
    pair.a.kill();
    pair.a.restart();
    assert_eq!(pair.a.volume()["state"], "fenced", "after a crash it is fenced still");

    let mut there = client(&pair.b);
    let mut mark = [0; BLOCK];
    there.write(7 * BLOCK as u64, &[b't'; BLOCK]).unwrap();
    there.flush().unwrap();
    there.read(7 * BLOCK as u64, &mut mark).unwrap();
    assert_eq!(mark, [b't'; BLOCK]);
    let (code, said) = pair.b.try_tern(&["rollback", "vm1"]).unwrap_err();
    assert!(code == 4 && said.contains("nbd"), "{code} {said}");
    pair.b.tern(&["rollback", "vm1", "--force"]);
    assert!(there.read(0, &mut mark).is_err(), "its client has to begin anew");
    let back = pair.b.volume();
    assert!(back["role"] == "standby" && back["trial"].is_null(), "{back}");

    pair.a.wait_until("going on", |volume| volume["state"] == "in-sync");
    history.write_for(&mut client(&pair.a), Duration::from_millis(200)).unwrap();
    pair.a.verify();
    pair.b.tern(&["promote", "vm1"]);
    assert_eq!(history.assert_prefix(&mut client(&pair.b)), history.len());
    pair.assert_no_panic();
}

#[test]
fn what_rots_of_what_a_trial_keeps_is_not_rolled_back_into_the_image_unseen() {
    let mut history = History::new(BLOCKS);
    let pair = written(&mut history);
    let mut primary = client(&pair.a);
    primary.write(7 * BLOCK as u64, &[b'p'; BLOCK]).unwrap();
    primary.flush().unwrap();
    drop(primary);
    pair.a.tern(&["snapshot", "vm1"]);
    pair.b.tern(&["promote", "vm1", "--force", "--trial", "10m"]);
    client(&pair.b).write(7 * BLOCK as u64, &[b't'; BLOCK]).unwrap();
    let kept = std::fs::read_dir(pair.b.state_dir().join("trials")).unwrap().map(|entry| entry.unwrap().path());
    let kept = kept.into_iter().find(|path| path.extension().is_none()).unwrap();
    std::fs::File::options().write(true).open(kept).unwrap().write_all_at(b"rot", 7 * BLOCK as u64 + 99).unwrap();
    pair.b.wait_until("alone", |volume| volume["attached"].as_array().unwrap().is_empty());
    let (code, said) = pair.b.try_tern(&["rollback", "vm1"]).unwrap_err();
    assert!(code == 4 && said.contains("first of them 7") && said.contains("tern commit"), "{code} {said}");
    assert!(is_on_trial(&pair.b.volume()), "it may still be made final");
    pair.b.tern(&["rollback", "vm1", "--force"]);
    pair.b.wait_until("mended", |volume| volume["scrub"]["found_blocks"] == 1 && volume["scrub"]["repaired_blocks"] == 1);
    pair.a.verify();
    pair.b.tern(&["promote", "vm1"]);
    let mut content = [0; BLOCK];
    client(&pair.b).read(7 * BLOCK as u64, &mut content).unwrap();
    assert_eq!(content, [b'p'; BLOCK]);
    pair.assert_no_panic();
}

#[test]
fn a_trial_of_an_older_point_is_made_final_under_a_client_and_the_old_primary_gives_way() {
    let mut history = History::new(BLOCKS);
    let mut pair = written(&mut history);
    let point = pair.b.volume()["epoch_committed"].to_string();
    let mut primary = client(&pair.a);
    (0..u64::from(MIB)).for_each(|mib| primary.write(mib << 20, &vec![0xee; 1 << 20]).unwrap());
    drop(primary);
    pair.a.tern(&["snapshot", "vm1"]);
    pair.a.kill();

    pair.b.tern(&["promote", "vm1", "--force", "--trial", "10m", "--at", &point]);
    history.write_for(&mut client(&pair.b), Duration::from_millis(100)).unwrap();
    pair.b.kill();
    pair.b.restart();
    assert!(is_on_trial(&pair.b.volume()));
    let mut there = client(&pair.b);
    history.settle(&mut there);
    assert_eq!(history.assert_prefix(&mut there), history.len());

    // It comes back, and acknowledges nothing beside the trial.
    pair.a.restart();
    pair.a.wait_until("fenced for the trial", |volume| volume["state"] == "fenced");
    let is_final = AtomicBool::new(false);
    thread::scope(|scope| {
        let writes = scope.spawn(|| history.write_while(&mut there, || !is_final.load(SeqCst)));
        let generation = pair.b.volume()["generation"].clone();
        let done = pair.b.tern(&["commit", "vm1"]);
        assert_eq!(done["generation"], generation);
        thread::sleep(Duration::from_millis(100));
        is_final.store(true, SeqCst);
        writes.join().unwrap().expect("its client sees a pause, and no error");
    });
    let (code, said) = pair.b.try_tern(&["rollback", "vm1"]).unwrap_err();
    assert!(code == 1 && said.contains("not on trial"), "{code} {said}");
    pair.b.kill();
    pair.b.restart();
    pair.a.wait_until("overtaken", |volume| volume["role"] == "stale");
    pair.a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    pair.b.verify();
    let mut there = client(&pair.b);
    history.settle(&mut there);
    assert_eq!(history.assert_prefix(&mut there), history.len());
    drop(there);
    pair.b.wait_until("led back", |volume| volume["going_back"].is_null());
    pair.a.tern(&["promote", "vm1"]);
    assert_eq!(history.assert_prefix(&mut client(&pair.a)), history.len());
    pair.assert_no_panic();
}

#[test]
fn a_trial_runs_out_only_when_no_client_is_attached() {
    let mut history = History::new(BLOCKS);
    let pair = written(&mut history);
    pair.b.tern(&["promote", "vm1", "--force", "--trial", "2s"]);
    let mut there = client(&pair.b);
    there.write(0, &[b't'; BLOCK]).unwrap();
    thread::sleep(Duration::from_secs(5));
    assert!(is_on_trial(&pair.b.volume()), "its time is over, and a client is attached");
    drop(there);
    pair.b.wait_until("a standby again", |volume| volume["role"] == "standby");
    pair.a.wait_until("going on", |volume| volume["state"] == "in-sync");
    pair.a.verify();
    pair.b.tern(&["promote", "vm1"]);
    assert_eq!(history.assert_prefix(&mut client(&pair.b)), history.len());
}

/// `KILLS=n` kills more often.
#[test]
fn killed_while_it_is_rolled_back_it_goes_on_with_that_by_itself() {
    let kills = std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(3);
    let mut history = History::new(BLOCKS);
    let mut pair = written(&mut history);
    for _ in 0..kills {
        pair.b.tern(&["promote", "vm1", "--force", "--trial", "10m"]);
        scribble_and_kill(&mut pair.b, Duration::from_millis(300));
        let mut asked = pair.b.start_tern(&["rollback", "vm1", "--force"]);
        thread::sleep(Duration::from_millis(dice().random_range(0..60)));
        pair.b.kill();
        asked.wait().unwrap();
        pair.b.restart();
        let seen = pair.b.volume();
        if seen["trial"]["taken_back"] == false {
            pair.b.tern(&["rollback", "vm1", "--force"]);
        }
        pair.b.wait_until("a standby again", |volume| volume["role"] == "standby");
        pair.a.wait_until("going on", |volume| volume["state"] == "in-sync");
        history.write_for(&mut client(&pair.a), Duration::from_millis(50)).unwrap();
        pair.a.verify();
    }
    pair.b.tern(&["promote", "vm1"]);
    assert_eq!(history.assert_prefix(&mut client(&pair.b)), history.len());
    pair.b.assert_no_panic();
}
