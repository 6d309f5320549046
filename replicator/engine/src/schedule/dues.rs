//! Whether the standby has what was due.

use crate::tracker::Epoch;

/// Counts the cuts that were due, until the standby has one that was made after them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dues {
    /// Due, and in no recovery point.
    open: u32,
    /// The last epoch that was cut while some were, and how many.
    cut: Option<(Epoch, u32)>,
}

impl Dues {
    /// A cut is due.
    pub fn handle_due(&mut self) {
        self.open = self.open.saturating_add(1);
    }

    /// An epoch was cut: if it becomes a recovery point, nothing that was due before is open.
    pub fn handle_cut(&mut self, epoch: Epoch) {
        if self.open > 0 {
            self.cut = Some((epoch, self.open));
        }
    }

    /// The standby has every epoch up to this one.
    pub fn handle_committed(&mut self, epoch: Epoch) {
        if let Some((_, served)) = self.cut.take_if(|(cut, _)| *cut <= epoch) {
            self.open = self.open.saturating_sub(served);
        }
    }

    /// Whether each cut but the last one is there: one may be on its way until the next one is due.
    pub fn are_kept(&self) -> bool {
        self.open <= 1
    }

    /// Whether all are there.
    pub fn are_served(&self) -> bool {
        self.open == 0
    }
}
