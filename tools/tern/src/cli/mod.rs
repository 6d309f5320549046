//! The command line: every verb and flag, from which help, completions and man pages are made too.

mod group;
mod recovery;
mod replication;
mod site;
mod values;
mod volume;

pub use group::GroupVerb;
pub use recovery::{DemoteArgs, DrillArgs, DrillAt, PromoteArgs, ResyncArgs, RollbackArgs};
pub use replication::{ModeArgs, ReplicateArgs, SnapshotArgs, WaitArgs};
pub use site::{ForecastArgs, PeerVerb, StatusArgs};
pub use volume::{CreateArgs, ExportArgs, ShowArgs, VolumeVerb};

use blockd_api::{DEFAULT_ADMIN_PATH, VolumeName};
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Operates a Tern site: volumes, their standbys, and who is primary.
#[derive(Debug, Parser)]
#[command(name = "tern", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Socket of the daemon's admin API
    #[arg(long, global = true, env = "TERN_ADMIN", default_value = DEFAULT_ADMIN_PATH, value_name = "PATH")]
    pub admin: PathBuf,
    /// Print one JSON document, errors too
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 timed out, 4 refused because it would lose data";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Pair with other sites
    #[command(subcommand)]
    Peer(PeerVerb),
    /// Make, serve and delete volumes
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Have several volumes cut at one instant
    #[command(subcommand)]
    Group(GroupVerb),
    /// Keep a standby of a volume at another site
    Replicate(ReplicateArgs),
    /// Change how a volume is replicated while it is in use
    Mode(ModeArgs),
    /// Show how volumes and their standbys are
    Status(StatusArgs),
    /// Wait until a volume is where it should be
    Wait(WaitArgs),
    /// Make a recovery point now
    Snapshot(SnapshotArgs),
    /// List the recovery points that a standby holds
    Points {
        /// Which volume
        #[arg(value_name = "NAME")]
        volume: VolumeName,
    },
    /// Make this site the primary
    Promote(PromoteArgs),
    /// Make a promotion on trial final
    Commit {
        /// Which volume
        #[arg(value_name = "NAME")]
        volume: VolumeName,
    },
    /// Take a promotion on trial back
    Rollback(RollbackArgs),
    /// Give up being the primary
    Demote(DemoteArgs),
    /// Let an old primary follow the new one
    Resync(ResyncArgs),
    /// Work on a writable copy of a recovery point while replication goes on
    Drill(DrillArgs),
    /// Compare primary and standby while both work
    Verify {
        /// Which volume
        #[arg(value_name = "NAME")]
        volume: VolumeName,
    },
    /// Look through a standby's image for what its disk has lost
    Scrub {
        /// Which volume
        #[arg(value_name = "NAME")]
        volume: VolumeName,
    },
    /// Estimate how long an evacuation would take now
    Forecast(ForecastArgs),
    /// Print completions for a shell
    #[command(hide = true)]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man {
        /// An existing directory
        dir: PathBuf,
    },
}

#[cfg(test)]
mod tests;
