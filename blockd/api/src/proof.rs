//! Proof that what is kept is what was written: a standby's image against its digests, both sites against each other.

use crate::UtcTime;
use serde::{Deserialize, Serialize};

/// How a standby's image fares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Whether it is being looked through.
    pub running: bool,
    /// How far that is, in bytes, about; 0 if it is not.
    #[serde(default)]
    pub done_bytes: u64,
    /// Of how many.
    #[serde(default)]
    pub total_bytes: u64,
    /// When that was done last; `null` if it never was.
    pub last: Option<UtcTime>,
    /// Blocks of 4 KiB that the disk does not give back as they came, and that the primary has not sent again yet.
    pub damaged_blocks: u64,
    /// The first of them.
    pub first_damaged_block: Option<u64>,
    /// Counter: those that were found.
    pub found_blocks: u64,
    /// Counter: those of them that were sent again.
    pub repaired_blocks: u64,
    /// Blocks that cannot be checked before `tern verify` has: nobody has said what they should hold.
    pub unknown_blocks: u64,
    /// Why nothing can be checked.
    pub error: Option<String>,
}

/// What the last comparison of both sites found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastVerify {
    /// When it ended.
    pub time: UtcTime,
    /// Blocks of 4 KiB that were compared.
    pub blocks_compared: u64,
    /// How many of them differ, looked at twice.
    pub blocks_different: u64,
    /// Blocks that were not compared: they were written each time that they were looked at.
    #[serde(default)]
    pub blocks_unsettled: u64,
    /// The epoch that both sides showed.
    pub at_epoch: u64,
    /// Why the last attempt could not be done; the rest is of the one before it then.
    pub error: Option<String>,
}
