//! A VM outlives its daemon: killed or ended in order, the next one finishes what was in flight.

use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};
use tern_tests::{Guest, InFlight, Site, guest_parts, rounds};

const DISK_MIB: u32 = 1024;
const REWRITERS: u32 = 3;

/// What a kernel says of a disk that failed it, and our guest of a file.
const COMPLAINTS: [&str; 7] =
    ["I/O error", "EXT4-fs error", "EXT4-fs warning", "timed out", "blocked for more than", "read-only", "tern: error"];

/// The volume as a disk of several queues that QEMU connects again and again; the guest uses as many as it has CPUs.
fn disk(socket: &Path, queues: u32) -> [String; 6] {
    let chardev = format!("socket,id=disk,path={},reconnect=1", socket.display());
    let device = format!("vhost-user-blk-pci,chardev=disk,num-queues={queues}");
    ["-smp".into(), queues.to_string(), "-chardev".into(), chardev, "-device".into(), device]
}

/// Kills the daemon while it has so many requests, or more, that it has taken and not given back; returns how many it leaves behind.
fn kill_under_load(site: &mut Site, record: &InFlight, at_least: usize) -> usize {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(60), "the guest puts no such load on its disk");
        if record.requests() >= at_least {
            site.freeze();
            // It may have ended some since the first look.
            if record.requests() >= at_least {
                break;
            }
            site.signal(Signal::CONT);
        }
        std::thread::yield_now();
    }
    site.kill();
    let left = record.requests();
    assert!(left >= at_least, "{left} of {at_least} are left");
    left
}

/// How many requests the daemons have taken over from those before them.
fn taken_over(site: &Site) -> u64 {
    let lines = site.logged(&["taking over what another daemon left in flight"]);
    lines.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["fields"]["requests"].as_u64()).sum()
}

/// The generations of each rewritten file that are in it, by what the guest said at its check.
fn generations(said: &str, file: u32) -> Vec<u64> {
    let prefix = format!("tern: holds rewritten-{file} ");
    let held = said.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_else(|| panic!("no {prefix:?}: {said}"));
    held.split(' ').map(|generation| generation.parse().unwrap_or_else(|_| panic!("{held}"))).collect()
}

/// The last generation that the guest said is durable. The very last line may have been cut off.
fn rewritten(said: &str, file: u32) -> u64 {
    let prefix = format!("tern: rewrote rewritten-{file} ");
    said.lines().rev().skip(1).find_map(|line| line.strip_prefix(&prefix)?.parse().ok()).unwrap_or_else(|| panic!("no {prefix:?}: {said}"))
}

/// Lesson: a back end that restarts keeps its device (spdk#1728).
/// `RESTARTS=50 QUEUES=4 cargo test -p tern-tests --test restarts -- --nocapture` is a long run.
#[test]
fn a_guest_under_load_sees_a_pause_and_no_error_when_its_daemon_is_killed_or_ends() {
    if guest_parts().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut site = Site::start_with("osaka", directory.path(), &["--log-format", "json"]);
    let disk = disk(&site.socket("vhost"), rounds("QUEUES", 2));
    site.tern(&["volume", "create", "vm1", "--size", &format!("{DISK_MIB}M")]);
    site.tern(&["volume", "export", "vm1", "--vhost-user", site.socket("vhost").to_str().unwrap()]);
    let load = format!("tern.job=write tern.files=0 tern.kib=512 tern.readers=1 tern.rewriters={REWRITERS} loglevel=6");
    let guest = Guest::boot(&load, &disk);
    guest.wait_for_more(2);
    let record = InFlight::of(guest.pid()).expect("QEMU has a record of what is in flight");
    let (mut left, mut longest) = (0, Duration::ZERO);
    let rounds = rounds("RESTARTS", 3);
    for round in 0..rounds {
        if round % 2 == 0 {
            left += kill_under_load(&mut site, &record, 1 + round as usize / 2 % 8) as u64;
        } else {
            site.stop();
            assert_eq!(record.requests(), 0, "one that ends in order leaves nothing behind");
        }
        let began = Instant::now();
        site.restart();
        guest.wait_for_more(2);
        longest = longest.max(began.elapsed());
        println!("round {round}: {} files, {:.1?}, {left} requests left in flight so far", guest.synced(), began.elapsed());
    }
    let taken_over = taken_over(&site);
    assert!((u64::from(rounds.div_ceil(2))..=left).contains(&taken_over), "{taken_over} of {left} were taken over");
    // It sees what changes while it runs.
    site.tern(&["volume", "resize", "vm1", &format!("{}M", 2 * DISK_MIB)]);
    guest.wait_for(&format!("[vda] new size: {} 512-byte logical blocks", DISK_MIB * 2 * 2048));
    let said = guest.pull_the_plug();
    let complaint = COMPLAINTS.iter().find(|complaint| said.contains(**complaint));
    assert_eq!(complaint, None, "{said}");

    // QEMU is started again beside the same daemon. Whatever the guest said is durable is there.
    let checked = Guest::boot("tern.job=check", &disk).end();
    let files = checked.lines().find_map(|line| line.strip_prefix("tern: checked ")?.strip_suffix(" ok 0 bad")?.parse::<u64>().ok());
    let synced = said.lines().filter(|line| line.starts_with("tern: synced ")).count() as u64;
    assert!(checked.contains("tern: fsck clean"), "{checked}");
    assert!(files.is_some_and(|files| files >= synced), "{synced} files: {checked}");
    for file in 1..=REWRITERS {
        let (durable, held) = (rewritten(&said, file), generations(&checked, file));
        // That of the last line may be one more, and another was being written when the plug was pulled.
        assert!(held.len() <= 2 && held.iter().all(|held| (durable..=durable + 2).contains(held)), "{durable} was durable: {held:?}");
    }
    println!("{synced} files, {taken_over} of {left} requests taken over, longest round {longest:.1?}");
    site.assert_no_panic();
}
