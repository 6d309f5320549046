//! A cut of this volume together with others, while no write joins an epoch of any of them.

use super::{Cutting, Intake, Side};
use replicator_engine::block::Run;
use replicator_engine::tracker::{Begun, Epoch, LaneId, MAX_LANES};
use std::sync::MutexGuard;

/// A write that meets a hold looks so often before it lets others run.
const SPINS: u32 = 100;

/// A volume that is about to be cut. Dropped, its writes go on.
pub struct PreparedCut<'a> {
    side: &'a Side,
    lane: LaneId,
    cutting: MutexGuard<'a, [Cutting; MAX_LANES]>,
}

impl Intake {
    /// Gets everything out of the way of a cut that might take time; `None` if something does take time just now. The epoch before has
    /// shipped.
    pub fn try_prepare_cut(&self, lane: LaneId) -> Option<PreparedCut<'_>> {
        let (side, cutting) = (self.side(lane), self.cutting.try_lock().ok()?);
        // A standby that the volume had until just now may have left an epoch that is closing.
        side.tracker.is_closed().then(|| {
            side.kept.clear();
            PreparedCut { side, lane, cutting }
        })
    }

    /// Joins the open epoch, once it is not held.
    pub(super) fn begin_write(&self, run: Run) -> Begun {
        let mut spins = 0;
        loop {
            if let Some(begun) = self.tracker.try_begin_write(run) {
                return begun;
            }
            spins += 1;
            if spins % SPINS == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

impl PreparedCut<'_> {
    /// No write joins an epoch from now on, until this is dropped.
    pub fn hold(&self) {
        self.side.tracker.hold();
    }

    /// Closes the open epoch and returns it.
    pub fn cut(&mut self) -> Epoch {
        self.cutting[self.lane.index()] = Cutting::Closing;
        self.side.tracker.cut()
    }
}

impl Drop for PreparedCut<'_> {
    fn drop(&mut self) {
        self.side.tracker.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replicator_engine::tracker::Tracker;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    /// A client writes to one volume, waits, writes to the other, waits, and so on, while both are cut again and again.
    #[test]
    fn no_cut_has_a_write_without_the_acknowledged_one_before_it() {
        let trackers = [Tracker::new(1), Tracker::new(40)];
        let (stop, mut cuts) = (AtomicBool::new(false), Vec::new());
        let write = |tracker: &Tracker| {
            let (Begun::Clear(write) | Begun::Frozen(write)) = tracker.begin_write(Run { start: 0, len: 1 });
            let epoch = write.epoch();
            tracker.finish_write(write);
            epoch
        };
        let written: Vec<Vec<[Epoch; 2]>> = std::thread::scope(|scope| {
            let client = || {
                let mut epochs = Vec::new();
                while !stop.load(SeqCst) && epochs.len() < 2_000_000 {
                    epochs.push([write(&trackers[0]), write(&trackers[1])]);
                }
                epochs
            };
            let clients = [scope.spawn(client), scope.spawn(client)];
            for _ in 0..2_000 {
                trackers.iter().for_each(Tracker::hold);
                cuts.push(trackers.each_ref().map(Tracker::cut));
                trackers.iter().for_each(Tracker::release);
                for tracker in &trackers {
                    while !tracker.is_closed() {
                        std::hint::spin_loop();
                    }
                    tracker.thaw();
                }
            }
            stop.store(true, SeqCst);
            clients.map(|client| client.join().unwrap()).into()
        });
        for epochs in written {
            let order: Vec<(usize, Epoch)> = epochs.iter().flat_map(|[first, second]| [(0, *first), (1, *second)]).collect();
            for cut in &cuts {
                // What is in a cut is a beginning of what was written, in order.
                let from = order.partition_point(|(volume, epoch)| *epoch <= cut[*volume]);
                assert!(order[from..].iter().take(64).all(|(volume, epoch)| *epoch > cut[*volume]), "{cut:?}");
            }
        }
    }
}
