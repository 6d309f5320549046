//! What the volume holds at each cut: what a standby may show.
//!
//! After a cut for a standby, a write of the next epoch never finishes before an earlier one's over the same block. So the volume at a cut is the
//! volume at the cut before with the writes since then applied as they finished, whatever writes of the next epoch are done by the time it freezes.

use super::guest::Content;
use crate::history::Cut;
use crate::storage::View;
use replicator_engine::tracker::{Epoch, Tracker};
use std::collections::BTreeMap;

/// See the module's documentation.
pub(super) struct Cuts {
    /// Writes in the order in which they finished, until an epoch that is not before theirs has closed.
    finished: Vec<(Epoch, Content)>,
    /// The volume when the last of them closed.
    at_cut: View,
    /// Epochs that were cut for a standby, and the size of the volume then, until they are looked at after they closed.
    cut: BTreeMap<Epoch, u64>,
    /// The volume at those that did, until they freeze.
    closed: BTreeMap<Epoch, Cut>,
}

impl Cuts {
    /// Nobody has written yet.
    pub fn new(now: View) -> Self {
        let (finished, cut, closed) = Default::default();
        Self { finished, at_cut: now, cut, closed }
    }

    /// A write of this epoch is done, or failed in part.
    pub fn finish(&mut self, epoch: Epoch, content: Content) {
        self.finished.push((epoch, content));
    }

    /// An epoch was cut for a standby.
    pub fn cut(&mut self, epoch: Epoch, size_bytes: u64) {
        self.cut.insert(epoch, size_bytes);
    }

    /// It was, but is not frozen any more: perhaps writes of the next one have overtaken its own.
    pub fn forget(&mut self, epoch: Epoch) {
        self.cut.remove(&epoch);
        self.closed.remove(&epoch);
    }

    /// What that epoch froze with: it has closed.
    pub fn freeze(&mut self, epoch: Epoch, tracker: &Tracker) -> Cut {
        while let Some((next, size_bytes)) = self.cut.pop_first() {
            if !tracker.has_closed(next) {
                self.cut.insert(next, size_bytes);
                break;
            }
            for (_, content) in self.finished.extract_if(.., |(of, _)| *of <= next) {
                content.apply(&mut self.at_cut);
            }
            self.closed.insert(next, Cut { size_bytes, view: self.at_cut.clone() });
        }
        self.closed.remove(&epoch).expect("it was cut, and has closed")
    }
}
