//! Keeping a standby: begin, change, end, and recovery points on demand.

use crate::{Bandwidth, Fence, Mode, OnDisconnect, SiteName, Span};
use serde::{Deserialize, Serialize};

/// Begins replication to a site, or changes its settings: what is `None` stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replicate {
    /// The standby's site.
    pub to: SiteName,
    /// When writes and flushes are acknowledged; `async` at first.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// How much acknowledged data a disaster may cost; at first the daemon's default.
    #[serde(default)]
    pub rpo: Option<Span>,
    /// Most that this replica may send: a rate, `none`, or a calendar; at first no limit.
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
    /// What becomes of requests that wait for a standby which is gone; at first as the mode has it.
    #[serde(default)]
    pub on_disconnect: Option<OnDisconnect>,
    /// How long a request waits for the standby at most; at first the daemon's default.
    #[serde(default)]
    pub ack_timeout: Option<Span>,
    /// When mode `snapshot` cuts: a span, cron syntax in UTC, or `none`, which it is at first.
    #[serde(default)]
    pub schedule: Option<String>,
    /// When this primary stops acknowledging by itself; `None`: as it was, at first never.
    #[serde(default)]
    pub fence: Option<Fence>,
    /// How long a lease is; `None`: the daemon's default.
    #[serde(default)]
    pub lease: Option<Span>,
    /// A third site that grants leases, too.
    #[serde(default)]
    pub witness: Option<SiteName>,
    /// After how much silence the standby is promoted without the operator; `None`: never.
    #[serde(default)]
    pub auto_promote: Option<Span>,
    /// Ends automatic promotion although the witness does not agree.
    #[serde(default)]
    pub force: bool,
}

/// Ends replication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopReplication {
    /// To which site; `None`: the only one.
    #[serde(default)]
    pub to: Option<SiteName>,
    /// Ends automatic promotion although the witness does not agree.
    #[serde(default)]
    pub force: bool,
}

/// Changes the mode while the volume is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetMode {
    /// The new mode.
    pub mode: Mode,
    /// When mode `snapshot` cuts; `None`: as before.
    #[serde(default)]
    pub schedule: Option<String>,
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
