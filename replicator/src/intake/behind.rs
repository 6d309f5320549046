//! Who knows what a volume's standby does not have: the thread that replicates it, if there is one.

use replicator_engine::block::Run;
use roaring::RoaringBitmap;
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, PoisonError};

/// Asks for the blocks of a run that may differ from the standby.
pub type AskBehind = Box<dyn Fn(Run, SyncSender<RoaringBitmap>) + Send>;

/// See the module's documentation.
#[derive(Default)]
pub struct Behind(Mutex<Option<AskBehind>>);

impl Behind {
    /// From now on somebody knows. An answer that never comes, because what was asked is gone, is none.
    pub fn set(&self, ask: AskBehind) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ask);
    }

    /// The blocks of `run` that may differ from the standby; without a standby there are none. Waits for the thread that knows.
    pub fn within(&self, run: Run) -> RoaringBitmap {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(ask) => ask(run, reply),
            None => return RoaringBitmap::new(),
        }
        answer.recv().unwrap_or_default()
    }
}
