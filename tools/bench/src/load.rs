//! `fio`: as an NBD client of volumes and of others' servers, or straight on a file.

use crate::program::DIES_WITH_US;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Beyond what the load should take.
const GRACE: Duration = Duration::from_secs(60);

/// A running load. Dropped, it is killed.
pub struct Load {
    fio: Child,
    began: Instant,
    limit: Duration,
}

/// What `fio` reads and writes.
pub struct Disk {
    /// Options for its job.
    options: Vec<String>,
    /// What makes a write durable, after so many.
    flush: &'static str,
}

impl Disk {
    /// A volume at blockd's NBD socket.
    pub fn volume(name: &str, socket: &Path) -> Self {
        Self::nbd(&format!("nbd+unix:///{name}?socket={}", socket.display()))
    }

    /// An NBD export.
    pub fn nbd(uri: &str) -> Self {
        Self { options: vec!["--ioengine=nbd".to_owned(), format!("--uri={uri}")], flush: "--fsync" }
    }

    /// A file, past the page cache.
    pub fn file(path: &Path) -> Self {
        let options = ["--ioengine=io_uring", "--direct=1", "--allow_file_create=0"].map(str::to_owned);
        let options = [options.as_slice(), &[format!("--filename={}", path.display())]].concat();
        Self { options, flush: "--fdatasync" }
    }

    /// The same; each write is followed by a flush.
    pub fn flushed(&self) -> Self {
        Self { options: [self.options.as_slice(), &[format!("{}=1", self.flush)]].concat(), flush: self.flush }
    }
}

/// What it did, without its ramp.
pub struct Done {
    /// What it read.
    pub read: Transferred,
    /// What it wrote.
    pub write: Transferred,
}

/// Requests of one direction; of several disks, their sum.
#[derive(Debug, Clone, Deserialize)]
pub struct Transferred {
    /// Requests a second.
    pub iops: f64,
    /// Requests.
    pub total_ios: u64,
    /// Bytes.
    pub io_bytes: u64,
    /// Milliseconds.
    pub runtime: u64,
    lat_ns: Latency,
}

#[derive(Debug, Clone, Deserialize)]
struct Latency {
    #[serde(default)]
    percentile: BTreeMap<String, f64>,
}

impl Transferred {
    /// A percentile of the latency, in microseconds; nothing if `fio` was not asked for it.
    pub fn percentile_us(&self, percentile: f64) -> Option<f64> {
        self.lat_ns.percentile.get(&format!("{percentile:.6}")).map(|ns| ns / 1000.0)
    }

    /// MiB a second.
    pub fn mib_per_second(&self) -> f64 {
        self.io_bytes as f64 / f64::from(1 << 20) / (self.runtime.max(1) as f64 / 1000.0)
    }
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i32,
    read: Transferred,
    write: Transferred,
}

impl Load {
    /// Starts random writes to `vm1` that nothing compresses; `options` are fio's, `expected` is how long they take at most.
    pub fn start(socket: &Path, options: &[&str], expected: Duration) -> Result<Self> {
        let options = [&["--rw=randwrite", "--refill_buffers", "--randrepeat=0"], options].concat();
        Self::run(&[Disk::volume("vm1", socket)], &options, expected)
    }

    /// Starts one job for each disk, with the same options.
    pub fn run(disks: &[Disk], options: &[&str], expected: Duration) -> Result<Self> {
        let mut fio = Command::new(DIES_WITH_US[0]);
        fio.args(&DIES_WITH_US[1..]).args(["fio", "--output-format=json", "--thread", "--group_reporting"]).args(options);
        for disk in disks {
            fio.arg("--name=load").args(&disk.options);
        }
        let fio = fio.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("fio cannot be started")?;
        Ok(Self { fio, began: Instant::now(), limit: expected + GRACE })
    }

    /// For how long it has been running.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether it still writes; an error if it should have ended.
    pub fn is_running(&mut self) -> Result<bool> {
        let running = self.fio.try_wait()?.is_none();
        ensure!(!running || self.age() < self.limit, "fio runs for more than {} s", self.limit.as_secs());
        Ok(running)
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<Done> {
        while self.is_running()? {
            std::thread::sleep(Duration::from_millis(20));
        }
        let text = |bytes: std::io::Result<String>| bytes.unwrap_or_default();
        let output = text(self.fio.stdout.take().map_or_else(|| Ok(String::new()), std::io::read_to_string));
        let said = text(self.fio.stderr.take().map_or_else(|| Ok(String::new()), std::io::read_to_string));
        let status = self.fio.wait()?;
        ensure!(status.success(), "fio: {status}: {} {output}", said.trim());
        // Its notes come first.
        let json = &output[output.find('{').with_context(|| format!("fio reports nothing: {output}"))?..];
        let report: Report = serde_json::from_str(json).context("fio's report")?;
        let job = report.jobs.into_iter().next().context("fio reports no job")?;
        ensure!(job.error == 0, "fio: error {}", job.error);
        Ok(Done { read: job.read, write: job.write })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.fio.kill();
        let _ = self.fio.wait();
    }
}
