//! The steps of the gate, in their order.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::machine::Machine;
use super::report::Outcome;
use super::test_runner::{self, Suite};
use crate::cargo_tools::{CARGO_DENY, MDBOOK};
use crate::fuzz::{self, Effort};
use crate::rocksdb::{self, Archive};
use crate::subprocess::{Subprocess, Verdict};
use crate::tidy;
use crate::totals::Totals;
use crate::workspace::Workspace;

/// A step of the gate.
pub struct Step {
    /// What `--only` and the summary call it.
    pub name: &'static str,
    /// Steps that must not have failed.
    pub needs: &'static [&'static str],
    /// What it does.
    pub run: fn(&mut Gate<'_>) -> Result<Outcome>,
}

/// Cheap ones first, tests last.
pub const STEPS: &[Step] = &[
    Step { name: "format", needs: &[], run: format },
    Step { name: "tidy", needs: &[], run: tidy_tree },
    Step { name: "shell", needs: &[], run: shell_syntax },
    Step { name: "fetch", needs: &[], run: fetch },
    Step { name: "deny", needs: &["fetch"], run: dependencies },
    Step { name: "rocksdb", needs: &[], run: rocksdb_archive },
    Step { name: "clippy", needs: &["rocksdb"], run: clippy },
    Step { name: "fuzz", needs: &["rocksdb"], run: fuzz_targets },
    Step { name: "docs", needs: &["rocksdb"], run: documentation },
    Step { name: "book", needs: &[], run: book },
    Step { name: "build", needs: &["rocksdb"], run: build },
    Step { name: "tests", needs: &["build"], run: tests },
    Step { name: "examples", needs: &["build"], run: examples },
    Step { name: "end-to-end", needs: &["build"], run: end_to_end },
];

/// What the gate fuzzes. More is `cargo xtask fuzz`.
const FUZZING: Effort = Effort { seconds: 4, seed: 1 };

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// What steps share.
pub struct Gate<'a> {
    /// Where things are.
    pub workspace: &'a Workspace,
    /// What this machine can do.
    pub machine: Machine,
    /// The tests so far.
    pub totals: Totals,
    /// What was left out within a step, for the summary.
    pub notes: Vec<String>,
    /// Looked up, or built, when the first step needs it.
    archive: Option<Archive>,
}

impl<'a> Gate<'a> {
    /// A gate that has not begun.
    pub fn new(workspace: &'a Workspace, machine: Machine) -> Self {
        Self { workspace, machine, totals: Totals::default(), notes: Vec::new(), archive: None }
    }

    /// cargo at the root, with one environment for all steps: another one would compile everything again.
    pub fn cargo(&self, limit: Duration) -> Subprocess {
        let archive = self.archive.iter().flat_map(Archive::environment);
        Subprocess::new("cargo", limit)
            .current_dir(&self.workspace.root)
            .envs(self.workspace.environment())
            .env("TERN_BIN_DIR", self.workspace.target.join("debug"))
            .envs(archive)
    }

    fn cargo_step(&self, limit: Duration, arguments: &[&str]) -> Result<Outcome> {
        Ok(outcome(self.cargo(limit).args(arguments).run()?, limit))
    }
}

/// What a verdict means to the gate.
pub fn outcome(verdict: Verdict, limit: Duration) -> Outcome {
    match verdict {
        Verdict::Passed => Outcome::Passed,
        Verdict::Failed { status } => Outcome::Failed(status),
        Verdict::TimedOut => Outcome::Failed(format!("ended at its limit of {} s", limit.as_secs())),
    }
}

fn format(gate: &mut Gate<'_>) -> Result<Outcome> {
    gate.cargo_step(minutes(2), &["fmt", "--all", "--check"])
}

fn tidy_tree(gate: &mut Gate<'_>) -> Result<Outcome> {
    let violations = tidy::run(&gate.workspace.root)?;
    violations.iter().for_each(|violation| println!("{violation}"));
    Ok(if violations.is_empty() { Outcome::Passed } else { Outcome::Failed(format!("{} violations", violations.len())) })
}

fn shell_syntax(gate: &mut Gate<'_>) -> Result<Outcome> {
    let limit = minutes(1);
    let script = "git ls-files -z '*.sh' .ci/run | xargs -0 -n 1 bash -n";
    let verdict = Subprocess::new("bash", limit).current_dir(&gate.workspace.root).args(["-o", "pipefail", "-c", script]).run()?;
    Ok(outcome(verdict, limit))
}

/// What later steps read offline; nothing is asked for that is there.
fn fetch(gate: &mut Gate<'_>) -> Result<Outcome> {
    gate.cargo_step(minutes(10), &["fetch", "--locked"])
}

fn dependencies(gate: &mut Gate<'_>) -> Result<Outcome> {
    let limit = minutes(5);
    let cargo_deny = match CARGO_DENY.obtain(gate.workspace) {
        Ok(program) => program,
        Err(error) => return Ok(Outcome::LeftOut(format!("{error:#}"))),
    };
    let mut checks = vec!["bans", "licenses", "sources"];
    if advisories_fetched() {
        checks.push("advisories");
    } else {
        gate.notes.push("the advisory database was never fetched (`cargo deny fetch`): advisories were left out".to_owned());
    }
    // Offline: a gate whose answer depends on the network today is no gate.
    let arguments = ["--offline", "--locked", "check", "--hide-inclusion-graph"];
    let deny = Subprocess::new(cargo_deny, limit).current_dir(&gate.workspace.root).args(arguments).args(checks);
    Ok(outcome(deny.run()?, limit))
}

/// cargo-deny keeps its databases in cargo's home.
fn advisories_fetched() -> bool {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let databases = cargo_home.and_then(|home| fs::read_dir(home.join("advisory-dbs")).ok());
    databases.is_some_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| entry.path().join(".git/FETCH_HEAD").is_file())))
}

fn rocksdb_archive(gate: &mut Gate<'_>) -> Result<Outcome> {
    gate.archive = Some(rocksdb::ensure_archive(gate.workspace)?);
    Ok(Outcome::Passed)
}

fn clippy(gate: &mut Gate<'_>) -> Result<Outcome> {
    let fuzz_targets = ["--features", "tern-fuzz/targets"];
    gate.cargo_step(
        minutes(25),
        &[&["clippy", "--workspace", "--all-targets", "--locked"], &fuzz_targets[..], &["--", "-D", "warnings"]].concat(),
    )
}

/// A few seconds of each target, from the same inputs and with the same seed everywhere: what has been found once is found again.
fn fuzz_targets(gate: &mut Gate<'_>) -> Result<Outcome> {
    let limit = minutes(20);
    let built = fuzz::build(gate.cargo(limit))?;
    if built != Verdict::Passed {
        return Ok(outcome(built, limit));
    }
    fuzz::forget_found(gate.workspace)?;
    let tally = fuzz::run(gate.workspace, &fuzz::targets(gate.workspace)?, FUZZING)?;
    tally.print();
    Ok(if tally.failed.is_empty() { Outcome::Passed } else { Outcome::Failed(format!("a finding: {}", tally.failed.join(", "))) })
}

fn documentation(gate: &mut Gate<'_>) -> Result<Outcome> {
    let limit = minutes(15);
    let doc = gate.cargo(limit).env("RUSTDOCFLAGS", "-D warnings");
    Ok(outcome(doc.args(["doc", "--workspace", "--no-deps", "--locked"]).run()?, limit))
}

fn book(gate: &mut Gate<'_>) -> Result<Outcome> {
    let limit = minutes(2);
    let mdbook = match MDBOOK.obtain(gate.workspace) {
        Ok(program) => program,
        Err(error) => return Ok(Outcome::LeftOut(format!("{error:#}"))),
    };
    let destination = gate.workspace.target.join("book");
    let build = Subprocess::new(mdbook, limit).args(["build", "docs", "--dest-dir"]).args([destination]);
    Ok(outcome(build.current_dir(&gate.workspace.root).run()?, limit))
}

fn build(gate: &mut Gate<'_>) -> Result<Outcome> {
    gate.cargo_step(minutes(40), &["build", "--workspace", "--all-targets", "--locked"])
}

fn tests(gate: &mut Gate<'_>) -> Result<Outcome> {
    test_runner::run(gate, Suite::Crates, minutes(20))
}

fn examples(gate: &mut Gate<'_>) -> Result<Outcome> {
    test_runner::run(gate, Suite::Examples, minutes(10))
}

fn end_to_end(gate: &mut Gate<'_>) -> Result<Outcome> {
    if !gate.machine.missing_packages.is_empty() {
        return Ok(Outcome::LeftOut(format!("Debian packages are missing: {}", gate.machine.missing_packages.join(" "))));
    }
    test_runner::run(gate, Suite::EndToEnd, minutes(30))
}
