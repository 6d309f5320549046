//! The project's own tasks: `cargo xtask check` is the gate that a developer, `make test` and CI share.
//!
//! It depends on nothing that is slow to build, RocksDB above all, because it is what builds RocksDB's archive.

mod cargo_tools;
mod check;
mod fuzz;
mod rocksdb;
mod subprocess;
mod tidy;
mod totals;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::cargo_tools::CargoTool;
use crate::subprocess::{Subprocess, Verdict};
use crate::workspace::Workspace;

/// How long a command given to `exec` may take: a release build without any cache, with room to spare.
const EXEC_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the Tern workspace")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the gate: format, style, dependencies, lints, documentation and every test this machine can run
    Check {
        /// Run only these steps, and those that they need
        #[arg(long, value_name = "STEP", value_delimiter = ',')]
        only: Vec<String>,
        /// Leave these steps out
        #[arg(long, value_name = "STEP", value_delimiter = ',')]
        without: Vec<String>,
    },
    /// Check only what no compiler checks: file length, names, unsafe, lints, forbidden words
    Tidy,
    /// Build the fuzz targets and run each for a while, from the committed inputs and those that earlier runs found
    Fuzz {
        /// Only these targets
        targets: Vec<String>,
        /// How long each target runs
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// The seed of the fuzzer's random numbers; 0 draws one
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Build RocksDB's static archive into the cache if it is not there; print the variables that use it
    Rocksdb,
    /// Print the path of a cargo tool, installed into the cache if it is not there: cargo-deb, cargo-deny or mdbook
    Tool {
        /// Its name
        name: String,
    },
    /// Run a command with the variables that make cargo use the cached archive
    Exec {
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match task {
        Task::Check { only, without } => check::run(&workspace, &check::Selection::new(only, without)?),
        Task::Tidy => {
            let violations = tidy::run(&workspace.root)?;
            violations.iter().for_each(|violation| println!("{violation}"));
            Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Task::Fuzz { targets, seconds, seed } => {
            let targets = if targets.is_empty() { fuzz::targets(&workspace)? } else { targets };
            let archive = rocksdb::ensure_archive(&workspace)?;
            let cargo = Subprocess::new("cargo", EXEC_LIMIT).envs(archive.environment()).envs(workspace.environment());
            anyhow::ensure!(fuzz::build(cargo)? == Verdict::Passed, "the fuzz targets do not compile");
            let tally = fuzz::run(&workspace, &targets, fuzz::Effort { seconds, seed })?;
            tally.print();
            Ok(if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Task::Rocksdb => {
            for (name, value) in rocksdb::ensure_archive(&workspace)?.environment() {
                println!("export {name}='{}'", value.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Task::Tool { name } => {
            println!("{}", CargoTool::named(&name)?.obtain(&workspace)?.display());
            Ok(ExitCode::SUCCESS)
        }
        Task::Exec { command } => {
            let (program, arguments) = command.split_first().context("exec needs a command")?;
            let archive = rocksdb::ensure_archive(&workspace)?;
            let verdict =
                Subprocess::new(program, EXEC_LIMIT).args(arguments).envs(archive.environment()).envs(workspace.environment()).run()?;
            match verdict {
                Verdict::Passed => Ok(ExitCode::SUCCESS),
                Verdict::Failed { .. } => Ok(ExitCode::FAILURE),
                Verdict::TimedOut => anyhow::bail!("{} took longer than {} s", program.display(), EXEC_LIMIT.as_secs()),
            }
        }
    }
}
