//! Ranges of seeds. `SEED=n` replays one with its trace, `SEEDS=n` says how many there are (with `SEED=n`, from there), `FAULTS=n` goes on
//! until so many things have failed. Of the ranges that are listed, the gate runs the beginning, and `SEEDS=n` so many.

use sim::{Tally, Trace, run, run_with};
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Seeds of a run of the gate.
const SEEDS: u64 = 300;
/// First seeds of the ranges that are run again each time: fifty from each, unless more are wanted.
const LISTED: [u64; 5] = [0, 200_008_890, 300_006_400, 500_000_000, 800_001_500];
const SEEDS_OF_LISTED: u64 = 50;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs seeds on every core until `is_enough` says so of how many there were and what happened in them.
fn run_from(first: u64, is_enough: impl Fn(u64, Tally) -> bool + Sync) -> (u64, Tally) {
    let done = Mutex::new((0, Tally::default()));
    let next = AtomicU64::new(first);
    let work = || {
        loop {
            let seed = next.fetch_add(1, SeqCst);
            let tally = catch_unwind(|| run(seed));
            // A panic under this lock ends the other workers, too.
            let (count, sum) = &mut *done.lock().expect("another seed breaks a rule");
            *count += 1;
            *sum += tally.unwrap_or_else(|_| panic!("seed {seed} breaks a rule: SEED={seed} replays it"));
            if is_enough(*count, *sum) {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        (0..std::thread::available_parallelism().map_or(1, usize::from)).for_each(|_| drop(scope.spawn(work)));
    });
    done.into_inner().expect("no panic under this lock")
}

#[test]
fn a_fresh_range_of_seeds_breaks_no_rule() {
    if let (Some(seed), None) = (number("SEED"), number("SEEDS").or(number("FAULTS"))) {
        return println!("{}", run_with(seed, None, Trace::On));
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs();
    let first = number("SEED").unwrap_or(clock * 1_000_000);
    println!("seeds from {first}");
    let began = Instant::now();
    let (count, tally) = match number("FAULTS") {
        Some(faults) => run_from(first, |_, tally| tally.faults >= faults),
        None => run_from(first, |count, _| count >= number("SEEDS").unwrap_or(SEEDS)),
    };
    let seconds = began.elapsed().as_secs_f64();
    println!("seeds {first} to {}: {tally}; {:.0} seeds a minute", first + count - 1, count as f64 * 60.0 / seconds);
    let did_its_work = tally.commits >= count && tally.faults >= count && tally.checks >= count && tally.promises >= count / 10;
    assert!(did_its_work, "the simulation did not do its work");
}

#[test]
fn the_listed_ranges_of_seeds_break_no_rule() {
    let seeds = number("SEEDS").unwrap_or(SEEDS_OF_LISTED);
    for first in LISTED {
        let (count, tally) = run_from(first, |count, _| count >= seeds);
        println!("seeds {first} to {}: {tally}", first + count - 1);
    }
}
