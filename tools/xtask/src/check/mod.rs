//! The gate: one ordered list of steps, each with a time limit, and a summary that leaves nothing unsaid.
//!
//! A step that fails does not keep later ones from running, unless they need what it makes: whoever fixes one thing sees the next
//! at once. What this machine cannot do is left out *with its reason*, never silently. The tests run last, so that the last line is
//! their sum.

mod machine;
mod report;
mod steps;
mod test_runner;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::workspace::Workspace;

use machine::Machine;
use report::{Outcome, Report};
use steps::{Gate, STEPS};

/// Which steps to run.
#[derive(Debug)]
pub struct Selection {
    only: Vec<String>,
    without: Vec<String>,
}

impl Selection {
    /// All steps, or those in `only` and what they need, less those in `without`. Fails on a name that no step has.
    pub fn new(only: Vec<String>, without: Vec<String>) -> Result<Self> {
        if let Some(unknown) = only.iter().chain(&without).find(|name| STEPS.iter().all(|step| step.name != name.as_str())) {
            let known: Vec<_> = STEPS.iter().map(|step| step.name).collect();
            bail!("no step is named {unknown}; there are: {}", known.join(", "));
        }
        Ok(Self { only, without })
    }

    /// A step that was asked for brings those that it needs.
    fn includes(&self, name: &str) -> bool {
        let asked_for = self.only.is_empty() || self.only.iter().any(|asked| asked == name || needs(asked, name));
        asked_for && !self.without.iter().any(|entry| entry == name)
    }
}

/// Whether a step needs another, directly or through others.
fn needs(step: &str, other: &str) -> bool {
    let direct = STEPS.iter().find(|known| known.name == step).map_or(&[][..], |known| known.needs);
    direct.iter().any(|needed| *needed == other || needs(needed, other))
}

/// Runs the gate and prints its summary; success only if no step failed.
pub fn run(workspace: &Workspace, selection: &Selection) -> Result<ExitCode> {
    let mut gate = Gate::new(workspace, Machine::probe(workspace));
    let mut report = Report::default();
    for step in STEPS.iter().filter(|step| selection.includes(step.name)) {
        eprintln!("\n==> {}", step.name);
        let started = Instant::now();
        let outcome = match step.needs.iter().find(|needed| report.failed_step(needed)) {
            Some(needed) => Outcome::Failed(format!("needs {needed}")),
            None => (step.run)(&mut gate).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}"))),
        };
        report.add(step.name, outcome, started.elapsed());
    }
    report.print(&gate.notes, gate.totals);
    Ok(if report.all_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(only: &[&str], without: &[&str]) -> Result<Selection> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Selection::new(owned(only), owned(without))
    }

    #[test]
    fn a_selection_is_all_steps_unless_told_otherwise() {
        assert!(selection(&[], &[]).unwrap().includes("clippy"));
        assert!(!selection(&["format"], &[]).unwrap().includes("clippy"));
        assert!(!selection(&[], &["clippy"]).unwrap().includes("clippy"));
        assert!(selection(&["tests"], &[]).unwrap().includes("rocksdb"), "needed by build, which tests need");
    }

    #[test]
    fn an_unknown_step_is_an_error_that_names_the_known_ones() {
        assert!(selection(&["lint"], &[]).unwrap_err().to_string().contains("clippy"));
    }

    #[test]
    fn a_step_needs_only_earlier_steps() {
        for (at, step) in STEPS.iter().enumerate() {
            for needed in step.needs {
                assert!(STEPS[..at].iter().any(|earlier| earlier.name == *needed), "{} needs {needed}", step.name);
            }
        }
    }
}
