//! What two sites have that the other lacks, once both were primary.

use crate::UtcTime;
use serde::{Deserialize, Serialize};

/// What changed at either site since both last had the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// At this site alone; `null` if that cannot be told.
    pub here: Option<Alone>,
    /// At the other site alone; `null` if it does not say.
    pub there: Option<Alone>,
}

/// What one site has that the other lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alone {
    /// Blocks of 4 KiB; `null` if nobody counted them: the other site went back to an older recovery point.
    pub blocks: Option<u64>,
    /// The same in bytes.
    pub bytes: Option<u64>,
    /// When the first of it was written, at the earliest; `null` if nobody knows.
    pub since: Option<UtcTime>,
    /// Whether exactly these blocks changed; otherwise, after a crash, the regions that may have.
    pub exact: bool,
}
