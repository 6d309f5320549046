//! What the rest of the daemon sees of a replica: computed from counts each time, never a flag that somebody set.

use super::PromiseStatus;
use replicator_engine::forecast::Outlook;
use replicator_engine::schedule::Dues;
use replicator_engine::sender::{Backlog, Known, Phase};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Refused;

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct PrimaryStatus {
    /// Where the connection stands.
    pub phase: Phase,
    /// Why the standby refused us last, until it takes us.
    pub refused: Option<Refused>,
    /// Whether the standby knows a later generation: stop acknowledging.
    pub superseded: bool,
    /// What the standby acknowledged; `None` before its first recovery point.
    pub known: Option<Known>,
    /// The epoch that collects changes.
    pub open_epoch: Epoch,
    /// What it does not have.
    pub backlog: Backlog,
    /// Age of the oldest write that it does not have; `None` if that is not known.
    pub rpo_ms: Option<u64>,
    /// Whether what is left to send fits an epoch.
    pub converged: bool,
    /// What a handover would be up against, if that can be said.
    pub outlook: Option<Outlook>,
    /// How the mode's promise stands.
    pub promise: PromiseStatus,
    /// When the newest recovery point was cut, by the clock on the wall, if that is known.
    pub point_unix_ms: Option<u64>,
    /// When the next cut is due by its schedule, if there is one.
    pub next_cut_unix_ms: Option<u64>,
    /// Whether the standby has the cuts that were due.
    pub dues: Dues,
    /// What failed on this side, until it works again.
    pub error: Option<String>,
}

impl Default for PrimaryStatus {
    fn default() -> Self {
        Self {
            phase: Phase::Offline,
            refused: None,
            superseded: false,
            known: None,
            open_epoch: 0,
            backlog: Backlog::default(),
            rpo_ms: None,
            converged: false,
            outlook: None,
            promise: PromiseStatus::default(),
            point_unix_ms: None,
            next_cut_unix_ms: None,
            dues: Dues::default(),
            error: None,
        }
    }
}

impl PrimaryStatus {
    /// The newest recovery point; 0 before the first.
    pub fn committed(&self) -> Epoch {
        self.known.map_or(0, |known| known.acked)
    }

    /// Whether the standby has a recovery point, is attached, and what is left fits the next epoch.
    pub fn is_in_sync(&self) -> bool {
        self.phase == Phase::Online && self.known.is_some() && self.converged
    }
}
