//! A guest that writes and flushes.

use super::Primary;
use crate::history::History;
use crate::storage::{Access, NOISE, SECTORS, Stamps, View};
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::disk::BlockDevice;
use replicator::intake::Intaken;
use replicator_engine::acknowledgement::Kind;
use replicator_engine::block::{BlockNumber, Run};

/// Requests that a guest has under way at most while it waits for a standby.
const QUEUE_DEPTH: usize = 32;

/// Stamps that a sector gets again and again begin here.
const AGAIN: u64 = 1 << 40;

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
        if !self.is_open || self.waiting() >= QUEUE_DEPTH {
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
        let kind = rng.random_range(0..6);
        let stamps = (0..count).map(|sector| match kind {
            0 => 0,
            1 => *next_stamp + sector + NOISE,
            // What may have been there before.
            2 => AGAIN + first_sector + sector,
            _ => *next_stamp + sector,
        });
        let content = Content { first_sector, stamps: stamps.collect() };
        *next_stamp += count;
        self.admit(content);
    }

    /// It begins to write a whole block, if it may.
    pub fn write_block(&mut self, block: BlockNumber, content: &Stamps) {
        if self.is_open && self.waiting() < QUEUE_DEPTH {
            self.admit(Content { first_sector: u64::from(block) * SECTORS as u64, stamps: content.to_vec() });
        }
    }

    fn admit(&mut self, content: Content) {
        let run = Run::covering(content.first_sector * 512, content.stamps.len() as u64 * 512).expect("a short run");
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
        let epoch = write.epoch();
        self.cuts.finish(epoch, content);
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
