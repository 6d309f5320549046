//! Runs tests with cargo-nextest, or with cargo's own harness where it is not installed.

use std::time::Duration;

use anyhow::Result;

use super::report::Outcome;
use super::steps::{Gate, outcome};
use crate::totals::Totals;

/// The package of the end-to-end tests.
const END_TO_END: &str = "tern-tests";
/// Tests that need root and network namespaces stand in a module of this name.
const PRIVILEGED: &str = "privileged::";

/// Which tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Unit and integration tests of every crate, the simulator included.
    Crates,
    /// Real programs with real clients.
    EndToEnd,
    /// Examples in documentation.
    Examples,
}

/// Runs a suite; its counts go into the gate's totals.
pub fn run(gate: &mut Gate<'_>, suite: Suite, limit: Duration) -> Result<Outcome> {
    let mut arguments = arguments(gate.machine.nextest, suite);
    if suite != Suite::Examples
        && let Some(reason) = &gate.machine.no_namespaces
    {
        arguments.extend(["--", "--skip", PRIVILEGED]);
        let note = format!("{reason}: tests in modules named `privileged` were left out");
        if !gate.notes.contains(&note) {
            gate.notes.push(note);
        }
    }
    let mut totals = Totals::default();
    let verdict = gate.cargo(limit).args(arguments).run_reading(|line| {
        println!("{line}");
        if let Some(sum) = Totals::from_closing_line(line) {
            totals += sum;
        }
    })?;
    gate.totals += totals;
    Ok(outcome(verdict, limit))
}

fn arguments(nextest: bool, suite: Suite) -> Vec<&'static str> {
    // The whole workspace in each case: another selection of packages is another set of features, and compiles everything again.
    let with_nextest = ["nextest", "run", "--workspace", "--locked", "--config-file", "tools/xtask/nextest.toml", "-E"];
    let with_cargo = ["test", "--workspace", "--locked", "--no-fail-fast"];
    match (suite, nextest) {
        (Suite::Examples, _) => [with_cargo.as_slice(), &["--doc"]].concat(),
        (Suite::Crates, true) => [with_nextest.as_slice(), &["not package(tern-tests)"]].concat(),
        (Suite::EndToEnd, true) => [with_nextest.as_slice(), &["package(tern-tests)"]].concat(),
        (Suite::Crates, false) => [with_cargo.as_slice(), &["--lib", "--bins", "--tests", "--exclude", END_TO_END]].concat(),
        (Suite::EndToEnd, false) => ["test", "--locked", "--no-fail-fast", "--lib", "--tests", "--package", END_TO_END].to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_belongs_to_one_suite_with_either_runner() {
        for nextest in [true, false] {
            let crates = arguments(nextest, Suite::Crates).join(" ");
            let end_to_end = arguments(nextest, Suite::EndToEnd).join(" ");
            assert!(crates.contains(&format!("not package({END_TO_END})")) || crates.contains(&format!("--exclude {END_TO_END}")));
            assert!(end_to_end.contains(&format!("package({END_TO_END})")) || end_to_end.contains(&format!("--package {END_TO_END}")));
        }
    }
}
