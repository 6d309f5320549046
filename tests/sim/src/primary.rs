//! The primary's side: the real intake and sender, what the replica's thread does around them, and a guest that writes.
//!
//! A write of a later epoch never finishes before an earlier one's over the same block, so the volume at a cut is the volume at the cut
//! before with the epoch's writes applied as they finished, whatever writes of the next epoch are done by the time it freezes.

use crate::history::{Cut, History};
use crate::plant::Plant;
use crate::standby::VOLUME;
use crate::storage::{Access, NOISE, SECTORS, Stamps, Storage, View};
use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::codec::Encoder;
use replicator::disk::BlockDevice;
use replicator::intake::{ActivityLog, Intake, Intaken, KeptLimits, Parked, extent_blocks};
use replicator::primary::memory::{self, EpochNumbers};
use replicator::primary::read;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run, block_count};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::sender::{Action, Known, Phase, Sender, Settings};
use replicator_engine::tracker::{Epoch, Write};
use replicator_engine::wire::{Against, Compare, Envelope, Message, Refused};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

const ACTIVITY_KEY: &[u8] = b"al/";

/// What a guest writes, from this sector on.
#[derive(Clone)]
struct Content {
    first_sector: u64,
    stamps: Vec<u64>,
}

/// Why a primary ends its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The standby will not have it.
    Refused,
    /// The standby breaks the protocol, in this way.
    Protocol(&'static str),
    /// Its own disk failed.
    Disk,
}

/// See the module's documentation.
pub struct Primary {
    storage: Storage,
    intake: Arc<Intake>,
    sender: Sender,
    encoder: Encoder,
    epochs: EpochNumbers,
    stored: Option<Known>,
    parked: Vec<(Parked, Content)>,
    in_flight: Vec<(Write, Content)>,
    /// Writes that finished, by epoch, until the epoch is frozen.
    finished: BTreeMap<Epoch, Vec<Content>>,
    /// The volume at the last cut.
    at_cut: View,
    /// The size that the sender knows of: the volume may have grown since.
    told_bytes: u64,
    /// Whether the guest's requests are taken.
    pub is_open: bool,
}

/// The key of what the standby is known to have.
pub fn known_key() -> Vec<u8> {
    memory::known_key(VOLUME, "SITE")
}

/// The activity log as it is stored.
pub fn activity_log(storage: &Storage) -> io::Result<ActivityLog> {
    ActivityLog::open(storage.catalogue.clone(), ACTIVITY_KEY.to_vec())
}

/// An intake that nobody writes through yet.
pub fn intake(storage: &Storage) -> io::Result<Intake> {
    let first = EpochNumbers::first_unused(&*storage.catalogue, VOLUME)?;
    // Little memory and no spill: overflow is part of the simulation.
    let limits = KeptLimits { memory_bytes: 8 * BLOCK_BYTES as u64, spill_bytes: 0, spill_dir: "/".into() };
    Ok(Intake::new(first, storage.image.clone(), activity_log(storage)?, limits))
}

impl Primary {
    /// Goes on as primary: after a clean stop with what the standby lacks, after a crash with what may differ.
    pub fn resume(storage: &Storage, lineage: Lineage) -> io::Result<Self> {
        let intake = intake(storage)?;
        let blocks = block_count(storage.image.size_bytes()) as BlockNumber;
        intake.start_logging();
        let exact = memory::take_changed(&*storage.catalogue, VOLUME)?;
        let compare_first = match &exact {
            Some(_) => RoaringBitmap::new(),
            None => intake.log().hot().iter().flat_map(|extent| extent_blocks(extent).blocks()).filter(|block| *block < blocks).collect(),
        };
        intake.tracker().mark(exact.as_ref().unwrap_or(&compare_first), Some(1));
        let known = memory::load_known(&*storage.catalogue, &known_key())?;
        Self::start(storage, lineage, intake, known, compare_first)
    }

    /// Starts; everything that changed since `known` is marked in the intake.
    pub fn start(
        storage: &Storage,
        lineage: Lineage,
        intake: Intake,
        known: Option<Known>,
        compare_first: RoaringBitmap,
    ) -> io::Result<Self> {
        let settings = Settings { rpo_ms: 400, window_bytes: 64 << 10, small_cut_bytes: 16 * BLOCK_BYTES as u64, large_cut_bytes: 1 << 30 };
        let size_bytes = storage.image.size_bytes();
        Ok(Self {
            sender: Sender::new(settings, VOLUME, size_bytes, lineage, known, compare_first),
            epochs: EpochNumbers::open(storage.catalogue.clone(), VOLUME, intake.tracker().open_epoch())?,
            encoder: Encoder::new()?,
            stored: known,
            parked: Vec::new(),
            in_flight: Vec::new(),
            finished: BTreeMap::new(),
            at_cut: storage.image.view(),
            told_bytes: size_bytes,
            is_open: true,
            intake: Arc::new(intake),
            storage: storage.clone(),
        })
    }

    /// The standby that it has now, as far as it knows.
    pub fn replica(&self) -> Option<Id> {
        self.sender.known().and_then(|known| known.replica)
    }

    /// What the standby acknowledged.
    pub fn known(&self) -> Option<Known> {
        self.sender.known()
    }

    /// The generation that it writes in.
    pub fn generation(&self) -> Id {
        self.sender.lineage().current().id
    }

    /// Of the primary.
    pub fn lineage(&self) -> &Lineage {
        self.sender.lineage()
    }

    /// Why the standby will not have it.
    pub fn refused(&self) -> Option<&Refused> {
        if let Phase::Refused(refused) = self.sender.phase() { Some(refused) } else { None }
    }

    /// Whether the standby knows a later generation.
    pub fn is_superseded(&self) -> bool {
        self.sender.is_superseded()
    }

    /// Tells the sender how large the volume is.
    pub fn tell_size(&mut self) {
        self.told_bytes = self.storage.image.size_bytes();
        self.sender.handle_resized(self.told_bytes);
    }

    /// The guest begins to write one to three blocks, or parts of them.
    pub fn begin_write(&mut self, rng: &mut StdRng, next_stamp: &mut u64) {
        if !self.is_open {
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
    pub fn progress_writes(&mut self, site: usize, history: &mut History, rng: &mut StdRng) {
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
        if done.is_ok() {
            history.written(site, self.generation(), self.replica(), write.epoch());
        }
        self.finished.entry(write.epoch()).or_default().push(content);
        self.intake.tracker().finish_write(write);
    }

    /// The guest flushes: what it was told is written becomes durable.
    pub fn flush(&mut self, history: &mut History) {
        let epoch = self.finished.last_key_value().map(|(epoch, _)| *epoch);
        if self.storage.image.sync().is_ok()
            && let Some(epoch) = epoch
        {
            history.flushed(self.replica(), epoch);
        }
    }

    /// The process dies: of each write under way, some sectors are on the disk.
    pub fn die(self, rng: &mut StdRng) {
        for (_, content) in self.in_flight {
            let sectors = rng.random_range(0..=content.stamps.len());
            self.storage.image.put(content.first_sector, &content.stamps[..sectors]);
        }
    }

    /// Stops; says what the standby lacks.
    pub fn stop(self) -> (RoaringBitmap, Option<Known>) {
        let tracker = self.intake.tracker();
        let changed = self.sender.unacknowledged() | tracker.open().snapshot() | tracker.frozen().snapshot();
        (changed, self.sender.known())
    }

    /// Whether the guest's writes are all done.
    pub fn is_quiet(&self) -> bool {
        self.parked.is_empty() && self.in_flight.is_empty()
    }

    /// Whether this copy, which is attached, acknowledged everything.
    pub fn is_drained_to(&self, replica: Option<Id>) -> bool {
        let is_attached = *self.sender.phase() == Phase::Online && replica.is_some() && self.replica() == replica;
        is_attached && self.is_quiet() && self.sender.is_drained(self.intake.tracker())
    }

    /// A stream is there.
    pub fn connect(&mut self, now_ms: u64) {
        self.tell_size();
        self.sender.handle_connected(now_ms);
    }

    /// The stream broke.
    pub fn disconnect(&mut self) {
        self.sender.handle_disconnected(self.intake.tracker());
    }

    /// A message came. `Err` says that the stream ends.
    pub fn receive(&mut self, message: Message, now_ms: u64) -> Result<(), Ended> {
        self.sender.handle_message(self.intake.tracker(), message, now_ms).map_err(Ended::Protocol)?;
        memory::remember_known(&*self.storage.catalogue, &known_key(), &mut self.stored, self.sender.known()).map_err(|_| Ended::Disk)?;
        if matches!(self.sender.phase(), Phase::Refused(_)) { Err(Ended::Refused) } else { Ok(()) }
    }

    /// Lets extents cool whose content is at the standby, as the daemon does now and then.
    pub fn cool(&mut self) {
        if *self.sender.phase() != Phase::Online {
            return;
        }
        let is_durable = self.storage.faults.plant() == Some(Plant::CoolBeforeFlush) || self.storage.image.sync().is_ok();
        if is_durable {
            let suspects = self.sender.unacknowledged();
            let tracker = self.intake.tracker();
            let is_clean = |extent| {
                let run = extent_blocks(extent);
                !tracker.open().intersects(run) && !tracker.frozen().intersects(run) && suspects.range_cardinality(run.blocks()) == 0
            };
            let _ = self.intake.log().cool(&self.intake.log().hot(), is_clean);
        }
    }

    /// Lets the sender do up to `steps` things; the frames that it sends are put in `frames`. An error says that this side's disk failed.
    pub fn run(&mut self, now_ms: u64, steps: usize, history: &mut History, frames: &mut Vec<Bytes>) -> io::Result<()> {
        for _ in 0..steps {
            self.intake.tracker().set_now(now_ms);
            if self.intake.kept().overflowed() {
                self.sender.handle_overflow(self.intake.tracker());
                self.intake.thaw();
            }
            let action = self.sender.poll(self.intake.tracker(), now_ms);
            if matches!(action, Action::Wait(_)) {
                break;
            }
            frames.extend(self.act(action, now_ms, history)?);
        }
        Ok(())
    }

    fn act(&mut self, action: Action, now_ms: u64, history: &mut History) -> io::Result<Option<Bytes>> {
        let image = &*self.storage.image;
        match action {
            Action::Send(message) => return Ok(Some(self.frame(message))),
            Action::FindAllocated => {
                let allocated = read::allocated(image)?;
                self.sender.handle_allocated(self.intake.tracker(), &allocated);
            }
            Action::ShipOpen(runs) => {
                let content = read::open(image, &runs)?;
                return Ok(Some(self.ship(&runs, &content, now_ms)));
            }
            Action::ShipFrozen(runs) => {
                let content = read::frozen(image, &self.intake, &runs)?;
                return Ok(Some(self.ship(&runs, &content, now_ms)));
            }
            Action::Ask(ticket, runs) => {
                let mut question = Compare::new(ticket, Against::Epoch);
                read::ask(image, &mut question, &runs)?;
                return Ok(Some(self.frame(Message::Compare(question))));
            }
            Action::Cut => {
                self.epochs.cover(self.intake.tracker().open_epoch() + 1)?;
                let epoch = self.intake.cut();
                self.tell_size();
                self.sender.handle_cut(epoch, now_ms);
            }
            Action::Freeze => self.freeze(history),
            Action::Wait(_) => {}
        }
        Ok(None)
    }

    fn freeze(&mut self, history: &mut History) {
        let Some(mut changed) = self.intake.try_freeze() else { return };
        if self.storage.faults.plant() == Some(Plant::ForgetDirtyBit)
            && let Some(first) = changed.min()
        {
            changed.remove(first);
        }
        let epoch = self.intake.tracker().open_epoch() - 1;
        for content in self.finished.remove(&epoch).unwrap_or_default() {
            content.apply(&mut self.at_cut);
        }
        history.frozen(self.generation(), epoch, Cut { size_bytes: self.told_bytes, view: self.at_cut.clone() });
        self.sender.handle_frozen(self.intake.tracker(), changed, 0);
    }

    fn ship(&mut self, runs: &[Run], content: &[u8], now_ms: u64) -> Bytes {
        let blocks = self.encoder.encode(runs, content);
        self.sender.handle_shipped(&blocks, now_ms);
        self.sender.handle_written(blocks.payload.len() as u64, now_ms);
        self.frame(Message::Blocks(blocks))
    }

    fn frame(&self, message: Message) -> Bytes {
        Envelope { generation: self.sender.lineage().current(), message }.encode()
    }
}

impl Content {
    fn apply(&self, view: &mut View) {
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
