//! Runs tests with cargo-nextest, or with cargo's own harness where it is not installed.
//!
//! Tests may need what this machine lacks. Those in a module named `privileged` are filtered out for an ordinary user. Any other
//! test that leaves itself out says `left out: WHAT is WHY` on standard error: it passed as far as the runner knows, and counts as
//! skipped here.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::report::Outcome;
use super::steps::{Gate, outcome};
use crate::totals::{Runner, Totals};

/// The package of the end-to-end tests, and its manifest.
const END_TO_END: &str = "tern-tests";
const END_TO_END_MANIFEST: &str = "tests/Cargo.toml";
/// Tests that need root and network namespaces stand in a module of this name.
const PRIVILEGED: &str = "privileged::";
/// What a test prints that leaves itself out.
const LEFT_OUT: &str = "left out: ";
/// Different reasons that the summary shows.
const MAX_REASONS: usize = 20;

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
    let has_end_to_end = gate.workspace.root.join(END_TO_END_MANIFEST).is_file();
    if suite == Suite::EndToEnd && !has_end_to_end {
        return Ok(Outcome::LeftOut(format!("there is no {END_TO_END_MANIFEST}")));
    }
    let runner = if gate.machine.nextest && suite != Suite::Examples { Runner::Nextest } else { Runner::Cargo };
    let arguments = arguments(runner, suite, has_end_to_end, gate.machine.no_namespaces.is_some());
    let (mut totals, mut left_out) = (Totals::default(), Vec::new());
    let verdict = gate.cargo(limit).args(arguments).run_reading(|line| {
        println!("{line}");
        totals += Totals::from_closing_line(runner, line).unwrap_or_default();
        if runner == Runner::Cargo {
            left_out.extend(reason(line));
        }
    })?;
    if runner == Runner::Nextest {
        left_out = reasons_of_nextest(&gate.workspace.target.join("nextest").join(profile(suite)).join("junit.xml"))?;
    }
    totals.leave_out(left_out.len() as u64);
    gate.totals += totals;
    note_reasons(&mut gate.notes, left_out);
    if let Some(reason) = &gate.machine.no_namespaces {
        note_reasons(&mut gate.notes, vec![format!("tests in modules named `privileged`: {reason}")]);
    }
    Ok(outcome(verdict, limit))
}

fn profile(suite: Suite) -> &'static str {
    if suite == Suite::EndToEnd { "end-to-end" } else { "default" }
}

fn arguments(runner: Runner, suite: Suite, has_end_to_end: bool, without_privileges: bool) -> Vec<&'static str> {
    // The whole workspace in each case: another selection of packages is another set of features, and compiles everything again.
    let with_nextest = ["nextest", "run", "--workspace", "--locked", "--config-file", "tools/xtask/nextest.toml"];
    let with_cargo = ["test", "--workspace", "--locked", "--no-fail-fast"];
    let mut arguments = match (suite, runner) {
        (Suite::Examples, _) => [with_cargo.as_slice(), &["--doc"]].concat(),
        (Suite::Crates, Runner::Nextest) if has_end_to_end => [with_nextest.as_slice(), &["-E", "not package(tern-tests)"]].concat(),
        (Suite::Crates, Runner::Nextest) => with_nextest.to_vec(),
        (Suite::Crates, Runner::Cargo) if has_end_to_end => {
            [with_cargo.as_slice(), &["--lib", "--bins", "--tests", "--exclude", END_TO_END]].concat()
        }
        (Suite::Crates, Runner::Cargo) => [with_cargo.as_slice(), &["--lib", "--bins", "--tests"]].concat(),
        (Suite::EndToEnd, Runner::Nextest) => [with_nextest.as_slice(), &["--profile", "end-to-end", "-E", "package(tern-tests)"]].concat(),
        (Suite::EndToEnd, Runner::Cargo) => ["test", "--locked", "--no-fail-fast", "--lib", "--tests", "--package", END_TO_END].to_vec(),
    };
    match runner {
        _ if suite == Suite::Examples => {}
        Runner::Nextest if without_privileges => arguments.extend(["--", "--skip", PRIVILEGED]),
        Runner::Nextest => {}
        Runner::Cargo => {
            arguments.extend(["--", "--show-output"]);
            arguments.extend(without_privileges.then_some(["--skip", PRIVILEGED]).into_iter().flatten());
        }
    }
    arguments
}

/// cargo-nextest shows what failed; what the other tests printed is in its report.
fn reasons_of_nextest(report: &Path) -> Result<Vec<String>> {
    match fs::read_to_string(report) {
        Ok(text) => Ok(text.lines().filter_map(reason).collect()),
        // Not even started, or nothing to run.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", report.display())),
    }
}

/// Why a test left itself out, if that is what the line says. In cargo-nextest's report the line begins after a tag.
fn reason(line: &str) -> Option<String> {
    let line = line.trim_start().strip_prefix("<system-err>").unwrap_or(line.trim_start());
    let why = line.strip_prefix(LEFT_OUT)?;
    Some(why.split('<').next().unwrap_or(why).trim_end().to_owned())
}

fn note_reasons(notes: &mut Vec<String>, reasons: Vec<String>) {
    for reason in reasons {
        let note = format!("{LEFT_OUT}{reason}");
        if notes.len() < MAX_REASONS && !notes.contains(&note) {
            notes.push(note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_belongs_to_one_suite_with_either_runner() {
        for runner in [Runner::Nextest, Runner::Cargo] {
            let crates = arguments(runner, Suite::Crates, true, false).join(" ");
            let end_to_end = arguments(runner, Suite::EndToEnd, true, false).join(" ");
            assert!(crates.contains(&format!("not package({END_TO_END})")) || crates.contains(&format!("--exclude {END_TO_END}")));
            assert!(end_to_end.contains(&format!("package({END_TO_END})")) || end_to_end.contains(&format!("--package {END_TO_END}")));
        }
    }

    #[test]
    fn privileged_tests_are_filtered_out_only_without_privileges() {
        for runner in [Runner::Nextest, Runner::Cargo] {
            for suite in [Suite::Crates, Suite::EndToEnd] {
                assert!(arguments(runner, suite, true, true).join(" ").ends_with("--skip privileged::"));
                assert!(!arguments(runner, suite, true, false).contains(&"--skip"));
            }
        }
    }

    #[test]
    fn reasons_are_found_in_either_runners_output() {
        assert_eq!(reason("left out: echo needs root").as_deref(), Some("echo needs root"));
        assert_eq!(reason("   <system-err>left out: nbdinfo is not installed").as_deref(), Some("nbdinfo is not installed"));
        assert_eq!(reason("left out: echo needs root</system-err>").as_deref(), Some("echo needs root"));
        assert_eq!(reason("what was left out: nothing"), None);
    }
}
