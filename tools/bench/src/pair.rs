//! Two paired sites with one volume, `vm1`, at the first.

use crate::site::{LONG_PATIENCE, Place, Site};
use crate::{cpus, machine, program};
use anyhow::Result;
use blockd_api::{Invite, PeerList, VolumeStatus};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wanem::namespace::NamespaceName;
use wanem::{Emulator, Options, Side};

const PORT: u16 = 7447;
/// Another than a daemon in use would have, and none that the kernel hands out.
const LOOPBACK_PORT: u16 = 7552;

/// See the module's documentation.
pub struct Pair {
    /// Has the volume.
    pub primary: Site,
    /// Has the copy.
    pub standby: Site,
    /// They go when this goes.
    pub dirs: [TempDir; 3],
}

/// Of the WAN that the figures are about.
pub const WAN_BITS_PER_SECOND: u64 = 85_000_000;
/// Of the same.
pub const WAN_ROUND_TRIP: Duration = Duration::from_millis(27);

/// A WAN like that.
pub fn wan() -> Result<Emulator> {
    let namespace = |site: &str| format!("tern-bench-{site}-{}", std::process::id()).parse::<NamespaceName>().map_err(anyhow::Error::msg);
    let options = Options::new(namespace("a")?, namespace("b")?);
    let program = program::ours("wanem")?;
    cpus::at(cpus::Place::Elsewhere, || Ok(Emulator::start(&program, &options)?))
}

/// What runs a daemon on this host's own network.
pub fn here() -> Command {
    Command::new(program::DIES_WITH_US[0])
}

/// An address that only this process uses: a free port may be taken by another test before the daemon has it.
pub fn loopback(host: u8) -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, high, low, host], LOOPBACK_PORT))
}

impl Pair {
    /// Two sites, each in a directory, with this WAN between them, else on this host's own network, where they share all CPUs.
    pub fn start(dirs: [&Path; 2], wan: Option<&Emulator>) -> Result<Self> {
        let [at_primary, at_standby] = dirs;
        let dirs = [tempfile::tempdir_in(at_primary)?, tempfile::tempdir_in(at_standby)?, tempfile::tempdir()?];
        let site = |name, side| {
            let dir = if side == Side::A { &dirs[0] } else { &dirs[1] };
            let place = |listen| Place { name, dir: dir.path().to_owned(), sockets: dirs[2].path().to_owned(), listen };
            let (host, cpus) = if side == Side::A { (1, cpus::Place::Here) } else { (2, cpus::Place::Elsewhere) };
            let Some(wan) = wan else { return Site::start(here(), place(loopback(host))) };
            let starter = wan.command(side, program::DIES_WITH_US[0]);
            cpus::at(cpus, || Site::start(starter, place(SocketAddr::from(([10, 99, 0, host], PORT)))))
        };
        let (primary, standby) = (site("osaka", Side::A)?, site("oregon", Side::B)?);
        let pair = Self { primary, standby, dirs };
        let invite: Invite = pair.primary.tern(&["peer", "invite"])?;
        pair.standby.tern::<Value>(&["peer", "join", &invite.token])?;
        pair.wait_until_connected()?;
        Ok(pair)
    }

    /// Waits until the primary's site has a link.
    pub fn wait_until_connected(&self) -> Result<()> {
        self.primary.wait_until("a link between the sites", |site| {
            let peers: PeerList = site.tern(&["peer", "list"])?;
            Ok(peers.peers.iter().any(|peer| peer.connected))
        })
    }

    /// Makes the volume and serves it; `how` says what is in it.
    pub fn create(&self, how: &[&str]) -> Result<()> {
        self.primary.tern_within::<Value>(LONG_PATIENCE, &[&["volume", "create", "vm1"], how].concat())?;
        let nbd = format!("unix:{}", self.primary.nbd().display());
        self.primary.tern::<Value>(&["volume", "export", "vm1", "--nbd", &nbd])?;
        Ok(())
    }

    /// Makes the volume from an image.
    pub fn import(&self, image: &Path) -> Result<()> {
        self.create(&["--import", &image.to_string_lossy()])
    }

    /// What both daemons have used of the CPUs.
    pub fn cpu_seconds(&self) -> Result<f64> {
        Ok(machine::cpu_seconds(self.primary.process())? + machine::cpu_seconds(self.standby.process())?)
    }

    /// Begins replication; returns how long it took until both sites were in sync.
    pub fn replicate(&self, rpo: &str) -> Result<Duration> {
        self.replicate_with(&["--rpo", rpo])
    }

    /// Begins replication in a mode, or goes on in it.
    pub fn replicate_in(&self, mode: &str) -> Result<Duration> {
        self.replicate_with(&["--mode", mode])
    }

    /// Begins replication with these options, or goes on with them.
    pub fn replicate_with(&self, options: &[&str]) -> Result<Duration> {
        let began = Instant::now();
        self.primary.tern::<Value>(&[&["replicate", "vm1", "--to", "oregon"], options].concat())?;
        self.wait_in_sync()?;
        Ok(began.elapsed())
    }

    /// Waits until both sites are in sync.
    pub fn wait_in_sync(&self) -> Result<VolumeStatus> {
        let seconds = format!("{}s", LONG_PATIENCE.as_secs());
        self.primary.tern_within(LONG_PATIENCE, &["wait", "vm1", "--for", "in-sync", "--timeout", &seconds])
    }
}
