//! `bench`: measures what a user would see, with the programs that a user would run.
//!
//! A benchmark ([`replication`]) starts `blockd` at two sites ([`site`], [`pair`]), operates them with `tern --json`, and puts `wanem`
//! between them or `fio` on top ([`load`]). Each repeats its rounds into a [`record`]; what comes out is [`report`]'s. The programs come
//! from `$TERN_BIN_DIR`, else from beside this one. Nothing here looks into a daemon in a way that an operator could not.

mod cpus;
mod load;
mod machine;
mod pair;
mod program;
mod record;
mod replication;
mod report;
mod scratch;
mod site;
mod workshop;

use anyhow::{Context, Result, bail};
use clap::Parser;
use record::{Benchmark, Record};
use std::path::PathBuf;
use std::process::ExitCode;
use workshop::{Options, Workshop};

/// Measures speed and size; without a name it lists what can be measured.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Benchmarks, or `replication` for all of that group.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    options: Options,
    /// Also write the results here, as one JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    if cli.names.is_empty() {
        print!("{}", report::list(replication::GROUP, replication::BENCHMARKS));
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&cli.names)?;
    let workshop = Workshop::open(&cli.options)?;
    let machine = machine::describe(workshop.dir())?;
    println!("{machine}");
    let mut records = Vec::new();
    let mut failed = false;
    for benchmark in chosen {
        let mut record = Record::new(benchmark, workshop.rounds());
        // One that fails is no reason to lose the others' figures.
        if let Err(error) = (benchmark.run)(&workshop, &mut record) {
            eprintln!("bench: {}: {error:#}", benchmark.name);
            failed = true;
        }
        records.push(record);
    }
    print!("\n{}", report::table(workshop.scale(), &records));
    if let Some(path) = &cli.json {
        let document = report::document(&machine, workshop.scale(), &records);
        std::fs::write(path, serde_json::to_string_pretty(&document)? + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn choose(names: &[String]) -> Result<Vec<&'static Benchmark>> {
    let mut chosen = Vec::new();
    for name in names {
        match replication::BENCHMARKS.iter().find(|benchmark| benchmark.name == name) {
            Some(benchmark) => chosen.push(benchmark),
            None if name == replication::GROUP => chosen.extend(replication::BENCHMARKS),
            None => bail!("there is no benchmark {name}: without a name, `bench` lists them"),
        }
    }
    Ok(chosen)
}
