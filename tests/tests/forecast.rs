//! `tern forecast` says how long a handover will take: it is ordered then, and takes about so long.

use serde_json::Value;
use std::time::{Duration, Instant};
use tern_tests::{NbdClient, Pair, Site, eventually, program, rounds};
use wanem::{Emulator, Options, Side};

const MIB: u64 = 1 << 20;
/// How far a forecast may be off: this part of what it took, and for short ones so many seconds. Of five, one may be off by more.
const NEAR: (f64, f64) = (0.3, 0.5);
/// The same where other tests, or a build, may keep CPU and disk from it at any moment.
const NEAR_BESIDE_OTHERS: (f64, f64) = (1.0, 2.0);
/// A client that is cut off waits for so long.
const CUT_OFF: Duration = Duration::from_secs(5);

/// What clients do before, and while, the volume is handed over.
#[derive(Clone, Copy)]
enum Load {
    /// So many MiB are written at once, with nobody there any more when the order is given.
    Backlog(u64, Content),
    /// So many MiB a second are written, until the handover cuts them off.
    GoesOn(u64, Content),
}

#[derive(Clone, Copy)]
enum Content {
    Random,
    /// Half of each block is zeroes.
    Half,
}

/// The first three are what the gate sees.
const LOADS: [Load; 10] = [
    Load::Backlog(0, Content::Random),
    Load::Backlog(20, Content::Random),
    Load::GoesOn(2, Content::Half),
    Load::Backlog(5, Content::Half),
    Load::Backlog(60, Content::Random),
    Load::GoesOn(4, Content::Random),
    Load::Backlog(60, Content::Half),
    Load::Backlog(5, Content::Random),
    Load::GoesOn(1, Content::Random),
    Load::Backlog(20, Content::Half),
];

/// Two sites with a WAN of 85 Mbit/s and 27 ms between them.
struct Far {
    pair: Pair,
    _wan: Emulator,
}

impl Far {
    fn start(size_mib: u32) -> Self {
        let namespace = |side: &str| format!("tern-fc-{side}-{}", std::process::id()).parse().unwrap();
        let wan = Emulator::start(&program("wanem"), &Options::new(namespace("a"), namespace("b"))).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let at = ["10.99.0.1:7447", "10.99.0.2:7447"];
        let site = |name, side, listen| Site::start_at(name, directory.path(), &wan.command(side, program("blockd")), listen);
        let (a, b) = (site("osaka", Side::A, at[0]), site("oregon", Side::B, at[1]));
        a.tern(&["volume", "create", "vm1", "--size", &format!("{size_mib}M")]);
        Self { pair: Pair::of(directory, a, b, at, "5s"), _wan: wan }
    }
}

/// Writes to other blocks each time, as fast as it is let.
struct Writer {
    client: NbdClient,
    at: u64,
    size: u64,
    content: blake3::OutputReader,
}

impl Writer {
    fn new(site: &Site, size_mib: u64) -> Self {
        let mut client = NbdClient::connect(&site.socket("nbd")).unwrap();
        client.set_patience(CUT_OFF).unwrap();
        let seed = format!("{:?}", std::time::SystemTime::now());
        Self { client, at: 0, size: size_mib * MIB, content: blake3::Hasher::new().update(seed.as_bytes()).finalize_xof() }
    }

    fn write_mib(&mut self, content: Content) -> std::io::Result<()> {
        let mut bytes = vec![0; MIB as usize];
        for block in bytes.chunks_exact_mut(4096) {
            let filled = if matches!(content, Content::Half) { 2048 } else { 4096 };
            self.content.fill(&mut block[..filled]);
        }
        self.client.write(self.at, &bytes)?;
        self.at = (self.at + MIB) % self.size;
        Ok(())
    }

    /// So much a second, for so long, or until it is cut off.
    fn write_for(&mut self, mib_per_second: u64, content: Content, span: Duration) -> std::io::Result<()> {
        let began = Instant::now();
        for written in 0.. {
            let due = Duration::from_millis(written * 1000 / mib_per_second);
            if due >= span {
                return Ok(());
            }
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            self.write_mib(content)?;
        }
        Ok(())
    }
}

fn without_a_client(site: &Site) {
    site.wait_until("without a client", |volume| volume["attached"].as_array().is_some_and(Vec::is_empty));
}

/// Hands the volume over under this load; the record of that.
fn hand_over(from: &Site, to: &Site, load: Load, size_mib: u64) -> Value {
    let mut writer = Writer::new(from, size_mib);
    match load {
        Load::Backlog(mib, content) => {
            // What is written lately says how far the rest shrinks.
            writer.write_for(6, content, Duration::from_secs(if mib > 0 { 4 } else { 0 })).unwrap();
            from.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
            (0..mib).for_each(|_| writer.write_mib(content).unwrap());
            drop(writer);
            without_a_client(from);
            to.tern(&["promote", "vm1"]);
        }
        Load::GoesOn(mib_per_second, content) => std::thread::scope(|scope| {
            scope.spawn(move || writer.write_for(mib_per_second, content, Duration::from_secs(30)));
            std::thread::sleep(Duration::from_secs(6));
            to.tern(&["promote", "vm1", "--force"]);
        }),
    }
    let past = to.tern(&["forecast", "vm1", "--history"])["handovers"].as_array().unwrap().last().unwrap().clone();
    println!("{past}");
    past
}

fn is_near(past: &Value, (share, slack_seconds): (f64, f64)) -> bool {
    let (Some(forecast), Some(actual)) = (past["forecast_seconds"].as_f64(), past["actual_seconds"].as_f64()) else { return false };
    (forecast - actual).abs() <= (actual * share).max(slack_seconds)
}

/// `FORECASTS=10 cargo test --release -p tern-tests --test forecast`, alone on the machine, runs all of them and holds them to what is asked for.
#[test]
fn a_handover_takes_about_as_long_as_was_forecast_when_it_was_ordered() {
    let size_mib = 256;
    let far = Far::start(size_mib as u32);
    let (mut from, mut to) = (&far.pair.a, &far.pair.b);
    let before = from.tern(&["forecast", "vm1"])["volumes"][0].clone();
    assert!(before["link_bytes_per_second"].is_null() && before["fixed_seconds"].is_null(), "nothing was measured: {before}");
    let (count, mut near) = (rounds("FORECASTS", 3) as usize, 0);
    let bar = if count < LOADS.len() { NEAR_BESIDE_OTHERS } else { NEAR };
    for load in LOADS.into_iter().cycle().take(count) {
        let past = hand_over(from, to, load, size_mib);
        assert_eq!((&past["from"], &past["to"]), (&from.name.into(), &to.name.into()), "{past}");
        near += usize::from(is_near(&past, bar));
        (from, to) = (to, from);
    }
    assert!(near >= count * 4 / 5, "{near} of {count} forecasts were near: {:#}", to.tern(&["forecast", "--history"]));
    // Both sites have the record of all of them, and the way back is known now.
    for site in [from, to] {
        eventually("known at both sites", || {
            let history = site.tern(&["forecast", "vm1", "--history"]);
            let past = history["handovers"].as_array().unwrap();
            past.len() == count && past.iter().all(|handover| handover["actual_seconds"].is_f64())
        });
    }
    from.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
    let here = from.tern(&["forecast", "vm1"])["volumes"][0].clone();
    assert_eq!(here["to"], to.name, "{here}");
    assert!(here["fixed_seconds"].is_f64() && here["seconds"].is_f64(), "{here}");
    let status = from.volume();
    assert!(status["evacuation_seconds"].is_f64() && status["replicas"][0]["evacuation_seconds"].is_f64(), "{status}");
    let there = to.tern(&["forecast", "vm1"])["volumes"][0].clone();
    assert_eq!((&there["to"], &there["confidence"]), (&to.name.into(), &here["confidence"]), "{there}");
    from.verify();
    from.assert_no_panic();
    to.assert_no_panic();
}

#[test]
fn what_does_not_end_is_said_and_so_is_a_standby_that_is_gone() {
    let mut pair = Pair::start(128, "1s");
    pair.a.tern(&["replicate", "vm1", "--to", "oregon", "--bandwidth", "8Mbit"]);
    let mut writer = Writer::new(&pair.a, 128);
    writer.write_for(8, Content::Random, Duration::from_secs(4)).unwrap();
    let seen = pair.a.tern(&["forecast", "vm1", "--to", "oregon"])["volumes"][0].clone();
    let note = seen["note"].as_str().unwrap_or_default();
    assert!(seen["seconds"].is_null() && note.contains("does not end") && note.contains("stop the guest"), "{seen}");
    assert!(seen["seconds_if_idle"].as_f64() > Some(5.0), "once it stops it ends: {seen}");
    assert!(pair.a.volume()["evacuation_seconds"].is_null());
    let (code, said) = pair.a.try_tern(&["forecast", "vm1", "--to", "milan"]).unwrap_err();
    assert!(code == 1 && said.contains("not replicated to milan"), "{code} {said}");
    drop(writer);
    pair.b.kill();
    eventually("no forecast", || {
        let seen = pair.a.tern(&["forecast", "vm1"])["volumes"][0].clone();
        seen["seconds"].is_null() && seen["note"].as_str().is_some_and(|note| note.contains("not connected"))
    });
    pair.b.restart();
    pair.a.kill();
    let seen = pair.b.tern(&["forecast", "vm1"])["volumes"][0].clone();
    assert!(seen["seconds"].is_null() && seen["note"].as_str().is_some_and(|note| note.contains("--force")), "{seen}");
}

#[test]
fn a_demotion_and_the_promotion_after_it_are_one_handover_without_the_time_between() {
    let mut pair = Pair::start(16, "1s");
    pair.a.tern(&["demote", "vm1"]);
    pair.a.kill();
    pair.a.restart();
    let open = pair.a.tern(&["forecast", "vm1", "--history"])["handovers"][0].clone();
    assert!(open["from"] == "osaka" && open["to"].is_null() && open["actual_seconds"].is_null(), "{open}");
    let began = Instant::now();
    eventually("connected", || pair.b.tern(&["peer", "list"])["peers"][0]["connected"] == true);
    std::thread::sleep(Duration::from_secs(2));
    pair.b.tern(&["promote", "vm1"]);
    assert!(began.elapsed() >= Duration::from_secs(2));
    let past = pair.b.tern(&["forecast", "vm1", "--history"])["handovers"][0].clone();
    assert_eq!((&past["from"], &past["to"]), (&"osaka".into(), &"oregon".into()), "{past}");
    assert!(past["actual_seconds"].as_f64().is_some_and(|seconds| seconds < 2.0), "{past}");
    pair.b.kill();
    pair.b.restart();
    let again = pair.b.tern(&["forecast", "vm1", "--history"])["handovers"][0].clone();
    assert_eq!(again, past, "it outlives the daemon");
}
