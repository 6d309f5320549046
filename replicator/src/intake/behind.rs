//! Who knows what a volume's standbys do not have: the threads that replicate it, if there are any.

use replicator_engine::block::Run;
use replicator_engine::tracker::{LaneId, MAX_LANES};
use roaring::RoaringBitmap;
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, PoisonError};

/// Asks for the blocks of a run that may differ from the standby.
pub type AskBehind = Box<dyn Fn(Run, SyncSender<RoaringBitmap>) + Send>;

/// See the module's documentation.
#[derive(Default)]
pub struct Behind(Mutex<[Option<AskBehind>; MAX_LANES]>);

impl Behind {
    /// From now on somebody knows of this standby. An answer that never comes, because what was asked is gone, is none.
    pub fn set(&self, lane: LaneId, ask: AskBehind) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[lane.index()] = Some(ask);
    }

    /// The blocks of `run` that may differ from one of the standbys; without a standby there are none. Waits for the threads that know.
    pub fn within(&self, run: Run) -> RoaringBitmap {
        let answers: Vec<_> = {
            let asks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let ask = |ask: &AskBehind| {
                let (reply, answer) = std::sync::mpsc::sync_channel(1);
                ask(run, reply);
                answer
            };
            asks.iter().flatten().map(ask).collect()
        };
        answers.into_iter().fold(RoaringBitmap::new(), |all, answer| all | answer.recv().unwrap_or_default())
    }
}
