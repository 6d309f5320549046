//! `bench`: measures what a user would see, with the programs that a user would run.
//!
//! A benchmark of [`replication`], [`modes`] or [`wan`] starts `blockd` at two sites ([`site`], [`pair`]), operates them with `tern --json`, and puts `wanem`
//! between them or `fio` on top ([`load`]); one of [`local`] has `blockd` and others' servers take turns on one disk. Each repeats its
//! rounds into a [`record`]; what comes out is [`report`]'s. The programs come from `$TERN_BIN_DIR`, else from beside this one. Nothing
//! here looks into a daemon in a way that an operator could not.

mod cpus;
mod load;
mod local;
mod machine;
mod modes;
mod pair;
mod program;
mod record;
mod replication;
mod report;
mod scratch;
mod site;
mod wan;
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
    /// Benchmarks, or `replication`, `modes`, `wan` or `local` for all of that group.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    options: Options,
    /// Also write the results here, as one JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const GROUPS: [(&str, &[Benchmark]); 4] = [
    (replication::GROUP, replication::BENCHMARKS),
    (modes::GROUP, modes::BENCHMARKS),
    (wan::GROUP, wan::BENCHMARKS),
    (local::GROUP, local::BENCHMARKS),
];

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
        GROUPS.iter().for_each(|(group, benchmarks)| print!("{}", report::list(group, benchmarks)));
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
        // What others left for the kernel to write would share the disk with what is measured.
        rustix::fs::sync();
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
        let one = GROUPS.iter().flat_map(|(_, benchmarks)| *benchmarks).find(|benchmark| benchmark.name == name);
        let group = GROUPS.iter().find(|(group, _)| group == name);
        match (one, group) {
            (Some(benchmark), _) => chosen.push(benchmark),
            (None, Some((_, benchmarks))) => chosen.extend(*benchmarks),
            (None, None) => bail!("there is no benchmark {name}: without a name, `bench` lists them"),
        }
    }
    Ok(chosen)
}
