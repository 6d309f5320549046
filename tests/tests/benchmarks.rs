//! The benchmarks run; what they measure at small sizes says nothing and is not looked at.

use serde_json::Value;
use std::process::Command;
use tern_tests::program;

/// Measures with small sizes, and looks that there are as many figures.
fn measures(benchmarks: &[&str], expected: usize) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let results = directory.path().join("results.json");
    let run = Command::new("timeout")
        .arg("400")
        .arg(program("bench"))
        .args(benchmarks)
        .args(["--quick", "--rounds", "1", "--dir"])
        .arg(directory.path())
        .arg("--standby-dir")
        .arg(directory.path())
        .arg("--json")
        .arg(&results)
        .output()
        .expect("bench starts");
    assert!(run.status.success(), "{}\n{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let document: Value = serde_json::from_slice(&std::fs::read(results).expect("results")).expect("a JSON document");
    let figures = document["figures"].as_array().expect("figures");
    assert_eq!(figures.len(), expected, "{document:#}");
    for figure in figures {
        assert!(figure["summary"]["median"].as_f64() >= Some(0.0), "{figure:#}");
    }
    assert!(!directory.path().join("tern-bench").exists(), "the run left its directory");
}

#[test]
fn our_daemon_and_others_take_turns() {
    measures(&["vhost-flush", "vhost-read-latency", "nbd-random-write"], 27);
}

#[test]
fn the_disk_path_is_measured_with_many_volumes_and_with_a_standby() {
    measures(&["span", "idle-memory"], 8);
}

mod privileged {
    use super::*;

    #[test]
    fn benchmarks_measure_each_of_their_figures() {
        measures(&["wan-sync", "local-sync", "promote", "first-sync"], 10);
    }
}
