//! The machine that was measured, without anything that names it.

use crate::program;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::time::Duration;

const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// What a figure depends on beside the code.
#[derive(Debug, Serialize)]
pub struct Machine {
    cpu: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    /// Of the directory with images and state.
    file_system: String,
}

/// Looks at this machine; `dir` is where images and state directories go.
pub fn describe(dir: &Path) -> Result<Machine> {
    let mut findmnt = program::bounded(LOOK_LIMIT, "findmnt");
    let file_system = program::output(findmnt.args(["--noheadings", "--output", "FSTYPE,OPTIONS", "--target"]).arg(dir))?;
    Ok(Machine {
        cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|_| std::env::consts::ARCH.to_owned()),
        cores: std::thread::available_parallelism()?.get(),
        memory_gib: kib("/proc/meminfo", "MemTotal")? as f64 / f64::from(1 << 20),
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        file_system: file_system.split_whitespace().collect::<Vec<_>>().join(" "),
    })
}

/// A field of a `/proc` file of lines `NAME: VALUE kB`.
pub fn kib(path: &str, name: &str) -> Result<u64> {
    let value = field(path, name)?;
    value.trim_end_matches(" kB").parse().with_context(|| format!("{path}: {name}: {value:?} is no number of kB"))
}

/// CPU time that a process has used, all its threads and those that are gone included.
pub fn cpu_seconds(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let text = read(&path)?;
    // After the name, which may hold anything, `utime` and `stime` are fields 12 and 13: see proc_pid_stat(5).
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>();
    Ok(ticks.with_context(|| format!("{path} has no CPU time"))? as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// A field of a `/proc` file of lines `NAME: VALUE`.
pub fn field(path: &str, name: &str) -> Result<String> {
    let text = read(path)?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let found = lines.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name);
    found.map(|(_, value)| value.to_owned()).with_context(|| format!("{path} has no {name}"))
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.to_owned())
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, memory_gib, kernel, file_system } = self;
        write!(f, "{cpu}, {cores} cores, {memory_gib:.0} GiB of memory, Linux {kernel}, {file_system}")
    }
}
