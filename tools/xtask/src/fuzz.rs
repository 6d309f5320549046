//! Fuzzing: builds the targets with a fuzzer's counters, and runs each from its committed corpus.
//!
//! The counters are options of the stable compiler, so neither a nightly one nor cargo-fuzz is needed. New inputs that reach new code are
//! kept in the build directory, and the next run begins with them; findings go there, too. Only what is copied to `tests/fuzz/corpus/` and
//! committed is everybody's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::subprocess::{Subprocess, Verdict};
use crate::workspace::Workspace;

const SOURCES: &str = "tests/fuzz/fuzz_targets";
const CORPUS: &str = "tests/fuzz/corpus";
/// Coverage as libFuzzer wants it.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Longest input. Most are sequences, of which this is a long one.
const INPUT_BYTES: u64 = 1024;
/// Longest that one input may take.
const INPUT_LIMIT_S: u64 = 40;
/// Most memory of a target.
const MEMORY_LIMIT_MIB: u64 = 2048;
/// From the end of its time to the end of a target.
const CLOSING: Duration = Duration::from_secs(60);
/// The line of libFuzzer's closing statistics that counts inputs.
const EXECUTIONS: &str = "stat::number_of_executed_units:";

/// How much to fuzz.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// For each target.
    pub seconds: u64,
    /// Of the fuzzer's random numbers.
    pub seed: u64,
}

/// What became of the targets.
#[derive(Debug, Default)]
pub struct Tally {
    /// Inputs that were executed, by target.
    pub executions: Vec<(String, u64)>,
    /// Targets with a finding.
    pub failed: Vec<String>,
}

impl Tally {
    /// A line for each target, and their sum.
    pub fn print(&self) {
        for (target, executions) in &self.executions {
            let finding = if self.failed.contains(target) { "  FINDING" } else { "" };
            println!("{executions:>12}  {target}{finding}");
        }
        println!("{:>12}  inputs in total", self.executions.iter().map(|(_, executions)| executions).sum::<u64>());
    }
}

/// The names of all targets, in their order.
pub fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let entries = fs::read_dir(workspace.root.join(SOURCES)).with_context(|| format!("read {SOURCES}"))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    let mut names: Vec<String> = paths.iter().filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// Completes `cargo`, which has its environment, to build the targets.
pub fn build(cargo: Subprocess) -> Result<Verdict> {
    // With a target named, build scripts and macros are not instrumented.
    let arguments = ["build", "--package", "tern-fuzz", "--features", "targets", "--bins", "--profile", "fuzz", "--locked"];
    cargo.env("RUSTFLAGS", RUSTFLAGS).args(arguments).args(["--target", &triple()]).run()
}

/// Runs the targets one after the other.
pub fn run(workspace: &Workspace, targets: &[String], effort: Effort) -> Result<Tally> {
    let known = self::targets(workspace)?;
    let mut tally = Tally::default();
    for target in targets {
        ensure!(known.contains(target), "no target is named {target}; there are: {}", known.join(", "));
        let (mut executions, mut said) = (0, Vec::new());
        let verdict = target_run(workspace, target, effort)?.run_reading(|line| match line.strip_prefix(EXECUTIONS) {
            Some(count) => executions = count.trim().parse().unwrap_or_default(),
            None => said.push(line.to_owned()),
        })?;
        // Of interest only with a finding: the input, and where it failed.
        if verdict != Verdict::Passed {
            println!("\n{target}");
            said.iter().for_each(|line| println!("  {line}"));
        }
        tally.executions.push((target.clone(), executions));
        if verdict != Verdict::Passed {
            tally.failed.push(target.clone());
        }
    }
    Ok(tally)
}

fn target_run(workspace: &Workspace, target: &str, effort: Effort) -> Result<Subprocess> {
    let scratch = scratch(workspace);
    let (found, findings) = (scratch.join("corpus").join(target), scratch.join("findings").join(target));
    for dir in [&found, &findings] {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let committed = Some(workspace.root.join(CORPUS).join(target)).filter(|dir| dir.is_dir());
    let program = workspace.target.join(triple()).join("fuzz").join(target);
    let fuzzer = Subprocess::new(program, Duration::from_secs(effort.seconds + INPUT_LIMIT_S) + CLOSING)
        .args([format!("-seed={}", effort.seed), format!("-max_total_time={}", effort.seconds)])
        // Long inputs from the beginning: a short one is a short sequence, and finds nothing.
        .args(["-len_control=0".to_owned(), format!("-max_len={INPUT_BYTES}")])
        .args([format!("-timeout={INPUT_LIMIT_S}"), format!("-rss_limit_mb={MEMORY_LIMIT_MIB}")])
        .args(["-verbosity=0".to_owned(), "-print_final_stats=1".to_owned(), format!("-artifact_prefix={}/", findings.display())])
        .args(std::iter::once(found).chain(committed));
    Ok(fuzzer)
}

/// Forgets what earlier runs found, so that the next begins as on any other machine.
pub fn forget_found(workspace: &Workspace) -> Result<()> {
    remove(&scratch(workspace).join("corpus"))
}

fn scratch(workspace: &Workspace) -> PathBuf {
    workspace.target.join("fuzzing")
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("remove {}", dir.display())),
        _ => Ok(()),
    }
}

fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}
