//! A sender and its tracker under a standby that answers anything: no write is forgotten before the standby claimed to have its epoch.

use crate::Bytes;
use crate::messages::{VOLUME, Writer, size_bytes};
use bytes::Bytes as Frame;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::sender::{Action, Known, Sender, Settings};
use replicator_engine::tracker::{Begun, Epoch, Tracker, Write};
use replicator_engine::wire::{Blocks, Content, Encoding, Envelope, Message};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;

/// Size of the volume.
const BLOCKS: u32 = 512;
/// Things that the sender may do in a row: every one of them moves something on.
const MAX_STEPS: usize = 1000;

/// See the module's documentation.
pub struct Primary {
    sender: Sender,
    tracker: Tracker,
    in_flight: Vec<Write>,
    /// An epoch was cut and is not frozen yet.
    is_closing: bool,
    /// The epoch of each block's last write, until the standby said that it has it.
    written: BTreeMap<BlockNumber, Epoch>,
    /// The latest epoch that the standby said it has.
    claimed: Epoch,
    writer: Writer,
    now_ms: u64,
}

impl Primary {
    /// A primary that has no standby yet, or had one.
    pub fn new(bytes: &mut Bytes<'_>) -> Self {
        let known = bytes.u8().is_multiple_of(2).then_some(Known { replica: Some(Id([8; 16])), acked: 4 });
        let size_bytes = u64::from(BLOCKS) * BLOCK_BYTES as u64;
        let settings = Settings {
            rpo_ms: 100,
            window_bytes: 1 << 20,
            small_cut_bytes: 16 * BLOCK_BYTES as u64,
            large_cut_bytes: 1 << 20,
            ..Settings::default()
        };
        let sender = Sender::new(settings, VOLUME, size_bytes, Lineage::first(Id([1; 16])), known, RoaringBitmap::new());
        let (tracker, writer) = (Tracker::new(5), Writer::new());
        Self { sender, tracker, in_flight: Vec::new(), is_closing: false, written: BTreeMap::new(), claimed: 4, writer, now_ms: 1 }
    }

    /// One event.
    pub fn step(&mut self, bytes: &mut Bytes<'_>) {
        self.now_ms += u64::from(bytes.u8());
        self.tracker.set_now(self.now_ms);
        match bytes.u8() % 16 {
            0..4 => self.begin_write(bytes),
            4 | 5 => self.finish_write(bytes),
            6 => self.sender.handle_connected(self.now_ms),
            7 => self.sender.handle_disconnected(&self.tracker),
            8..12 => self.receive(bytes),
            12 => self.sender.request_cut(),
            // The intake keeps nothing while an epoch is closing (its lock sees to that), so it cannot overflow then.
            13 if bytes.u8().is_multiple_of(4) && !self.is_closing => {
                self.sender.handle_overflow(&self.tracker);
                self.tracker.thaw();
            }
            13 => self.sender.handle_resized(size_bytes(bytes).max(u64::from(BLOCKS) * BLOCK_BYTES as u64)),
            _ => self.work(usize::from(bytes.u8())),
        }
        self.check();
    }

    fn begin_write(&mut self, bytes: &mut Bytes<'_>) {
        let run = Run { start: u32::from(bytes.u8()), len: 1 + u32::from(bytes.u8() % 4) };
        match self.tracker.begin_write(run) {
            Begun::Clear(write) => {
                self.written.extend(run.blocks().map(|block| (block, write.epoch())));
                self.in_flight.push(write);
            }
            // It waits until the old content is kept; here it comes again later.
            Begun::Frozen(write) => {
                self.written.extend(run.blocks().map(|block| (block, write.epoch())));
                self.tracker.finish_write(write);
            }
        }
    }

    fn finish_write(&mut self, bytes: &mut Bytes<'_>) {
        if !self.in_flight.is_empty() {
            let write = self.in_flight.swap_remove(usize::from(bytes.u8()) % self.in_flight.len());
            self.tracker.finish_write(write);
        }
    }

    fn receive(&mut self, bytes: &mut Bytes<'_>) {
        let frame = self.writer.standby(bytes, self.tracker.open_epoch());
        let Ok(Envelope { message, .. }) = Envelope::decode(frame) else { return };
        let claims = match &message {
            Message::Attached(attached) => attached.committed,
            Message::Committed(epoch) => *epoch,
            _ => 0,
        };
        match self.sender.handle_message(&self.tracker, message, self.now_ms) {
            Ok(()) => self.claimed = self.claimed.max(claims),
            Err(_) => self.sender.handle_disconnected(&self.tracker),
        }
    }

    /// Lets the sender do up to `most` things, as its thread would.
    fn work(&mut self, most: usize) {
        for _ in 0..most.min(MAX_STEPS) {
            match self.sender.poll(&self.tracker, self.now_ms) {
                Action::Wait(_) => return,
                Action::Send(_) | Action::Ask(..) => {}
                Action::FindAllocated => self.sender.handle_allocated(&self.tracker, &RoaringBitmap::from_iter(0..BLOCKS / 2)),
                Action::ShipOpen(runs) => self.ship(&runs),
                Action::ShipFrozen(runs) => {
                    runs.iter().flat_map(|run| run.blocks()).for_each(|block| {
                        self.tracker.frozen().clear(block);
                    });
                    self.ship(&runs);
                }
                Action::Cut => {
                    let epoch = self.tracker.cut();
                    self.sender.handle_cut(epoch, self.now_ms);
                    self.is_closing = true;
                }
                Action::Freeze => {
                    self.sender.handle_frozen(&self.tracker, self.tracker.frozen().snapshot(), 0);
                    self.is_closing = false;
                }
            }
        }
    }

    fn ship(&mut self, runs: &[Run]) {
        let runs = runs.iter().map(|run| (*run, Content::Data)).collect();
        let payload = Frame::from_static(&[0; 4096]);
        self.sender.handle_shipped(&Blocks { runs, encoding: Encoding::Zstd, digest: [0; 32], payload }, self.now_ms);
        self.sender.handle_written(4096, self.now_ms);
    }

    /// Shipped is not clean: a block stays in doubt until its epoch is acknowledged, whatever the standby says.
    fn check(&mut self) {
        self.written.retain(|_, epoch| *epoch > self.claimed);
        let (open, frozen, unacknowledged) = (self.tracker.open(), self.tracker.frozen(), self.sender.unacknowledged());
        for (block, epoch) in &self.written {
            let is_in_doubt = open.contains(*block) || frozen.contains(*block) || unacknowledged.contains(*block);
            assert!(is_in_doubt, "block {block} of epoch {epoch} is forgotten");
        }
    }
}
