//! Between the guest's requests, which the real [`Held`](replicator::intake::Held) has, and the real acknowledgement policy of each standby,
//! as the standby's thread has it.

use super::replica::{self, Replica};
use super::{Primary, Scene};
use crate::plant::Plant;
use replicator::catalogue::Catalogue;
use replicator::intake::Release;
use replicator::primary::memory;
use replicator_engine::acknowledgement::{Done, Kind, Promise, Step, View};
use replicator_engine::sender::Phase;
use replicator_engine::tracker::Epoch;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A request that is done here. The guest is told once the standbys have it, or when that is not promised.
#[derive(Clone, Copy, Debug)]
struct Request {
    done: Done,
    /// The newest epoch that has something of what it covers.
    covers: Epoch,
}

/// Requests that are let go.
pub(super) struct Telling {
    /// Time 0.
    began: Instant,
    told: Arc<Mutex<Vec<Request>>>,
}

impl Telling {
    pub fn new() -> Self {
        Self { began: Instant::now(), told: Arc::default() }
    }

    fn release(&self, request: Request) -> Release {
        let told = self.told.clone();
        Box::new(move |result: io::Result<()>| {
            if result.is_ok() {
                told.lock().unwrap().push(request);
            }
        })
    }
}

impl Primary {
    /// A request is done here.
    pub(super) fn ask(&mut self, kind: Kind, epoch: Epoch, covers: Epoch, scene: &mut Scene<'_>) {
        let (request, telling) = (Request { done: Done { kind, epoch }, covers }, &self.telling);
        let now = telling.began + Duration::from_millis(scene.now_ms);
        if !self.intake.held().asks_at(now, Some(request.done), 0, || telling.release(request)) {
            telling.told.lock().unwrap().push(request);
        }
        self.tell(scene);
    }

    fn tell(&self, scene: &mut Scene<'_>) {
        for request in std::mem::take(&mut *self.telling.told.lock().unwrap()) {
            match request.done.kind {
                Kind::Write => scene.history.written(scene.site, self.lineage.current().id, request.covers),
                Kind::Durable => scene.history.flushed(self.lineage.current().id, request.covers),
            }
        }
    }

    /// As the thread of a standby does whenever it wakes up.
    pub(super) fn acknowledge(&mut self, at: usize, scene: &mut Scene<'_>) {
        let is_planted = self.storage.faults.plant() == Some(Plant::AcknowledgeBeforeArrival);
        let Replica { lane, tracker, sender, policy, peer, .. } = &mut self.replicas[at];
        if policy.is_idle() {
            return;
        }
        let (held, waiting) = (self.intake.held(), self.intake.held().look(*lane));
        let since_ms = |since: Instant| since.duration_since(self.telling.began).as_millis() as u64;
        let attached = *sender.phase() == Phase::Online;
        let mut view = View {
            now_ms: scene.now_ms,
            attached,
            converged: attached && sender.safe().is_some() && sender.is_converged(tracker, scene.now_ms),
            safe: sender.safe(),
            open: tracker.open_epoch(),
            waiting_since_ms: waiting.since.map(since_ms),
        };
        while let Some(step) = policy.poll(&view) {
            match step {
                Step::Enforce(promise) => {
                    held.enforce(*lane, promise);
                    view.open = tracker.open_epoch();
                    policy.handle_enforced(promise, view.open);
                }
                Step::Record(promise) => {
                    let key = replica::promise_key(*peer);
                    if memory::store_promise(&*self.storage.catalogue, &key, promise).is_err() {
                        break;
                    }
                    policy.handle_recorded(promise);
                }
            }
        }
        held.let_go(*lane, if is_planted { Some(view.open) } else { view.safe });
        // Epochs before that one are on their way to this standby, or there.
        let first_open = tracker.first_open();
        if policy.wants_cut(first_open) || waiting.newest.is_some_and(|newest| newest >= first_open) {
            sender.request_cut();
        }
        self.tell(scene);
    }
}

/// The promise that is recorded for a standby.
pub fn recorded(catalogue: &dyn Catalogue, peer: replica::Peer) -> io::Result<Promise> {
    memory::load_promise(catalogue, &replica::promise_key(peer))
}
