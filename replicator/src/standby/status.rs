//! What the rest of the daemon sees of a standby.

use super::service::Session;
use super::{Health, KeptOld, ScrubProgress};
use replicator_engine::generation::Lineage;
use replicator_engine::history::History;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Base;
use roaring::RoaringBitmap;

/// What the rest of the daemon sees of a standby.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StandbyStatus {
    /// Whether a primary is attached: connected, and taken.
    pub attached: bool,
    /// Whose stream it is that was opened last, attached or not.
    pub session: Option<Session>,
    /// Whether that primary has committed an epoch. Its first one has all that was left to send: until then it catches up.
    pub caught_up: bool,
    /// Whether content has arrived that no epoch has yet.
    pub staged: bool,
    /// When the newest recovery point was cut, by the primary's clock, in milliseconds since 1970; `None` if that was before a restart.
    pub cut_unix_ms: Option<u64>,
    /// Whether the copy is a recovery point.
    pub has_point: bool,
    /// The newest recovery point.
    pub committed: Epoch,
    /// The lineage that was last adopted.
    pub lineage: Option<Lineage>,
    /// A primary that continues an epoch before the newest recovery point, and was refused for that.
    pub rival: Option<Lineage>,
    /// Bytes of journal.
    pub journal_bytes: u64,
    /// How many recovery points there are.
    pub points: usize,
    /// Bytes of undo: what the older ones take.
    pub undo_bytes: u64,
    /// Why older ones were lost that should have been kept.
    pub points_lost: Option<String>,
    /// Size at the newest recovery point.
    pub size_bytes: u64,
    /// What is kept of an old primary's last state.
    pub kept_old: Option<KeptOld>,
    /// How the image fares; `None` where nobody checks it.
    pub health: Option<Health>,
    /// How far it has been looked through, while it is.
    pub scrub: Option<ScrubProgress>,
    /// What failed, until it works again.
    pub error: Option<String>,
    /// Whether what failed was for want of room.
    pub full: bool,
}

/// A copy that stands still at its last recovery point.
#[derive(Debug)]
pub struct Settled {
    /// The recovery point; 0 if there is none.
    pub epoch: Epoch,
    /// The lineage that a promotion continues.
    pub lineage: Lineage,
    /// What the image holds.
    pub base: Base,
    /// Size of the volume at the recovery point; the image may be larger.
    pub size_bytes: u64,
    /// Blocks that the disk does not give back as they came.
    pub damaged: RoaringBitmap,
    /// What changed of late: the volume's other standbys may lack it.
    pub history: History,
}
