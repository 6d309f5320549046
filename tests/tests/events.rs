//! The operator's program is told what happens: from a daemon that may execute nothing itself.

use serde_json::Value;
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};
use tern_tests::{NbdClient, Pair, Site};

const PATIENCE: Duration = Duration::from_secs(60);

/// A program that writes down what it was told.
fn program(dir: &Path) -> (String, std::path::PathBuf) {
    let (path, told) = (dir.join("on-event"), dir.join("told"));
    let script = format!("#!/bin/sh\nread -r line\necho \"$TERN_EVENT $TERN_VOLUME $TERN_SITE $line\" >> {}\n", told.display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    (path.display().to_string(), told)
}

fn wait_for(told: &Path, word: &str) -> Value {
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(told).unwrap_or_default();
        if let Some(line) = text.lines().find(|line| line.starts_with(word)) {
            return serde_json::from_str(&line[line.find('{').expect("JSON on its standard input")..]).unwrap();
        }
        assert!(began.elapsed() < PATIENCE, "nobody told of {word}: {text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_operators_program_is_told_of_a_broken_rpo_a_failed_proof_and_a_promotion() {
    let directory = tempfile::tempdir().unwrap();
    let (program, told) = program(directory.path());
    let flags = ["--on-event", program.as_str()];
    let (a, b) = (Site::start_with("osaka", directory.path(), &flags), Site::start_with("oregon", directory.path(), &flags));
    let addresses = [a.listen().to_owned(), b.listen().to_owned()];
    a.tern(&["volume", "create", "vm1", "--size", "16M"]);
    let mut pair = Pair::of(directory, a, b, [&addresses[0], &addresses[1]], "200ms");
    let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    client.write(0, &[7; 4096]).unwrap();
    pair.a.tern(&["snapshot", "vm1"]);
    // What is committed is in the image then.
    pair.b.tern(&["scrub", "vm1"]);
    let images = std::fs::read_dir(pair.b.state_dir().join("images")).unwrap();
    let image = File::options().write(true).open(images.last().unwrap().unwrap().path()).unwrap();
    image.write_all_at(&[8], 99).unwrap();
    let _ = pair.b.try_tern(&["scrub", "vm1"]);
    let failed = wait_for(&told, "proof-failed vm1 oregon");
    assert!(failed["event"] == "proof-failed" && failed["status"]["scrub"]["found_blocks"] == 1, "{failed}");

    pair.b.kill();
    client.write(0, &[9; 4096]).unwrap();
    let broken = wait_for(&told, "rpo-broken vm1 osaka");
    assert!(broken["message"].as_str().is_some_and(|text| text.contains("mode async")), "{broken}");
    pair.b.restart();
    wait_for(&told, "rpo-kept vm1 osaka");
    drop(client);
    pair.b.tern(&["promote", "vm1"]);
    assert_eq!(wait_for(&told, "promoted vm1 oregon")["status"]["role"], "primary");
    pair.assert_no_panic();
}
