//! How it goes: the age of what the standby lacks, and what a forecast is made from.

use super::{Cut, Phase, Sender};
use crate::block::BLOCK_BYTES;
use crate::forecast::Outlook;
use crate::tracker::Tracker;
use roaring::RoaringBitmap;

impl Sender {
    /// Time of the oldest write that is not in an acknowledged epoch.
    fn oldest_unacknowledged_ms(&self, tracker: &Tracker) -> Option<u64> {
        let cut = match &self.cut {
            Cut::None => None,
            Cut::Closing(..) => tracker.frozen_oldest_ms(),
            Cut::Frozen(frozen) => frozen.oldest_ms,
        };
        self.pending.iter().filter_map(|pending| pending.oldest_ms).chain(cut).chain(tracker.open_oldest_ms()).min()
    }

    /// Age of the oldest write that is in no recovery point; `None` if there is none to go back to, or if nobody knows.
    pub fn rpo_ms(&self, tracker: &Tracker, now_ms: u64) -> Option<u64> {
        let told = self.has_point && !self.of_unknown_age;
        told.then(|| self.oldest_unacknowledged_ms(tracker).map_or(0, |oldest| now_ms.saturating_sub(oldest)))
    }

    /// What is marked now was written at some time before.
    pub fn forget_ages(&mut self) {
        self.of_unknown_age = true;
    }

    /// What a handover would be up against now; clients have written so much since the volume was made. To be asked for often: it is from this
    /// that is seen how fast content changes. `None` while nothing can be said: what the standby has is not known yet.
    pub fn outlook(&mut self, tracker: &Tracker, clients_bytes: u64, round_trip_ms: u64, now_ms: u64) -> Option<Outlook> {
        let asked: u64 = self.asked.values().map(RoaringBitmap::len).sum();
        let backlog_bytes = (self.backlog(tracker).unsent_blocks + asked) * BLOCK_BYTES as u64;
        self.gauge.handle_backlog(backlog_bytes, clients_bytes, now_ms);
        if self.phase != Phase::Online || self.mark_base.is_some() {
            return None;
        }
        let cut_bytes = (!self.may_freeze_all()).then(|| self.pace.cut_bytes(&self.settings));
        Some(Outlook { measured: self.gauge.measured(now_ms), backlog_bytes, cut_bytes, round_trip_ms })
    }
}
