//! What an operator wants to be told of at once: a broken RPO, a split, a failed proof.
//!
//! ```text
//!   status, each second ──► Watch: edges, with hysteresis ──► log, metric, queue ──► pipe ──► runner, outside of the sandbox ──► CMD
//! ```
//!
//! The daemon may execute nothing once it has locked itself in, and what it told would be told from within the same walls. So a process of
//! its own, the [`runner`], is started before: it knows one program, and runs it with what comes through the pipe.

mod promises;
pub mod runner;
mod teller;
mod watch;

pub use teller::Teller;
pub use watch::Watch;

use blockd_api::{UtcTime, VolumeStatus};
use serde::{Deserialize, Serialize};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A disaster would cost more than was asked for.
    RpoBroken,
    /// It would not any more.
    RpoKept,
    /// Both sites were primary.
    SplitBrain,
    /// One of them follows, or stays.
    SplitEnded,
    /// Both sites differ, or a standby's disk has lost something.
    ProofFailed,
    /// A standby has no room.
    StandbyFull,
    /// It has some again.
    StandbyHasRoom,
    /// This site serves nobody: another one has the disk.
    Fenced,
    /// This site is primary from now on.
    Promoted,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::RpoBroken,
        Self::RpoKept,
        Self::SplitBrain,
        Self::SplitEnded,
        Self::ProofFailed,
        Self::StandbyFull,
        Self::StandbyHasRoom,
        Self::Fenced,
        Self::Promoted,
    ];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RpoBroken => "rpo-broken",
            Self::RpoKept => "rpo-kept",
            Self::SplitBrain => "split-brain",
            Self::SplitEnded => "split-ended",
            Self::ProofFailed => "proof-failed",
            Self::StandbyFull => "standby-full",
            Self::StandbyHasRoom => "standby-has-room",
            Self::Fenced => "fenced",
            Self::Promoted => "promoted",
        }
    }
}

/// Something happened to a volume: what a program is told on its standard input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// What.
    pub event: Kind,
    /// When it was seen.
    pub time: UtcTime,
    /// This site.
    pub site: String,
    /// Which volume.
    pub volume: String,
    /// For people.
    pub message: String,
    /// The volume then.
    pub status: VolumeStatus,
}
