//! Ranges of seeds; `SEED=n` replays one.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seeds of a run of the gate. Hundreds more: `SEEDS=100000 cargo test --release -p sim`.
const SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn a_fresh_range_of_seeds_breaks_no_rule() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs();
    let first = number("SEED").unwrap_or(clock * 1000);
    let count = if number("SEED").is_some() { 1 } else { number("SEEDS").unwrap_or(SEEDS) };
    println!("seeds {first} to {}", first + count - 1);
    let (mut commits, mut faults, mut checks) = (0, 0, 0);
    for seed in first..first + count {
        let tally =
            std::panic::catch_unwind(|| sim::run(seed)).unwrap_or_else(|_| panic!("seed {seed} breaks a rule: SEED={seed} replays it"));
        commits += tally.commits;
        faults += tally.faults;
        checks += tally.checks;
    }
    println!("{commits} epochs committed, {faults} faults, {checks} states checked");
    assert!(commits >= count && faults >= count && checks >= count, "the simulation did not do its work");
}
