//! How much is written ahead on a connection, as the path changes.

use super::settings::{Losses, Settings};
use std::time::Duration;

/// How often the window follows the path.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);

/// After a loss the window stays wide for so many intervals.
const WIDE_INTERVALS: u32 = 20;

/// What must be remembered from one interval to the next.
#[derive(Debug, Default)]
pub(super) struct SendWindow {
    lost_packets: u64,
    wide_for: u32,
    current: u64,
}

impl SendWindow {
    /// The new window, if it changes.
    pub(super) fn follow(&mut self, settings: &Settings, path: &quinn::PathStats) -> Option<u64> {
        if path.lost_packets != self.lost_packets {
            self.lost_packets = path.lost_packets;
            self.wide_for = WIDE_INTERVALS;
        }
        let losses = if self.wide_for > 0 { Losses::Some } else { Losses::None };
        self.wide_for = self.wide_for.saturating_sub(1);
        let wanted = settings.send_window(path.cwnd, losses);
        (wanted != std::mem::replace(&mut self.current, wanted)).then_some(wanted)
    }
}
