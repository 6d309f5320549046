//! Changing the primary, and proving that two sites hold the same.

use crate::{Span, UtcTime};
use serde::{Deserialize, Serialize};

/// Makes this site the primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promote {
    /// Accepts the loss of what is not in the last recovery point, and fences an active primary.
    #[serde(default)]
    pub force: bool,
    /// Goes back to this recovery point; without it, to none before the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// On trial: it is taken back after so long, once no client is attached, unless it is made final before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Span>,
}

/// Takes a promotion on trial back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeBack {
    /// Goes on although a client is active.
    #[serde(default)]
    pub force: bool,
}

/// The recovery points that a standby holds, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointList {
    /// The last is the newest.
    pub points: Vec<Point>,
}

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Its epoch: what `tern promote --at` takes.
    pub epoch: u64,
    /// When it was cut, by the primary's clock; `null` beyond the year 9999.
    pub time: Option<UtcTime>,
    /// Content that changed until the next point, before it is compressed; 0 for the newest.
    pub bytes: u64,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Whether it is this site's own old state, from before it became a standby: kept until the operator lets it go. Its epoch is one of the old
    /// generation, its `bytes` are what it takes.
    #[serde(default)]
    pub pinned: bool,
    /// Blocks of 4 KiB that it does not have any more: who reads them gets an error.
    #[serde(default)]
    pub damaged_blocks: u64,
}

/// Gives up being the primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demote {
    /// Goes on although a client is active.
    #[serde(default)]
    pub force: bool,
}

/// What a promotion did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Promotion {
    /// Planned or not.
    pub kind: PromotionKind,
    /// The epoch that the volume continues from.
    pub epoch: u64,
    /// The new generation's counter.
    pub generation: u64,
    /// How long it took until the volume could be served.
    pub seconds: f64,
    /// Acknowledged data that is not in this primary; `null` when it cannot be known.
    pub lost_bytes: Option<u64>,
    /// Blocks of 4 KiB that this site's disk did not give back as they came: they are wrong.
    #[serde(default)]
    pub damaged_blocks: u64,
}

/// How the primary changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromotionKind {
    /// The old primary handed over: nothing is lost.
    Handover,
    /// The old primary did not take part.
    Failover,
}

/// An old primary follows the new one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resync {
    /// Accepts that this site's own changes are given up: they are kept aside. Without it nothing happens.
    #[serde(default)]
    pub discard_local: bool,
    /// Keeps nothing aside, and lets go of what is.
    #[serde(default)]
    pub yes: bool,
}

/// What a resync gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resynced {
    /// Blocks of 4 KiB that were changed here and are not at the new primary.
    pub blocks: u64,
    /// The same in bytes.
    pub bytes: u64,
    /// Whether they are still kept aside; a resync with `yes` lets them go.
    pub kept: bool,
}

/// What a comparison of both sites found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Blocks of 4 KiB that were compared.
    pub blocks_compared: u64,
    /// How many of them differ.
    pub blocks_different: u64,
    /// Blocks that were not compared: they were written each time that they were looked at.
    #[serde(default)]
    pub blocks_unsettled: u64,
    /// The epoch that both sides showed.
    pub at_epoch: u64,
}
