//! A guest that writes and flushes, and what it is told.
//!
//! A write of a later epoch never finishes before an earlier one's over the same block, so the volume at a cut is the volume at the cut
//! before with the epoch's writes applied as they finished, whatever writes of the next epoch are done by the time it freezes.

use super::Primary;
use super::acknowledging::Request;
use crate::history::History;
use crate::plant::Plant;
use crate::storage::{Access, NOISE, SECTORS, Stamps, View};
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::disk::BlockDevice;
use replicator::intake::Intaken;
use replicator_engine::acknowledgement::{Done, Kind, View as Seen};
use replicator_engine::block::{BlockNumber, Run};
use replicator_engine::sender::Phase;
use replicator_engine::tracker::Epoch;

/// Requests that a guest has under way at most while it waits for a standby.
const QUEUE_DEPTH: usize = 32;

/// Where and when something happens, and who keeps the books.
pub struct Scene<'a> {
    pub site: usize,
    pub now_ms: u64,
    /// By the clock on the wall.
    pub unix_ms: u64,
    pub history: &'a mut History,
}

/// What a guest writes, from this sector on.
#[derive(Clone)]
pub(super) struct Content {
    first_sector: u64,
    stamps: Vec<u64>,
}

impl Primary {
    /// The guest begins to write one to three blocks, or parts of them.
    pub fn begin_write(&mut self, rng: &mut StdRng, next_stamp: &mut u64) {
        if !self.is_open || self.acknowledging.waiting() >= QUEUE_DEPTH {
            return;
        }
        let sectors = self.storage.image.size_bytes() / 512;
        // Few blocks are hot: what is being shipped gets overwritten.
        let hot = 24 * SECTORS as u64;
        let (from, to) = match rng.random_range(0..10) {
            0..7 => (0, hot),
            7 => (sectors - hot, sectors),
            _ => (0, sectors),
        };
        let whole = rng.random_bool(0.7);
        let unit = if whole { SECTORS as u64 } else { 1 };
        let count = rng.random_range(1..=3) * unit;
        let first_sector = rng.random_range(from..=to - count) / unit * unit;
        let kind = rng.random_range(0..5);
        let stamps = (0..count).map(|sector| match kind {
            0 => 0,
            1 => *next_stamp + sector + NOISE,
            _ => *next_stamp + sector,
        });
        let content = Content { first_sector, stamps: stamps.collect() };
        *next_stamp += count;
        let run = Run::covering(first_sector * 512, count * 512).expect("a short run");
        match self.intake.admit(run) {
            Intaken::Ready(write) => self.in_flight.push((write, content)),
            Intaken::Parked(parked) => self.parked.push((parked, content)),
        }
    }

    /// The lane looks at what is parked, and the disk finishes one write.
    pub fn progress_writes(&mut self, scene: &mut Scene<'_>, rng: &mut StdRng) {
        let parked = std::mem::take(&mut self.parked);
        let is_logged = self.intake.log_all(parked.iter().map(|(parked, _)| parked)).is_ok();
        for (parked, content) in parked {
            match if is_logged { self.intake.keep_frozen(parked) } else { Err(parked) } {
                Ok(Ok(write)) => self.in_flight.push((write, content)),
                // An error to the guest: nothing was written.
                Ok(Err(_)) => {}
                Err(parked) => self.parked.push((parked, content)),
            }
        }
        if self.in_flight.is_empty() {
            return;
        }
        let (write, mut content) = self.in_flight.swap_remove(rng.random_range(0..self.in_flight.len()));
        let done = self.storage.faults.meet(Access::Write);
        if done.is_err() {
            content.stamps.truncate(self.storage.faults.part_of(content.stamps.len()));
        }
        self.storage.image.put(content.first_sector, &content.stamps);
        self.finished.entry(write.epoch()).or_default().push(content);
        let epoch = write.epoch();
        self.intake.tracker().finish_write(write);
        if done.is_ok() {
            self.newest_write = self.newest_write.max(epoch);
            self.ask(Kind::Write, epoch, epoch, scene);
        }
    }

    /// The guest flushes: what it was told is written becomes durable.
    pub fn flush(&mut self, scene: &mut Scene<'_>) {
        let (open, newest) = (self.intake.tracker().open_epoch(), self.newest_write);
        if self.storage.image.sync().is_ok() {
            self.ask(Kind::Durable, open, newest, scene);
        }
    }

    /// A request is done here.
    fn ask(&mut self, kind: Kind, epoch: Epoch, covers: Epoch, scene: &mut Scene<'_>) {
        let request = Request { done: Done { kind, epoch }, covers, since_ms: scene.now_ms };
        if let Some(request) = self.acknowledging.ask(request) {
            self.tell(request, scene);
        }
    }

    /// As the replica's thread does whenever it wakes up.
    pub(super) fn acknowledge(&mut self, scene: &mut Scene<'_>) {
        let (tracker, safe) = (self.intake.tracker(), self.sender.safe());
        let attached = *self.sender.phase() == Phase::Online;
        let seen = Seen {
            now_ms: scene.now_ms,
            attached,
            converged: attached && safe.is_some() && self.sender.is_converged(tracker, scene.now_ms),
            safe,
            open: tracker.open_epoch(),
            waiting_since_ms: self.acknowledging.waiting_since_ms(),
        };
        let is_planted = self.storage.faults.plant() == Some(Plant::AcknowledgeBeforeArrival);
        let arrived = if is_planted { Some(seen.open) } else { safe };
        let outcome = self.acknowledging.run(seen, arrived, &*self.storage.catalogue);
        outcome.told.into_iter().for_each(|request| self.tell(request, scene));
        if outcome.wants_cut {
            self.sender.request_cut();
        }
    }

    fn tell(&self, request: Request, scene: &mut Scene<'_>) {
        match request.done.kind {
            Kind::Write => scene.history.written(scene.site, self.generation(), request.covers),
            Kind::Durable => scene.history.flushed(self.generation(), request.covers),
        }
    }

    /// The process dies: of each write under way, some sectors are on the disk.
    pub fn die(self, rng: &mut StdRng) {
        for (_, content) in self.in_flight {
            let sectors = rng.random_range(0..=content.stamps.len());
            self.storage.image.put(content.first_sector, &content.stamps[..sectors]);
        }
    }
}

impl Content {
    pub(super) fn apply(&self, view: &mut View) {
        for (sector, stamp) in (self.first_sector as usize..).zip(&self.stamps) {
            let block = (sector / SECTORS) as BlockNumber;
            let mut content = view.get(&block).copied().unwrap_or_default();
            content[sector % SECTORS] = *stamp;
            if content == Stamps::default() {
                view.remove(&block)
            } else {
                view.insert(block, content)
            };
        }
    }
}
