//! Drills: a copy of a recovery point that can be written to, while replication goes on.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use tern_tests::{History, NbdClient, Pair, Site};

const BLOCK: usize = 4096;
const BLOCKS: u32 = 4096;

fn socket(site: &Site) -> PathBuf {
    site.socket("drill")
}

fn begin(site: &Site, more: &[&str]) -> NbdClient {
    let address = format!("unix:{}", socket(site).display());
    let begun = site.tern(&[&["drill", "vm1", "--nbd", &address], more].concat());
    assert_eq!(begun["state"], "running", "{begun}");
    NbdClient::connect(&socket(site)).unwrap()
}

fn content(client: &mut NbdClient) -> Vec<u8> {
    let mut content = vec![0; BLOCKS as usize * BLOCK];
    content.chunks_mut(1 << 20).zip((0..).step_by(1 << 20)).for_each(|(part, offset)| client.read(offset, part).unwrap());
    content
}

/// Whether the daemon holds a file without a name in its state directory.
fn has_scratch(site: &Site) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{}/fd", site.pid())) else { return false };
    let is_scratch = |path: PathBuf| path.starts_with(site.state_dir()) && path.to_string_lossy().ends_with("(deleted)");
    files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).any(is_scratch)
}

/// Worst RPO and worst lag of the standby over a while, as the operator sees it.
fn worst_rpo(pair: &Pair, looks: u32) -> f64 {
    let look = || {
        thread::sleep(Duration::from_millis(50));
        pair.a.volume()["rpo_seconds"].as_f64().expect("the primary knows")
    };
    (0..looks).map(|_| look()).fold(0.0, f64::max)
}

#[test]
fn drills_on_the_newest_and_on_an_old_point_stay_what_they_are_while_replication_goes_on() {
    let mut pair = Pair::start(BLOCKS / 256, "1s");
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    let pattern = |salt: u8| (0..BLOCKS as usize * BLOCK).map(|at| (at / BLOCK) as u8 ^ salt).collect::<Vec<_>>();
    let cut = |client: &mut NbdClient, salt: u8, pair: &Pair| {
        pattern(salt).chunks(1 << 20).zip((0..).step_by(1 << 20)).for_each(|(part, offset)| client.write(offset, part).unwrap());
        pair.a.tern(&["snapshot", "vm1"])["epoch"].as_u64().unwrap()
    };
    let old = cut(&mut client, 0x55, &pair);
    cut(&mut client, 0xAA, &pair);

    thread::scope(|scope| {
        let load = scope.spawn(|| {
            // Behind what the drills look at first, and then everywhere.
            History::new(BLOCKS).write_for(&mut NbdClient::connect(&pair.a.socket("nbd")).unwrap(), Duration::from_secs(6)).unwrap();
        });
        let before = worst_rpo(&pair, 15);

        let mut copy = begin(&pair.b, &["--at", &old.to_string()]);
        assert!(content(&mut copy) == pattern(0x55), "an old point is what it was");
        assert!(has_scratch(&pair.b));
        let (code, said) = pair.b.try_tern(&["drill", "vm1", "--nbd", "unix:/tmp/never"]).unwrap_err();
        assert!(code == 1 && said.contains("--end"), "{code} {said}");
        copy.write(7 * BLOCK as u64 + 512, &[b'd'; 512]).unwrap();
        copy.flush().unwrap();
        drop(copy);
        let mut copy = NbdClient::connect(&socket(&pair.b)).unwrap();
        let mut expected = pattern(0x55);
        expected[7 * BLOCK + 512..][..512].fill(b'd');
        let during = worst_rpo(&pair, 15);
        assert!(content(&mut copy) == expected, "what is written is there, and nothing else has changed");
        drop(copy);
        let ended = pair.b.tern(&["drill", "vm1", "--end"]);
        assert_eq!((ended["state"].as_str(), ended["changed_bytes"].as_u64()), (Some("ended"), Some(512)), "{ended}");
        assert!(during <= before.max(1.0) + 0.5, "RPO was {before} s, and with a drill {during} s");

        // The newest: no point is kept of it but for the drill.
        let mut copy = begin(&pair.b, &[]);
        let first = content(&mut copy);
        load.join().unwrap();
        pair.a.tern(&["snapshot", "vm1"]);
        drop(copy);
        assert!(content(&mut NbdClient::connect(&socket(&pair.b)).unwrap()) == first);
    });
    pair.b.tern(&["drill", "vm1", "--end"]);
    tern_tests::eventually("the scratch file is gone", || !has_scratch(&pair.b));
    assert!(!socket(&pair.b).exists());

    let listed = pair.b.tern(&["drill", "vm1", "--report"]);
    let drills = listed["drills"].as_array().unwrap();
    assert_eq!((drills.len(), drills[0]["point"].as_u64()), (2, Some(old)), "{listed}");
    assert!(drills.iter().all(|drill| drill["first_read_seconds"].as_f64() > Some(0.0) && drill["ended"].is_string()), "{listed}");

    drop(begin(&pair.b, &["--at", &old.to_string()]));
    pair.b.kill();
    pair.b.restart();
    assert!(!has_scratch(&pair.b));
    assert_eq!(pair.b.tern(&["drill", "vm1", "--report"])["drills"][2]["state"], "broken-off");
    drop(client);
    pair.a.verify();
    pair.assert_no_panic();
}

#[test]
fn a_standby_that_keeps_no_points_drills_its_newest_and_a_promotion_ends_the_drill() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Site::start("osaka", directory.path()), Site::start_with("oregon", directory.path(), &["--keep", "0s"]));
    let addresses = [a.listen().to_owned(), b.listen().to_owned()];
    a.tern(&["volume", "create", "vm1", "--size", &format!("{}M", BLOCKS / 256)]);
    let pair = Pair::of(directory, a, b, [&addresses[0], &addresses[1]], "1s");
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    let all = |letter: u8| vec![letter; 64 * BLOCK];
    client.write(0, &all(b'a')).unwrap();
    pair.a.tern(&["snapshot", "vm1"]);

    let mut copy = begin(&pair.b, &[]);
    client.write(0, &all(b'b')).unwrap();
    pair.a.tern(&["snapshot", "vm1"]);
    let mut seen = all(0);
    copy.read(0, &mut seen).unwrap();
    assert!(seen == all(b'a'));
    pair.b.wait_until("keeping what the drill shows", |volume| volume["points"].as_u64() > Some(1));
    drop(copy);
    pair.b.tern(&["drill", "vm1", "--end"]);
    pair.b.wait_until("without older points", |volume| volume["points"] == 1);

    let copy = begin(&pair.b, &[]);
    drop(client);
    pair.b.tern(&["promote", "vm1"]);
    let listed = pair.b.tern(&["drill", "vm1", "--report"]);
    assert_eq!(listed["drills"][1]["state"], "ended", "{listed}");
    drop(copy);
    pair.b.assert_no_panic();
}
