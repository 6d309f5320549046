//! Consistency groups: fresh seeds break no rule, and bugs that are planted are found.

use sim::{GroupPlant, GroupTally, run_group};
use std::panic::catch_unwind;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seeds of a run in the gate; `GROUP_SEEDS=100000` is a long one.
const SEEDS: u64 = 2_000;
/// Within which a planted bug has to be found.
const FOUND_WITHIN: u64 = 500;

#[test]
fn fresh_seeds_leave_every_point_of_a_group_at_one_instant() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let count = std::env::var("GROUP_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(SEEDS);
    let seeds = first.map_or(now * 1_000_000..now * 1_000_000 + count, |seed| seed..seed + 1);
    println!("group seeds {seeds:?}");
    let mut all = GroupTally::default();
    for seed in seeds {
        let tally = catch_unwind(|| run_group(seed, None)).unwrap_or_else(|_| panic!("SEED={seed} breaks a rule"));
        (all.cuts, all.alone, all.checks) = (all.cuts + tally.cuts, all.alone + tally.alone, all.checks + tally.checks);
    }
    println!("{all:?}");
    assert!(first.is_some() || all.cuts > count && all.alone > count && all.checks > count, "too little happened: {all:?}");
}

#[test]
fn bugs_that_are_planted_in_a_group_are_found() {
    use GroupPlant::{CountWhatBroke, HoldOneByOne, NameAlone, NewestOfEach};
    let found = [HoldOneByOne, CountWhatBroke, NewestOfEach, NameAlone].map(|plant| {
        let by = (0..FOUND_WITHIN).find(|seed| catch_unwind(|| run_group(*seed, Some(plant))).is_err());
        (plant, by, by.is_some_and(|seed| catch_unwind(|| run_group(seed, None)).is_ok()))
    });
    for (plant, by, only_with_it) in found {
        println!("{plant:?}: found by seed {by:?}");
        assert!(by.is_some() && only_with_it, "{plant:?}: {by:?}");
    }
}
