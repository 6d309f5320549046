//! Which CPUs stand for which machine.
//!
//! The WAN and the standby would be elsewhere: on one CPU of this machine they take nothing from the primary and its guest, which have the
//! others. Without a second CPU all share one.

use crate::{machine, program};
use anyhow::{Context, Result};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

/// A machine of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The primary and its guest.
    Here,
    /// The WAN and the standby.
    Elsewhere,
}

/// Calls `start` so that programs it starts stay on the CPUs of `place`.
pub fn at<T>(place: Place, start: impl FnOnce() -> Result<T>) -> Result<T> {
    let allowed = machine::field("/proc/self/status", "Cpus_allowed_list")?;
    let cpus = parse(&allowed).with_context(|| format!("{allowed:?} is no list of CPUs"))?;
    stay_on(&share(&cpus, place))?;
    let started = start();
    stay_on(&cpus)?;
    started
}

/// Moves the main thread, and so what it starts.
fn stay_on(cpus: &[u32]) -> Result<()> {
    let list: Vec<_> = cpus.iter().map(u32::to_string).collect();
    let thread = std::process::id().to_string();
    program::output(program::bounded(LIMIT, "taskset").args(["--cpu-list", "--pid", &list.join(","), &thread])).map(drop)
}

fn share(cpus: &[u32], place: Place) -> Vec<u32> {
    match cpus.split_last() {
        Some((last, others)) if !others.is_empty() => {
            if place == Place::Here {
                others.to_vec()
            } else {
                vec![*last]
            }
        }
        _ => cpus.to_vec(),
    }
}

/// Reads `0-2,5`.
fn parse(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cpu_is_elsewhere_if_there_is_more_than_one() {
        let cpus = parse("0-2,5").unwrap();
        assert_eq!(cpus, [0, 1, 2, 5]);
        assert_eq!((share(&cpus, Place::Here), share(&cpus, Place::Elsewhere)), (vec![0, 1, 2], vec![5]));
        assert_eq!((share(&[3], Place::Here), share(&[3], Place::Elsewhere)), (vec![3], vec![3]));
        assert_eq!(parse("0-x"), None);
    }
}
