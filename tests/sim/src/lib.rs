//! Two to four real sites of replication on simulated disks and a simulated network, under a clock and a dice that one seed drives.
//!
//! The engine, the intake, the activity log, the codec, the journal and the fold are the daemon's own. The simulator takes power, processes,
//! streams, single operations and whole directions of the network away at any step, promotes and hands over, and holds what it finds
//! against what happened ([`history`](crate)): copies show the primary's volume at a cut, never an epoch less than was acknowledged, older
//! recovery points that they offer are cuts, too, and none of their blocks is called damaged; while a
//! promise is recorded, they have whatever a guest was told under it; one site acknowledges in a generation; and everything is equal once
//! everything healed. A volume has one standby, or several with a lane each. The modes, and what becomes of requests without a standby, are
//! the seed's, too, and change while the guest writes.
//!
//! `SEED=n cargo test -p sim fresh -- --nocapture` replays one run with its trace.

#[cfg(test)]
mod crash_images;
mod events;
mod failover;
mod faults;
mod forgetful;
mod group;
mod handing_over;
mod history;
mod network;
mod past;
mod plant;
mod primary;
mod site;
mod standby;
mod standbys;
mod storage;
mod streams;
mod taking_back;
mod wiretap;
mod world;

pub use group::{GroupPlant, GroupTally, run_group};
pub use plant::Plant;

use std::fmt;
use std::ops::AddAssign;

/// Size of the simulated volume before it grows: two extents of the activity log, so that one can be hot and the other not.
const VOLUME_BLOCKS: u32 = 1100;
/// Events of a run with one standby, and with several.
const STEPS: [u32; 2] = [600, 900];

/// What happened in a run, or in many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Epochs that a standby committed.
    pub commits: u64,
    /// Crashes, cuts, broken streams, damaged frames and operations that failed.
    pub faults: u64,
    /// Times that a copy was held against the cuts.
    pub checks: u64,
    /// Times that it was held against a promise that is recorded.
    pub promises: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.commits += other.commits;
        self.faults += other.faults;
        self.checks += other.checks;
        self.promises += other.promises;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { commits, faults, checks, promises } = self;
        write!(f, "{commits} epochs committed, {faults} faults, {checks} states and {promises} promises checked")
    }
}

/// Runs one seed to its end; panics where a rule is broken.
pub fn run(seed: u64) -> Tally {
    run_with(seed, None, Trace::Off)
}

/// Whether a run tells what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// It does not.
    Off,
    /// On standard output.
    On,
}

/// The same with a bug in it, or with a trace.
pub fn run_with(seed: u64, plant: Option<Plant>, trace: Trace) -> Tally {
    let mut world = world::World::new(seed, plant, trace == Trace::On);
    for _ in 0..STEPS[usize::from(world.has_several)] {
        world.step();
    }
    world.heal();
    world.tally
}
