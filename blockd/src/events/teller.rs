//! Tells of events: the log, a metric, and the runner if there is one. Nothing waits for it.

use super::runner::MAX_LINE_BYTES;
use super::{Event, Kind};
use std::io::{self, Write};
use std::process::ChildStdin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Events that wait for the program: more are left out.
const MAX_WAITING: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub struct Teller {
    queue: Option<SyncSender<Vec<u8>>>,
    counts: [AtomicU64; Kind::ALL.len()],
}

impl Teller {
    /// One that writes to the runner, if there is one.
    pub fn start(runner: Option<ChildStdin>) -> io::Result<Self> {
        let queue = runner.map(|pipe| {
            let (queue, lines) = sync_channel(MAX_WAITING);
            std::thread::Builder::new().name("tern-events".into()).spawn(move || pass_on(&lines, pipe)).map(|_| queue)
        });
        Ok(Self { queue: queue.transpose()?, counts: Default::default() })
    }

    /// How often each kind has happened since the daemon began.
    pub fn counts(&self) -> impl Iterator<Item = (Kind, u64)> {
        Kind::ALL.into_iter().zip(self.counts.iter().map(|count| count.load(Relaxed)))
    }

    /// Something happened.
    pub fn tell(&self, event: &Event) {
        tracing::warn!(volume = event.volume, event = event.event.as_str(), message = event.message, "event");
        let index = Kind::ALL.iter().position(|kind| *kind == event.event);
        index.and_then(|index| self.counts.get(index)).iter().for_each(|count| _ = count.fetch_add(1, Relaxed));
        let Some(queue) = &self.queue else { return };
        let mut line = serde_json::to_vec(event).unwrap_or_default();
        line.push(b'\n');
        if line.len() as u64 > MAX_LINE_BYTES || queue.try_send(line).is_err() {
            tracing::warn!(
                volume = event.volume,
                event = event.event.as_str(),
                "the program of on_event is not told of this one: it does not keep up"
            );
        }
    }
}

fn pass_on(lines: &Receiver<Vec<u8>>, mut pipe: ChildStdin) {
    while let Ok(line) = lines.recv() {
        if let Err(error) = pipe.write_all(&line) {
            tracing::error!(%error, "on_event: nobody runs its program any more: restart blockd");
            return;
        }
    }
}
