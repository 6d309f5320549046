//! `fio` as an NBD client: writes that nothing compresses, many at a time.

use crate::program::DIES_WITH_US;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
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

/// What it did, without its ramp.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Written {
    /// Writes a second.
    pub iops: f64,
    /// Bytes.
    pub io_bytes: u64,
    /// Milliseconds.
    pub runtime: u64,
}

impl Written {
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
    write: Written,
}

impl Load {
    /// Starts random writes to `vm1`; `options` are fio's, `expected` is how long they take at most.
    pub fn start(socket: &Path, options: &[&str], expected: Duration) -> Result<Self> {
        let uri = format!("--uri=nbd+unix:///vm1?socket={}", socket.display());
        let mut fio = Command::new(DIES_WITH_US[0]);
        fio.args(&DIES_WITH_US[1..]).args(["fio", "--name=load", "--ioengine=nbd", &uri, "--rw=randwrite", "--refill_buffers"]);
        fio.args(["--randrepeat=0", "--output-format=json"]).args(options);
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
        ensure!(!running || self.age() < self.limit, "fio writes for more than {} s", self.limit.as_secs());
        Ok(running)
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<Written> {
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
        Ok(job.write)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.fio.kill();
        let _ = self.fio.wait();
    }
}
