//! The primary's side: the real intake and sender, what the replica's thread does around them, and a guest that writes.

mod acknowledging;
mod guest;

pub use acknowledging::recorded as recorded_promise;
pub use guest::Scene;

use crate::history::Cut;
use crate::plant::Plant;
use crate::standby::VOLUME;
use crate::storage::{Storage, View};
use acknowledging::Acknowledging;
use bytes::Bytes;
use guest::Content;
use replicator::codec::Encoder;
use replicator::disk::BlockDevice;
use replicator::intake::{ActivityLog, Intake, KeptLimits, Parked, extent_blocks};
use replicator::primary::memory::{self, EpochNumbers};
use replicator::primary::read;
use replicator_engine::acknowledgement::{Promise, Rules};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run, block_count};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::sender::{Action, Cuts, Known, Phase, Sender, Settings};
use replicator_engine::tracker::{Epoch, LaneId, Write};
use replicator_engine::wire::{Against, Compare, Envelope, Message, Refused};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

const ACTIVITY_KEY: &[u8] = b"al/";

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
    acknowledging: Acknowledging,
    /// The newest epoch with a write that was done without an error.
    newest_write: Epoch,
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

fn settings(cuts: Cuts) -> Settings {
    Settings { cuts, rpo_ms: 400, window_bytes: 64 << 10, small_cut_bytes: 16 * BLOCK_BYTES as u64, ..Settings::default() }
}

impl Primary {
    /// Goes on as primary: after a clean stop with what the standby lacks, after a crash with what may differ.
    pub fn resume(storage: &Storage, lineage: Lineage, rules: Rules) -> io::Result<Self> {
        let intake = intake(storage)?;
        let blocks = block_count(storage.image.size_bytes()) as BlockNumber;
        intake.start_logging();
        let stopped = memory::take_changed(&*storage.catalogue, VOLUME)?;
        let exact = stopped.of("SITE");
        let compare_first = match exact {
            Some(_) => RoaringBitmap::new(),
            None => intake.log().hot().iter().flat_map(|extent| extent_blocks(extent).blocks()).filter(|block| *block < blocks).collect(),
        };
        intake.tracker().mark(exact.unwrap_or(&compare_first), Some(1));
        let known = memory::load_known(&*storage.catalogue, &known_key())?;
        Self::start(storage, lineage, rules, intake, known, compare_first)
    }

    /// Starts; everything that changed since `known` is marked in the intake.
    pub fn start(
        storage: &Storage,
        lineage: Lineage,
        rules: Rules,
        intake: Intake,
        known: Option<Known>,
        compare_first: RoaringBitmap,
    ) -> io::Result<Self> {
        let size_bytes = storage.image.size_bytes();
        Ok(Self {
            sender: Sender::new(settings(Cuts::InTime), VOLUME, size_bytes, lineage, known, compare_first),
            epochs: EpochNumbers::open(storage.catalogue.clone(), VOLUME, intake.tracker().open_epoch())?,
            encoder: Encoder::new()?,
            stored: known,
            parked: Vec::new(),
            in_flight: Vec::new(),
            finished: BTreeMap::new(),
            at_cut: storage.image.view(),
            told_bytes: size_bytes,
            acknowledging: Acknowledging::resume(storage, rules)?,
            newest_write: 0,
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

    /// Stops; says what the standby lacks.
    pub fn stop(self) -> (RoaringBitmap, Option<Known>) {
        let tracker = self.intake.tracker();
        let changed = self.sender.unacknowledged() | tracker.open().snapshot() | tracker.frozen().snapshot();
        (changed, self.sender.known())
    }

    /// Whether the guest's writes are all done, and it was told so.
    pub fn is_quiet(&self) -> bool {
        self.parked.is_empty() && self.in_flight.is_empty() && self.acknowledging.waiting() == 0
    }

    /// Whether this copy, which is attached, acknowledged everything.
    pub fn is_drained_to(&self, replica: Option<Id>) -> bool {
        let is_attached = *self.sender.phase() == Phase::Online && replica.is_some() && self.replica() == replica;
        is_attached && self.is_quiet() && self.sender.is_drained(self.intake.tracker())
    }

    /// The operator wants another mode.
    pub fn set_rules(&mut self, rules: Rules) {
        self.acknowledging.set_rules(rules);
    }

    /// The operator wants cuts as the RPO has them, or only when asked for.
    pub fn set_cuts(&mut self, cuts: Cuts) {
        self.sender.set_settings(settings(cuts));
    }

    /// The operator, or the clock, asks for a cut.
    pub fn ask_for_cut(&mut self) {
        self.sender.request_cut();
    }

    /// The promise in force, and how many requests wait for it.
    pub fn promise(&self) -> (Promise, usize) {
        (self.acknowledging.in_force(), self.acknowledging.waiting())
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
            let _ = self.intake.cool(LaneId::FIRST, &self.sender.unacknowledged());
        }
    }

    /// Lets the sender do up to `steps` things; the frames that it sends are put in `frames`. An error says that this side's disk failed.
    pub fn run(&mut self, scene: &mut Scene<'_>, steps: usize, frames: &mut Vec<Bytes>) -> io::Result<()> {
        let now_ms = scene.now_ms;
        for _ in 0..steps {
            self.intake.tracker().set_now(now_ms);
            if self.intake.kept(LaneId::FIRST).overflowed() {
                self.sender.handle_overflow(self.intake.tracker());
                self.intake.thaw(LaneId::FIRST);
            }
            self.acknowledge(scene);
            let action = self.sender.poll(self.intake.tracker(), now_ms);
            if matches!(action, Action::Wait(_)) {
                break;
            }
            frames.extend(self.act(action, scene)?);
        }
        Ok(())
    }

    fn act(&mut self, action: Action, scene: &mut Scene<'_>) -> io::Result<Option<Bytes>> {
        let now_ms = scene.now_ms;
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
                let content = read::frozen(image, self.intake.tracker(), self.intake.kept(LaneId::FIRST), &runs)?;
                return Ok(Some(self.ship(&runs, &content, now_ms)));
            }
            Action::Ask(ticket, runs) => {
                let mut question = Compare::new(ticket, Against::Epoch);
                read::ask(image, &mut question, &runs)?;
                return Ok(Some(self.frame(Message::Compare(question))));
            }
            Action::Cut => {
                self.epochs.cover(self.intake.tracker().open_epoch() + 1)?;
                let epoch = self.intake.cut(LaneId::FIRST).expect("there is one lane");
                self.tell_size();
                self.sender.handle_cut(epoch, now_ms);
            }
            Action::Freeze => self.freeze(scene),
            Action::Wait(_) => {}
        }
        Ok(None)
    }

    fn freeze(&mut self, scene: &mut Scene<'_>) {
        let Some(mut changed) = self.intake.try_freeze(LaneId::FIRST) else { return };
        if self.storage.faults.plant() == Some(Plant::ForgetDirtyBit)
            && let Some(first) = changed.min()
        {
            changed.remove(first);
        }
        let epoch = self.intake.tracker().open_epoch() - 1;
        for content in self.finished.remove(&epoch).unwrap_or_default() {
            content.apply(&mut self.at_cut);
        }
        scene.history.frozen(self.generation(), epoch, Cut { size_bytes: self.told_bytes, view: self.at_cut.clone() });
        self.sender.handle_frozen(self.intake.tracker(), changed, scene.unix_ms);
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
