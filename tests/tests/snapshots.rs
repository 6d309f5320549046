//! Mode `snapshot`: what the standby shows is the cut that was asked for, or was due, and no guest waits for it.

use rand::RngExt;
use rustix::process::Signal;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tern_tests::{History, NbdClient, Pair, Site, dice};

const MIB: usize = 1 << 20;
const CHUNK_BYTES: usize = 64 << 10;
/// Little memory, and the smallest spill file that there may be.
const SMALL_SPILL: [&str; 4] = ["--spill-memory", "1MiB", "--spill-quota", "16MiB"];
/// What fits there, and what does not.
const SPILLED_MIB: usize = 12;
const OVERFLOWING_MIB: usize = 24;
/// Nothing to speak of is sent over it in the time that overwriting takes.
const SLOW: [&str; 2] = ["--bandwidth", "4Mbit"];
/// A guest's disk that takes longer is felt.
const FELT: Duration = Duration::from_secs(2);

/// A pair in mode `snapshot` that cuts only when asked.
fn pair(size_mib: u32, flags: &[&str], more: &[&str]) -> Pair {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Site::start_with("osaka", directory.path(), flags), Site::start("oregon", directory.path()));
    let at = [a.listen().to_owned(), b.listen().to_owned()];
    a.tern(&["volume", "create", "vm1", "--size", &format!("{size_mib}M")]);
    let pair = Pair::of(directory, a, b, [&at[0], &at[1]], "200ms");
    pair.a.tern(&[&["replicate", "vm1", "--to", "oregon", "--mode", "snapshot"], more].concat());
    pair.a.wait_until("in-sync", |seen| seen["mode"] == "snapshot" && seen["state"] == "in-sync" && seen["promise_held"] == true);
    pair
}

/// Fills the first so many MiB with one byte mixed into noise that does not compress; the longest write.
fn fill(client: &mut NbdClient, noise: &[u8], byte: u8) -> Duration {
    let mut longest = Duration::ZERO;
    for (at, chunk) in (0..).step_by(CHUNK_BYTES).zip(noise.chunks(CHUNK_BYTES)) {
        let content: Vec<u8> = chunk.iter().map(|noise| noise ^ byte).collect();
        let began = Instant::now();
        client.write(at, &content).unwrap();
        longest = longest.max(began.elapsed());
    }
    longest
}

/// What each chunk was filled with.
fn filled_with(client: &mut NbdClient, noise: &[u8]) -> Vec<u8> {
    let mut content = vec![0; CHUNK_BYTES];
    let mut of_chunk = |(at, chunk): (u64, &[u8])| {
        client.read(at, &mut content).unwrap();
        let byte = content[0] ^ chunk[0];
        assert!(content.iter().zip(chunk).all(|(content, noise)| content ^ noise == byte), "the chunk at {at} is a mix");
        byte
    };
    (0..).step_by(CHUNK_BYTES).zip(noise.chunks(CHUNK_BYTES)).map(&mut of_chunk).collect()
}

fn noise(mib: usize) -> Vec<u8> {
    let mut rng = dice();
    (0..mib * MIB / 8).flat_map(|_| rng.random::<u64>().to_le_bytes()).collect()
}

/// Fills the disk, cuts, and overwrites it all while the cut is on its way; the longest write, and what the standby shows then.
fn overwritten_while_shipped(pair: &mut Pair, noise: &[u8]) -> (Duration, Vec<u8>) {
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    fill(&mut client, noise, 1);
    let before = pair.a.volume()["epoch_open"].as_u64().unwrap();
    let longest = std::thread::scope(|scope| {
        let cut = scope.spawn(|| pair.a.tern(&["snapshot", "vm1"]));
        pair.a.wait_until("cut", |seen| seen["epoch_open"].as_u64() > Some(before));
        let longest = fill(&mut client, noise, 2);
        assert!(!cut.is_finished(), "the cut was there before all was overwritten: the link is too fast for this test");
        pair.a.tern(&["replicate", "vm1", "--to", "oregon", "--bandwidth", "none"]);
        cut.join().unwrap();
        longest
    });
    pair.a.kill();
    pair.b.tern(&["promote", "vm1", "--force"]);
    (longest, filled_with(&mut NbdClient::connect(&pair.b.socket("nbd")).unwrap(), noise))
}

/// Lesson: a cut under I/O is one atomic switch (ceph#52109).
#[test]
fn the_standby_shows_exactly_the_cut_though_all_of_it_is_overwritten_while_it_is_shipped() {
    let mut pair = pair(32, &SMALL_SPILL, &SLOW);
    let noise = noise(SPILLED_MIB);
    let (longest, shown) = overwritten_while_shipped(&mut pair, &noise);
    assert!(shown.iter().all(|byte| *byte == 1), "{shown:?}");
    assert!(pair.a.logged(&["the cut is given up"]).is_empty());
    assert!(longest < FELT, "a write took {longest:?}");
    assert_eq!(pair.b.volume()["mode"], "snapshot");
    pair.assert_no_panic();
}

#[test]
fn a_cut_that_finds_no_room_is_given_up_and_taken_anew_and_no_write_waits_for_it() {
    let mut pair = pair(32, &SMALL_SPILL, &SLOW);
    let noise = noise(OVERFLOWING_MIB);
    let (longest, shown) = overwritten_while_shipped(&mut pair, &noise);
    assert!(!pair.a.logged(&["the cut is given up"]).is_empty());
    let newer = shown.iter().take_while(|byte| **byte == 2).count();
    assert!(newer > 0 && shown[newer..].iter().all(|byte| *byte == 1), "the state at one instant: {shown:?}");
    assert!(longest < FELT, "a write took {longest:?}");
    pair.b.assert_no_panic();
}

#[test]
fn between_cuts_nothing_is_cut_and_the_rpo_says_what_that_would_cost() {
    let pair = pair(16, &[], &[]);
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    let (before, written) = (pair.a.volume(), Instant::now());
    client.write(0, &[7; 4096]).unwrap();
    // Many times the RPO that was asked for when it was `async`.
    let seen = pair.a.wait_until("older", |seen| seen["rpo_seconds"].as_f64() > Some(2.0));
    assert_eq!(seen["epoch_committed"], before["epoch_committed"]);
    assert!(seen["backlog_bytes"] == 4096 && seen["state"] == "in-sync" && seen["promise_held"] == true, "{seen}");
    assert!(seen["next_cut"].is_null() && seen["rpo_target_seconds"].is_null(), "{seen}");
    assert!(seen["point_age_seconds"].as_f64() >= Some(written.elapsed().as_secs_f64() - 0.5), "{seen}");
    let epoch = pair.a.tern(&["snapshot", "vm1"])["epoch"].clone();
    let seen = pair.a.volume();
    assert!(seen["epoch_committed"] == epoch && seen["rpo_seconds"] == 0.0 && seen["point_age_seconds"].as_f64() < Some(2.0), "{seen}");
    pair.b.wait_until("in-sync", |seen| seen["state"] == "in-sync" && seen["epoch_committed"] == epoch);
    // Whoever comes back has nothing to cut either.
    let mut pair = pair;
    client.write(4096, &[7; 4096]).unwrap();
    pair.b.kill();
    pair.b.restart();
    pair.a.wait_until("back", |seen| seen["state"] == "in-sync");
    assert_eq!(pair.a.volume()["epoch_committed"], epoch);
    pair.b.wait_until("in-sync", |seen| seen["state"] == "in-sync");
}

#[test]
fn cuts_follow_the_schedule_and_those_that_were_missed_are_one() {
    let pair = pair(16, &[], &["--schedule", "1s"]);
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    let seen = pair.a.volume();
    assert!(seen["schedule"] == "1s" && seen["next_cut"].is_string(), "{seen}");
    let mut history = History::new(1024);
    let (first, began) = (committed(&seen), Instant::now());
    history.write_for(&mut client, Duration::from_secs(4)).unwrap();
    let cuts = committed(&pair.a.volume()) - first;
    assert!((2..=began.elapsed().as_secs() + 1).contains(&cuts), "{cuts} in {:?}", began.elapsed());
    pair.b.freeze();
    pair.a.wait_until("late", |seen| seen["promise_held"] == false);
    let open = pair.a.volume()["epoch_open"].as_u64();
    pair.b.signal(Signal::CONT);
    let seen = pair.a.wait_until("in time", |seen| seen["promise_held"] == true && seen["state"] == "in-sync");
    assert!(seen["epoch_open"].as_u64() <= open.map(|open| open + 3), "{seen}");
    let (code, said) = pair.a.try_tern(&["replicate", "vm1", "--to", "oregon", "--schedule", "at noon"]).unwrap_err();
    assert!(code == 2 && said.contains("0 2 * * *"), "{code} {said}");
    pair.a.tern(&["replicate", "vm1", "--to", "oregon", "--schedule", "0 2 * * *"]);
    assert!(pair.a.volume()["next_cut"].as_str().is_some_and(|time| time.ends_with("T02:00:00Z")), "{}", pair.a.volume());
    pair.a.verify();
    pair.a.assert_no_panic();
}

fn committed(seen: &Value) -> u64 {
    seen["epoch_committed"].as_u64().unwrap()
}

#[test]
fn the_mode_is_entered_and_left_while_the_guest_writes() {
    let pair = pair(16, &[], &[]);
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    let (stop, mut history) = (AtomicBool::new(false), History::new(1024));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| history.write_while(&mut client, || !stop.load(SeqCst)));
        for mode in ["sync", "snapshot", "async", "snapshot", "barrier", "snapshot"] {
            assert_eq!(pair.a.tern(&["mode", "vm1", mode])["mode"], mode);
            pair.a.wait_until(mode, |seen| seen["mode"] == mode && seen["promise_held"] == true);
        }
        let before = committed(&pair.a.volume());
        pair.a.tern(&["snapshot", "vm1"]);
        assert!(committed(&pair.a.volume()) > before);
        stop.store(true, SeqCst);
        writer.join().unwrap().unwrap();
    });
    drop(client);
    pair.a.wait_until("without a client", |seen| seen["attached"].as_array().is_some_and(Vec::is_empty));
    let promotion = pair.b.tern(&["promote", "vm1"]);
    assert_eq!((&promotion["kind"], &promotion["lost_bytes"]), (&"handover".into(), &0.into()), "{promotion}");
    let mut client = NbdClient::connect(&pair.b.socket("nbd")).unwrap();
    assert_eq!(history.assert_prefix(&mut client), history.acknowledged());
    pair.b.verify();
    pair.assert_no_panic();
}
