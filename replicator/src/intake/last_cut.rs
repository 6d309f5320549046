//! The last cut before the disk goes elsewhere: no other standby is given a later epoch than the one that takes over.
//!
//! A standby that gets the same content a little later, under a higher number, would have a recovery point that the new primary has not.

use super::Intake;
use replicator_engine::tracker::LaneId;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Of [`Reserved`]: nobody is kept from cutting.
const NOBODY: usize = usize::MAX;

/// The lane that may be cut, if the others may not.
pub(super) struct Reserved(AtomicUsize);

impl Default for Reserved {
    fn default() -> Self {
        Self(AtomicUsize::new(NOBODY))
    }
}

impl Reserved {
    /// Whether it stands in the way of a cut for this lane.
    pub fn is_from(&self, lane: LaneId) -> bool {
        ![NOBODY, lane.index()].contains(&self.0.load(SeqCst))
    }
}

/// Until this is dropped, epochs are cut for one standby alone.
pub struct LastCut(Arc<Intake>);

impl LastCut {
    /// From now on they are; every cut that was made for another one has a lower number than those that follow.
    pub fn reserve(intake: Arc<Intake>, lane: LaneId) -> Self {
        {
            let _cutting = intake.cutting.lock().expect("no panic under this lock");
            intake.reserved.0.store(lane.index(), SeqCst);
        }
        Self(intake)
    }
}

impl Drop for LastCut {
    fn drop(&mut self) {
        self.0.reserved.0.store(NOBODY, SeqCst);
    }
}

impl Intake {
    /// Whether [`Self::cut`] would cut now.
    pub fn may_cut(&self, lane: LaneId) -> bool {
        self.tracker.is_closed() && !self.reserved.is_from(lane)
    }
}
