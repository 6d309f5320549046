//! A daemon, and `tern` at its socket.

use crate::{machine, program};
use anyhow::{Context, Result, bail};
use blockd_api::{Status, VolumeStatus};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// For what happens at once.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For what takes as long as there is data.
pub const LONG_PATIENCE: Duration = Duration::from_secs(1800);
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);
/// Of the log, in an error.
const LOG_LINES: usize = 5;

/// Where a site is; it outlives its daemon.
#[derive(Debug, Clone)]
pub struct Place {
    /// The site's name.
    pub name: &'static str,
    /// Holds state directory and log.
    pub dir: PathBuf,
    /// Holds sockets: their paths are short.
    pub sockets: PathBuf,
    /// Where the other site connects.
    pub listen: SocketAddr,
}

/// A running daemon. Dropped, it is killed.
pub struct Site {
    place: Place,
    daemon: Child,
}

/// What a daemon holds, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Now.
    pub resident: u64,
    /// The most so far.
    pub peak: u64,
}

impl Site {
    /// Starts the daemon and waits until it answers; `starter` runs what follows, here or in a network namespace.
    pub fn start(mut starter: Command, place: Place) -> Result<Self> {
        let state_dir = place.dir.join("state");
        std::fs::create_dir_all(&place.dir)?;
        let log = File::options().create(true).append(true).open(place.dir.join("log"))?;
        starter.args(&program::DIES_WITH_US[1..]).arg(program::ours("blockd")?);
        starter.args(["--site", place.name, "--listen", &place.listen.to_string(), "--state-dir"]).arg(state_dir);
        starter.arg("--admin").arg(place.sockets.join(format!("{}.admin", place.name)));
        let daemon = starter.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("blockd cannot be started")?;
        let mut site = Self { place, daemon };
        let began = Instant::now();
        while site.tern::<Status>(&["status"]).is_err() {
            if site.daemon.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                bail!("{} does not start: {}", site.place.name, site.log());
            }
            sleep(POLL);
        }
        Ok(site)
    }

    /// `kill -9`.
    pub fn kill(self) -> Place {
        self.place.clone()
    }

    /// The socket of the export `vm1`.
    pub fn nbd(&self) -> PathBuf {
        self.socket("nbd")
    }

    /// Runs `tern --json` for something that happens at once.
    pub fn tern<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        self.tern_within(PATIENCE, arguments)
    }

    /// Runs `tern --json`.
    pub fn tern_within<T: DeserializeOwned>(&self, limit: Duration, arguments: &[&str]) -> Result<T> {
        let mut tern = program::bounded(limit, program::ours("tern")?);
        tern.args(["--json", "--admin"]).arg(self.socket("admin")).args(arguments);
        let answer = program::output(&mut tern).with_context(|| format!("{}; its log: {}", self.place.name, self.log()))?;
        serde_json::from_str(&answer).with_context(|| format!("tern {arguments:?} answered {answer}"))
    }

    /// The whole status.
    pub fn status(&self) -> Result<Status> {
        self.tern(&["status"])
    }

    /// The status of the only volume.
    pub fn volume(&self) -> Result<VolumeStatus> {
        self.status()?.volumes.into_iter().next().with_context(|| format!("{} has no volume", self.place.name))
    }

    /// Waits until something holds.
    pub fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !holds(self)? {
            if began.elapsed() > PATIENCE {
                bail!("{}: {what} did not happen in {} s: {}", self.place.name, PATIENCE.as_secs(), self.log());
            }
            sleep(POLL);
        }
        Ok(())
    }

    /// The daemon's process.
    pub fn process(&self) -> u32 {
        self.daemon.id()
    }

    /// A socket of the site's own.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.place.sockets.join(format!("{}.{name}", self.place.name))
    }

    /// What the daemon holds.
    pub fn memory(&self) -> Result<Memory> {
        let path = format!("/proc/{}/status", self.daemon.id());
        Ok(Memory { resident: machine::kib(&path, "VmRSS")? << 10, peak: machine::kib(&path, "VmHWM")? << 10 })
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.place.dir.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(LOG_LINES).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
