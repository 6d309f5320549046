//! The primary's side: the real intake and sender over a simulated disk, and a guest that writes.
//!
//! A write of a later epoch never finishes before an earlier one's over the same block, so the volume at a cut is the volume at the cut
//! before with the epoch's writes applied as they finished, whatever writes of the next epoch are done by the time it freezes.

use crate::disk::{SimCatalogue, SimImage};
use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::codec::{Encoder, add_content};
use replicator::disk::{BlockDevice, Pages};
use replicator::intake::{ActivityLog, Intake, Intaken, KeptLimits, Parked, extent_blocks};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::sender::{Action, Known, Sender, Settings};
use replicator_engine::tracker::{Epoch, Write};
use replicator_engine::wire::{Against, Compare, Envelope, Message};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A write that is on the disk.
type Finished = (Run, Box<[u8]>);

/// What a volume looks like: its blocks that are not zero.
pub type View = BTreeMap<BlockNumber, Box<[u8]>>;

/// See the module's documentation.
pub struct Primary {
    pub image: Arc<SimImage>,
    pub catalogue: Arc<SimCatalogue>,
    intake: Arc<Intake>,
    pub sender: Sender,
    encoder: Encoder,
    parked: Vec<(Parked, Box<[u8]>)>,
    in_flight: Vec<(Write, Box<[u8]>)>,
    /// Writes that finished, by epoch, until the epoch is frozen.
    finished: BTreeMap<Epoch, Vec<Finished>>,
    /// The volume at the last cut.
    at_cut: View,
    /// The size that the sender knows of: the volume may have grown since.
    told_bytes: u64,
    /// The size and content of the volume at every cut: the only states that a standby may show.
    pub cuts: BTreeMap<Epoch, (u64, View)>,
}

pub const VOLUME: Id = Id([7; 16]);

impl Primary {
    /// Starts, or starts again after a crash: what may differ is what the activity log says.
    pub fn start(
        image: Arc<SimImage>,
        catalogue: Arc<SimCatalogue>,
        first: Epoch,
        known: Option<Known>,
        cuts: BTreeMap<Epoch, (u64, View)>,
    ) -> Self {
        let log = ActivityLog::open(catalogue.clone(), b"al/".to_vec()).expect("a readable activity log");
        let hot = log.hot();
        // Little memory and no spill: overflow is part of the simulation.
        let limits = KeptLimits { memory_bytes: 8 * BLOCK_BYTES as u64, spill_bytes: 0, spill_dir: "/".into() };
        let intake = Arc::new(Intake::new(first, image.clone(), log, limits));
        intake.start_logging();
        let blocks = (image.size_bytes() / BLOCK_BYTES as u64) as u32;
        let suspects: RoaringBitmap =
            hot.iter().flat_map(|extent| extent_blocks(extent).blocks()).filter(|block| *block < blocks).collect();
        intake.tracker().mark(&suspects, None);
        let settings = Settings { rpo_ms: 400, window_bytes: 64 << 10, small_cut_bytes: 16 * BLOCK_BYTES as u64, large_cut_bytes: 1 << 30 };
        let sender = Sender::new(settings, VOLUME, image.size_bytes(), Lineage::first(Id([1; 16])), known, suspects);
        let encoder = Encoder::new().expect("an encoder");
        let at_cut = image.content();
        let (parked, in_flight, finished) = Default::default();
        let told_bytes = image.size_bytes();
        Self { image, catalogue, intake, sender, encoder, parked, in_flight, finished, at_cut, told_bytes, cuts }
    }

    /// The volume grows; the sender may get to know later.
    pub fn grow(&mut self, rng: &mut StdRng) {
        let size_bytes = self.image.size_bytes() + rng.random_range(1..100) * BLOCK_BYTES as u64;
        self.image.grow(size_bytes).expect("an image that grows");
        if rng.random_bool(0.5) {
            self.tell_size();
        }
    }

    /// Tells the sender how large the volume is.
    pub fn tell_size(&mut self) {
        self.told_bytes = self.image.size_bytes();
        self.sender.handle_resized(self.told_bytes);
    }

    /// The guest begins to write one to three blocks.
    pub fn begin_write(&mut self, rng: &mut StdRng) {
        let blocks = (self.image.size_bytes() / BLOCK_BYTES as u64) as u32;
        // Few blocks are hot: what is being shipped gets overwritten.
        let (from, to) = match rng.random_range(0..10) {
            0..7 => (0, 24),
            7 => (blocks - 24, blocks),
            _ => (0, blocks),
        };
        let start = rng.random_range(from..to - 2);
        let run = Run::new(start, rng.random_range(1..=3)).expect("a short run");
        let fill = rng.random_range(0..4u8);
        let mut content = vec![fill; run.len_bytes() as usize].into_boxed_slice();
        if fill > 0 {
            content.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.random::<u64>().to_le_bytes()));
        }
        match self.intake.admit(run) {
            Intaken::Ready(write) => self.in_flight.push((write, content)),
            Intaken::Parked(parked) => self.parked.push((parked, content)),
        }
    }

    /// The lane looks at what is parked, and the disk finishes one write.
    pub fn progress_writes(&mut self, rng: &mut StdRng) {
        let parked = std::mem::take(&mut self.parked);
        self.intake.log_all(parked.iter().map(|(parked, _)| parked)).expect("a writable log");
        for (parked, content) in parked {
            match self.intake.keep_frozen(parked) {
                Ok(write) => self.in_flight.push((write.expect("a readable image"), content)),
                Err(parked) => self.parked.push((parked, content)),
            }
        }
        if !self.in_flight.is_empty() {
            let (write, content) = self.in_flight.swap_remove(rng.random_range(0..self.in_flight.len()));
            self.image.write(write.run(), &content).expect("a writable image");
            self.finished.entry(write.epoch()).or_default().push((write.run(), content));
            self.intake.tracker().finish_write(write);
        }
    }

    /// Whether the guest's writes are all done.
    pub fn is_quiet(&self) -> bool {
        self.parked.is_empty() && self.in_flight.is_empty()
    }

    /// Whether the standby acknowledged everything.
    pub fn is_drained(&self) -> bool {
        self.is_quiet() && self.sender.is_drained(self.intake.tracker())
    }

    pub fn connect(&mut self, now_ms: u64) {
        self.tell_size();
        self.sender.handle_connected(now_ms);
    }

    pub fn disconnect(&mut self) {
        self.sender.handle_disconnected(self.intake.tracker());
    }

    /// The epoch after the last one that was opened.
    pub fn next_epoch(&self) -> Epoch {
        self.intake.tracker().open_epoch() + 1
    }

    pub fn receive(&mut self, message: Message, now_ms: u64) {
        self.sender.handle_message(self.intake.tracker(), message, now_ms).expect("the standby keeps to the protocol");
    }

    /// Lets extents cool whose content is at the standby, as the daemon does after a flush.
    pub fn cool(&mut self) {
        self.image.sync().expect("a disk that syncs");
        let suspects = self.sender.unacknowledged();
        let tracker = self.intake.tracker();
        let is_clean = |extent| {
            let run = extent_blocks(extent);
            !tracker.open().intersects(run) && !tracker.frozen().intersects(run) && suspects.range_cardinality(run.blocks()) == 0
        };
        self.intake.log().cool(&self.intake.log().hot(), is_clean).expect("a writable log");
    }

    /// Lets the sender do up to `steps` things; returns the frames that it sends.
    pub fn run(&mut self, now_ms: u64, steps: usize) -> Vec<Bytes> {
        let mut frames = Vec::new();
        for _ in 0..steps {
            self.intake.tracker().set_now(now_ms);
            if self.intake.kept().overflowed() {
                self.sender.handle_overflow(self.intake.tracker());
                self.intake.thaw();
            }
            let action = self.sender.poll(self.intake.tracker(), now_ms);
            match action {
                Action::Wait(_) => break,
                Action::Send(message) => frames.push(self.frame(message)),
                Action::FindAllocated => {
                    let allocated = self.image.content().into_keys().collect();
                    self.sender.handle_allocated(self.intake.tracker(), &allocated);
                }
                Action::ShipOpen(runs) => {
                    let content = self.read(&runs);
                    frames.push(self.ship(&runs, &content, now_ms));
                }
                Action::ShipFrozen(runs) => {
                    let content = self.read_frozen(&runs);
                    frames.push(self.ship(&runs, &content, now_ms));
                }
                Action::Ask(ticket, runs) => {
                    let mut question = Compare::new(ticket, Against::Epoch);
                    add_content(&mut question, runs.iter().flat_map(|run| run.blocks()), &self.read(&runs));
                    frames.push(self.frame(Message::Compare(question)));
                }
                Action::Cut => {
                    let epoch = self.intake.cut();
                    self.tell_size();
                    self.sender.handle_cut(epoch, now_ms);
                }
                Action::Freeze => self.freeze(),
            }
        }
        frames
    }

    fn freeze(&mut self) {
        let Some(changed) = self.intake.try_freeze() else { return };
        let epoch = self.intake.tracker().open_epoch() - 1;
        for (run, content) in self.finished.remove(&epoch).unwrap_or_default() {
            for (block, content) in run.blocks().zip(content.chunks_exact(BLOCK_BYTES)) {
                if content.iter().all(|byte| *byte == 0) {
                    self.at_cut.remove(&block);
                } else {
                    self.at_cut.insert(block, content.into());
                }
            }
        }
        self.cuts.insert(epoch, (self.told_bytes, self.at_cut.clone()));
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

    fn read(&self, runs: &[Run]) -> Vec<u8> {
        let mut all = Vec::new();
        for run in runs {
            let mut content = Pages::new(run.len);
            self.image.read(*run, &mut content).expect("a readable image");
            all.extend_from_slice(&content);
        }
        all
    }

    fn read_frozen(&self, runs: &[Run]) -> Vec<u8> {
        let mut all = self.read(runs);
        for (block, content) in runs.iter().flat_map(|run| run.blocks()).zip(all.chunks_exact_mut(BLOCK_BYTES)) {
            if !self.intake.tracker().frozen().clear(block) {
                let kept = self.intake.kept().take(block, content).expect("readable memory");
                assert!(kept || self.intake.kept().overflowed(), "block {block} is neither frozen nor kept");
            }
        }
        all
    }
}
