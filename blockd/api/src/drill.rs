//! Drills: a writable copy of a recovery point, while replication goes on.

use crate::{Export, SiteName, UtcTime, VolumeName};
use serde::{Deserialize, Serialize};

/// Begins a drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeginDrill {
    /// Where the copy is served.
    pub export: Export,
    /// Which recovery point; without it, the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// This site's own old state, in place of a recovery point.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
}

/// The drills of a volume at this site, the oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrillList {
    /// The daemon remembers a limited number of them.
    pub drills: Vec<Drill>,
}

/// A drill: what an auditor asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drill {
    /// Of which volume.
    pub volume: VolumeName,
    /// At which site.
    pub site: SiteName,
    /// The recovery point's epoch.
    pub point: u64,
    /// When that was cut, by the primary's clock; `null` beyond the year 9999.
    pub point_time: Option<UtcTime>,
    /// Size of the copy.
    pub size_bytes: u64,
    /// Where it is served; NBD clients ask for the volume's name, or for none.
    pub export: Export,
    /// When it was asked for.
    pub began: UtcTime,
    /// From then until clients could connect.
    pub ready_seconds: f64,
    /// From then until the first content was there for a client; `null` before.
    pub first_read_seconds: Option<f64>,
    /// Where it stands.
    pub state: DrillState,
    /// When it ended; `null` before, and where the daemon ended with it.
    pub ended: Option<UtcTime>,
    /// What clients changed in the copy.
    pub changed_bytes: u64,
    /// Of a drill of a group, begun or ended just now: that of each volume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Drill>,
}

/// Where a drill stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrillState {
    /// The copy is served.
    Running,
    /// It was ended.
    Ended,
    /// The daemon ended with it.
    BrokenOff,
}
