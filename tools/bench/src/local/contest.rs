//! Our daemon and others' on the same image, in turns: one after the other, so that each has the machine for itself and none a better hour.
//!
//! ```text
//!   peer  [ raw, others …, ours, peer ]  [ raw, others …, ours, peer ]  …
//!     └────────── neighbours ──────┴─ of ours ─┘
//! ```
//!
//! Each turn of ours is compared to the mean of the peer's before and after it. What a turn left in the page cache or on its way to the disk
//! is gone before the next begins.

use super::guest::Guest;
use super::turn as turn_of;
use super::workload::{Latency, Turn, Workload};
use crate::load::{Disk, Transferred};
use crate::machine;
use crate::workshop::Workshop;
use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::slice;
use std::time::Duration;

/// Something that takes turns.
pub trait Contender {
    /// Carries out the load for as long.
    fn turn(&mut self, workload: Workload, duration: Duration) -> Result<Turn>;
}

/// A vhost-user-blk server and its only guest.
pub struct VhostUser {
    process: u32,
    guest: Guest,
}

/// An NBD server, to which `fio` connects.
pub struct Nbd {
    process: u32,
    disk: Disk,
}

/// `fio` on the file itself.
pub struct Raw(Disk);

/// See the module's documentation.
pub struct Contest {
    image: File,
    turn: Duration,
    rounds: u32,
    /// Our daemon.
    pub ours: Box<dyn Contender>,
    /// What it is compared to.
    pub peer: Box<dyn Contender>,
    /// What has a turn beside, the disk's own speed first.
    pub others: Vec<Box<dyn Contender>>,
}

/// A turn of each.
pub struct Round {
    /// Our daemon's.
    pub ours: Turn,
    /// The mean of the peer's turns before and after.
    pub peer: Turn,
    /// Others', in their order.
    pub others: Vec<Turn>,
}

impl VhostUser {
    /// Connects to the server.
    pub fn connect(process: u32, socket: &Path, queues: usize) -> Result<Box<dyn Contender>> {
        Ok(Box::new(Self { process, guest: Guest::connect(socket, queues)? }))
    }
}

impl Contender for VhostUser {
    fn turn(&mut self, workload: Workload, duration: Duration) -> Result<Turn> {
        let before = machine::cpu_seconds(self.process)?;
        let done = self.guest.run(workload, duration)?;
        let cpu_seconds = machine::cpu_seconds(self.process)? - before;
        let cpu_us = cpu_seconds * 1e6 / (done.per_second * duration.as_secs_f64());
        Ok(Turn { per_second: done.per_second, cpu_us, latency: done.latency })
    }
}

impl Nbd {
    /// The server's process, and its export.
    pub fn server(process: u32, disk: Disk) -> Box<dyn Contender> {
        Box::new(Self { process, disk })
    }
}

impl Contender for Nbd {
    fn turn(&mut self, workload: Workload, duration: Duration) -> Result<Turn> {
        let before = machine::cpu_seconds(self.process)?;
        let done = workload.fio(slice::from_ref(&self.disk), duration)?;
        let cpu_seconds = machine::cpu_seconds(self.process)? - before;
        turn(&done, cpu_seconds)
    }
}

impl Raw {
    /// The file.
    pub fn file(path: &Path) -> Box<dyn Contender> {
        Box::new(Self(Disk::file(path)))
    }
}

impl Contender for Raw {
    fn turn(&mut self, workload: Workload, duration: Duration) -> Result<Turn> {
        turn(&workload.fio(slice::from_ref(&self.0), duration)?, 0.0)
    }
}

fn turn(done: &Transferred, cpu_seconds: f64) -> Result<Turn> {
    let percentile = |percentile| done.percentile_us(percentile).context("fio reports no latency");
    let latency = Latency { p50_us: percentile(50.0)?, p99_us: percentile(99.0)?, p999_us: percentile(99.9)? };
    Ok(Turn { per_second: done.iops, cpu_us: cpu_seconds * 1e6 / done.total_ios.max(1) as f64, latency })
}

impl Contest {
    /// Between these two, with the disk's own speed beside.
    pub fn new(workshop: &Workshop, image: &Path, ours: Box<dyn Contender>, peer: Box<dyn Contender>) -> Result<Self> {
        Ok(Self {
            image: File::open(image)?,
            turn: turn_of(workshop),
            rounds: workshop.rounds(),
            ours,
            peer,
            others: vec![Raw::file(image)],
        })
    }

    /// Carries out all rounds, after a turn of each that does not count.
    pub fn rounds(&mut self, workload: Workload, mut each: impl FnMut(Round)) -> Result<()> {
        for contender in self.others.iter_mut().chain([&mut self.ours]) {
            contender.turn(workload, self.turn / 4)?;
        }
        let mut before = settled(&self.image, &mut self.peer, workload, self.turn)?;
        for _ in 0..self.rounds {
            let turns = self.others.iter_mut().chain([&mut self.ours, &mut self.peer]);
            let mut turns = turns.map(|contender| settled(&self.image, contender, workload, self.turn)).collect::<Result<Vec<_>>>()?;
            let (Some(after), Some(ours)) = (turns.pop(), turns.pop()) else { unreachable!("both had a turn") };
            each(Round { ours, peer: before.mean(&after), others: turns });
            before = after;
        }
        Ok(())
    }
}

/// A turn that begins with nothing under way.
fn settled(image: &File, contender: &mut Box<dyn Contender>, workload: Workload, duration: Duration) -> Result<Turn> {
    image.sync_all()?;
    fadvise(image, 0, None, Advice::DontNeed)?;
    contender.turn(workload, duration)
}

/// A fresh image, all of it written.
pub fn image(workshop: &Workshop) -> Result<PathBuf> {
    workshop.random_image("image", workshop.size(2 << 30, 64 << 20))
}

/// Waits until the disk has nothing to do for what is in the workshop.
pub fn settle_disk(workshop: &Workshop) -> Result<()> {
    Ok(rustix::fs::syncfs(File::open(workshop.dir())?)?)
}
