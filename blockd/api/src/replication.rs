//! Keeping a standby: begin, change, end, and recovery points on demand.

use crate::{Mode, OnDisconnect, Rate, SiteName, Span};
use serde::{Deserialize, Serialize};

/// Begins replication to a site, or replaces its settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replicate {
    /// The standby's site.
    pub to: SiteName,
    /// When writes and flushes are acknowledged.
    #[serde(default)]
    pub mode: Mode,
    /// How much acknowledged data a disaster may cost; `None`: the daemon's default.
    #[serde(default)]
    pub rpo: Option<Span>,
    /// Most that this replica may send; `None`: no limit.
    #[serde(default)]
    pub bandwidth: Option<Rate>,
    /// What becomes of requests that wait for a standby which is gone; `None`: as the mode has it.
    #[serde(default)]
    pub on_disconnect: Option<OnDisconnect>,
    /// How long a request waits for the standby at most; `None`: the daemon's default.
    #[serde(default)]
    pub ack_timeout: Option<Span>,
}

/// Ends replication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopReplication {
    /// To which site; `None`: the only one.
    #[serde(default)]
    pub to: Option<SiteName>,
}

/// Changes the mode while the volume is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetMode {
    /// The new mode.
    pub mode: Mode,
    /// Of the replica at which site; `None`: the only one.
    #[serde(default)]
    pub to: Option<SiteName>,
}

/// A recovery point that is durable at the standby.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its number.
    pub epoch: u64,
    /// How long it took from the cut to the answer.
    pub seconds: f64,
}
