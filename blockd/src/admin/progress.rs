//! From an operation to whoever watches it: only the latest progress is kept, so a slow client costs nothing.

use blockd_api::Progress;
use tokio::sync::watch;

/// Where an operation reports how far it is. Reporting never waits and may be done as often as one likes.
#[derive(Clone, Debug)]
pub struct ProgressSink(watch::Sender<Option<Progress>>);

impl ProgressSink {
    /// A sink and the end to watch.
    pub fn new() -> (Self, watch::Receiver<Option<Progress>>) {
        let (sender, receiver) = watch::channel(None);
        (Self(sender), receiver)
    }

    /// A sink that nobody watches.
    pub fn nowhere() -> Self {
        Self::new().0
    }

    /// Says how far the operation is. Within a phase a lower `done` than before is ignored: progress does not go backwards.
    pub fn report(&self, progress: Progress) {
        self.0.send_if_modified(|latest| {
            let backwards = latest.as_ref().is_some_and(|last| last.phase == progress.phase && last.done > progress.done);
            let modified = !backwards && latest.as_ref() != Some(&progress);
            if modified {
                *latest = Some(progress);
            }
            modified
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_within_a_phase_never_falls_and_a_new_phase_begins_low() {
        let (sink, receiver) = ProgressSink::new();
        for (phase, done) in [("a", 5), ("a", 3)] {
            sink.report(Progress::bytes(phase, done, None));
            assert_eq!(receiver.borrow().as_ref().map(|progress| progress.done), Some(5));
        }
        sink.report(Progress::bytes("b", 0, None));
        assert_eq!(receiver.borrow().as_ref().map(|progress| progress.done), Some(0));
    }
}
