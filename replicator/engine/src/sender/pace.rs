//! How fast the link takes data, and what that allows: the size of a message, the time of the next cut, whether a backlog is small
//! enough to be frozen.

use super::Pending;
use crate::block::BLOCK_BYTES;
use crate::generation::Id;
use crate::wire::MAX_CONTENT_BLOCKS;

/// When epochs close.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cuts {
    /// As the RPO has it, or when asked for; what is too large to be frozen is shipped before.
    #[default]
    InTime,
    /// Only when asked for, and then at once: what is unsent is frozen, whatever the amount.
    Asked,
}

/// What the operator and the daemon set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// When epochs close.
    pub cuts: Cuts,
    /// At most this much acknowledged data, as time, is to be lost in a disaster.
    pub rpo_ms: u64,
    /// Bytes handed to the network and not yet taken by it.
    pub window_bytes: u64,
    /// A backlog up to this is frozen at once, however slow the link.
    pub small_cut_bytes: u64,
    /// A backlog above this is never frozen: its old content would not find room.
    pub large_cut_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { cuts: Cuts::InTime, rpo_ms: 5_000, window_bytes: 4 << 20, small_cut_bytes: 1 << 20, large_cut_bytes: 1 << 30 }
    }
}

/// Cuts given up in a row after which the epoch is shipped without freezing again.
const MAX_OVERFLOWS: u32 = 2;
/// Without a recovery point for this many times the RPO, a backlog that does not shrink is frozen as it is.
const OVERDUE_RPOS: u64 = 10;
const OVERDUE_MIN_MS: u64 = 30_000;
/// A message should not keep the link busy for longer than this.
const MESSAGE_MS: u64 = 20;
const RATE_WINDOW_MS: u64 = 500;
/// A pause from here on is for want of work.
const IDLE_MS: u64 = 20;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    replica: Option<Id>,
    in_window_bytes: u64,
    last_cut_ms: u64,
    last_commit_ms: u64,
    overflows: u32,
    /// Bytes per second that the network took while it had work; 0 until measured.
    rate: u64,
    window_began_ms: u64,
    window_bytes: u64,
    last_written_ms: u64,
}

impl Pace {
    /// When the last epoch was acknowledged.
    pub fn last_commit_ms(&self) -> u64 {
        self.last_commit_ms
    }

    pub(super) fn replica(&self) -> Option<Id> {
        self.replica
    }

    pub(super) fn set_replica(&mut self, replica: Id) {
        self.replica = Some(replica);
    }

    pub(super) fn handle_connected(&mut self, now_ms: u64) {
        self.in_window_bytes = 0;
        self.last_commit_ms = now_ms;
        self.window_began_ms = now_ms;
        self.last_written_ms = now_ms;
        self.window_bytes = 0;
    }

    pub(super) fn handle_disconnected(&mut self) {
        self.in_window_bytes = 0;
    }

    pub(super) fn handle_enqueued(&mut self, len_bytes: u64, now_ms: u64) {
        if self.in_window_bytes == 0 {
            // Time without work says nothing about the link; the short gaps of reading and encoding belong to the rate.
            let gap_ms = now_ms.saturating_sub(self.last_written_ms.max(self.window_began_ms));
            if gap_ms > IDLE_MS {
                self.window_began_ms += gap_ms;
            }
        }
        self.in_window_bytes += len_bytes;
    }

    pub(super) fn handle_written(&mut self, len_bytes: u64, now_ms: u64) {
        self.in_window_bytes = self.in_window_bytes.saturating_sub(len_bytes);
        self.window_bytes += len_bytes;
        self.last_written_ms = now_ms;
        let elapsed_ms = now_ms.saturating_sub(self.window_began_ms);
        if elapsed_ms >= RATE_WINDOW_MS {
            let seen = self.window_bytes * 1000 / elapsed_ms;
            self.rate = if self.rate == 0 { seen } else { (self.rate * 3 + seen) / 4 };
            self.window_began_ms = now_ms;
            self.window_bytes = 0;
        }
    }

    pub(super) fn handle_cut(&mut self, now_ms: u64) {
        self.last_cut_ms = now_ms;
    }

    pub(super) fn handle_committed(&mut self, _epoch: &Pending, now_ms: u64) {
        self.last_commit_ms = now_ms;
        self.overflows = 0;
    }

    pub(super) fn handle_overflow(&mut self) {
        self.overflows += 1;
    }

    pub(super) fn window_is_full(&self, settings: &Settings) -> bool {
        self.in_window_bytes >= settings.window_bytes
    }

    /// Blocks that a message should carry.
    pub(super) fn chunk_blocks(&self, _settings: &Settings) -> u32 {
        let blocks = self.rate * MESSAGE_MS / 1000 / BLOCK_BYTES as u64;
        (blocks.min(u64::from(MAX_CONTENT_BLOCKS)) as u32).max(64)
    }

    /// When the next cut is due: the epoch waits for a quarter of the RPO, and travels and commits in less than another half.
    pub(super) fn next_cut_ms(&self, settings: &Settings) -> u64 {
        self.last_cut_ms + settings.rpo_ms / 4
    }

    /// Whether so many cuts were given up that the backlog is to be shipped before the next one.
    pub(super) fn gave_up_often(&self) -> bool {
        self.overflows >= MAX_OVERFLOWS
    }

    /// Whether a backlog of `dirty` blocks may be frozen: it is small, or leaves in time, or cannot be awaited any longer.
    pub(super) fn fits_a_cut(&self, settings: &Settings, dirty: u64, now_ms: u64) -> bool {
        let bytes = dirty * BLOCK_BYTES as u64;
        let overdue_ms = (settings.rpo_ms * OVERDUE_RPOS).max(OVERDUE_MIN_MS);
        let overdue = now_ms.saturating_sub(self.last_commit_ms) >= overdue_ms && !self.gave_up_often();
        bytes <= self.cut_bytes(settings) || (overdue && bytes <= settings.large_cut_bytes)
    }

    /// A backlog up to this may be frozen: it is small, or leaves in time.
    pub(super) fn cut_bytes(&self, settings: &Settings) -> u64 {
        let in_time = u128::from(self.rate) * u128::from(settings.rpo_ms) / 4 / 1000;
        settings.small_cut_bytes.max(u64::try_from(in_time).unwrap_or(u64::MAX))
    }
}
