//! A member at the primary's site, as its thread drives it, and the stream to its copy.

use super::BLOCKS;
use super::guest::Written;
use super::standby::{CONTENT_BYTES, Standby, fingerprint};
use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use replicator_engine::block::{BLOCK_BYTES, Run};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::group::GroupCut;
use replicator_engine::sender::{Action, Known, Phase, Sender, Settings};
use replicator_engine::tracker::{Begun, Epoch, Tracker, Write};
use replicator_engine::wire::{Against, Blocks, Compare, Content, Encoding, Envelope, Message};
use roaring::RoaringBitmap;
use std::collections::{BTreeMap, VecDeque};

/// What a member's thread has for the group, once it has done what it could.
pub enum Wants {
    /// To be cut.
    Cut,
    /// Nothing now. `able`: it can be cut with the others.
    Nothing { able: bool },
}

/// A write that has joined an epoch.
pub enum Admitted {
    Ready(Write),
    /// What it would overwrite is to be kept first.
    Parked(Write),
}

/// See the module's documentation.
pub struct Member {
    volume: Id,
    pub tracker: Tracker,
    sender: Sender,
    pub standby: Standby,
    image: Vec<u64>,
    /// What each block held, in order.
    pub history: Vec<Vec<Written>>,
    kept: BTreeMap<u32, u64>,
    is_closing: bool,
    is_connected: bool,
    down: VecDeque<Envelope>,
    up: VecDeque<Message>,
}

impl Member {
    pub fn new(number: u8, first: Epoch, lineage: &Lineage) -> Self {
        let volume = Id([10 + number; 16]);
        let standby = Standby::new(volume, lineage, first);
        let known = Known { replica: Some(standby.replica), acked: first };
        Self {
            volume,
            tracker: Tracker::new(first + 1),
            sender: sender(volume, lineage.clone(), Some(known), RoaringBitmap::new()),
            standby,
            image: vec![0; BLOCKS as usize],
            history: vec![Vec::new(); BLOCKS as usize],
            kept: BTreeMap::new(),
            is_closing: false,
            is_connected: false,
            down: VecDeque::new(),
            up: VecDeque::new(),
        }
    }

    /// A write joins the open epoch; `None` while that is held.
    pub fn admit(&self, run: Run) -> Option<Admitted> {
        Some(match self.tracker.try_begin_write(run)? {
            Begun::Clear(write) => Admitted::Ready(write),
            Begun::Frozen(write) => Admitted::Parked(write),
        })
    }

    /// Keeps what the write is about to overwrite; gives it back if the epoch before has to close first.
    pub fn keep_frozen(&mut self, write: Write) -> Result<Write, Write> {
        if !self.tracker.has_turned(&write) {
            if self.is_closing {
                return Err(write);
            }
            for block in write.run().blocks().filter(|block| self.tracker.frozen().clear(*block)) {
                self.kept.insert(block, self.image[block as usize]);
            }
        }
        Ok(write)
    }

    /// A write has reached the image.
    pub fn written(&mut self, block: u32, written: Written) {
        self.image[block as usize] = written.content;
        self.history[block as usize].push(written);
    }

    pub fn request_cut(&mut self) {
        self.sender.request_cut();
    }

    /// The stream is there.
    pub fn connect(&mut self, now_ms: u64) {
        if !self.is_connected {
            self.is_connected = true;
            self.sender.handle_connected(now_ms);
        }
    }

    /// The stream breaks, with what is on its way; says whether there was one.
    pub fn disconnect(&mut self) -> bool {
        self.down.clear();
        self.up.clear();
        self.standby.disconnect();
        let was_connected = std::mem::replace(&mut self.is_connected, false);
        if was_connected {
            self.sender.handle_disconnected(&self.tracker);
        }
        was_connected
    }

    /// Starts again as after `kill -9`: anything may have changed.
    pub fn crash(&mut self) {
        let (known, lineage) = (self.sender.known(), self.sender.lineage().clone());
        self.disconnect();
        let all: RoaringBitmap = (0..BLOCKS).collect();
        self.tracker = Tracker::new(self.tracker.open_epoch() + 1);
        self.tracker.mark(&all, Some(1));
        self.sender = sender(self.volume, lineage, known, all);
        self.kept.clear();
        self.is_closing = false;
    }

    /// Content of the frozen epoch is given up for want of room; says whether there was any.
    pub fn overflow(&mut self) -> bool {
        if self.is_closing || self.kept.is_empty() || self.tracker.frozen().is_empty() {
            return false;
        }
        self.sender.handle_overflow(&self.tracker);
        self.tracker.thaw();
        self.kept.clear();
        true
    }

    /// Does what the sender asks for, up to a cut.
    pub fn poll(&mut self, now_ms: u64, dice: &mut StdRng) -> Wants {
        self.tracker.set_now(now_ms);
        for _ in 0..dice.random_range(1..4) {
            let able = *self.sender.phase() == Phase::Online && self.sender.safe().is_some();
            match self.sender.poll(&self.tracker, now_ms) {
                Action::Send(message) => self.send(message),
                Action::FindAllocated => self.sender.handle_allocated(&self.tracker, &(0..BLOCKS).collect()),
                Action::ShipOpen(runs) => {
                    let content: Vec<u64> = blocks_of(&runs).map(|block| self.image[block as usize]).collect();
                    self.ship(&runs, &content, now_ms);
                }
                Action::ShipFrozen(runs) => {
                    let content: Vec<u64> = blocks_of(&runs).map(|block| self.frozen(block)).collect();
                    self.ship(&runs, &content, now_ms);
                }
                Action::Ask(ticket, runs) => {
                    let mut question = Compare::new(ticket, Against::Epoch);
                    blocks_of(&runs).for_each(|block| question.add(block, fingerprint(self.image[block as usize])));
                    self.send(Message::Compare(question));
                }
                Action::Cut if able => return Wants::Cut,
                Action::Cut => {
                    let epoch = self.tracker.cut();
                    self.handle_cut(epoch, None, now_ms);
                }
                Action::Freeze => {
                    self.is_closing = false;
                    self.sender.handle_frozen(&self.tracker, self.tracker.freeze(), now_ms);
                }
                Action::Wait(_) => break,
            }
        }
        Wants::Nothing { able: *self.sender.phase() == Phase::Online && self.sender.safe().is_some() }
    }

    /// The epoch was cut: until its writes have finished, nothing of it is overwritten.
    pub fn handle_closing(&mut self) {
        self.kept.clear();
        self.is_closing = true;
    }

    /// The sender hears of the cut.
    pub fn handle_cut(&mut self, epoch: Epoch, group: Option<GroupCut>, now_ms: u64) {
        self.handle_closing();
        match group {
            Some(cut) => self.sender.handle_group_cut(epoch, now_ms, cut, now_ms),
            None => self.sender.handle_cut(epoch, now_ms),
        }
    }

    /// One message gets to where it goes. What the standby is known to have now, if that is news.
    pub fn deliver(&mut self, now_ms: u64) -> Option<Epoch> {
        if let Some(answer) = self.up.pop_front() {
            let before = self.sender.known();
            self.sender.handle_message(&self.tracker, answer, now_ms).expect("the standby keeps to the protocol");
            return self.sender.known().filter(|known| Some(*known) != before).map(|known| known.acked);
        }
        let answer = self.down.pop_front().and_then(|envelope| self.standby.handle(envelope));
        self.up.extend(answer);
        None
    }

    fn frozen(&mut self, block: u32) -> u64 {
        // Whoever finds the bit set first has the block.
        if self.tracker.frozen().clear(block) { self.image[block as usize] } else { self.kept.remove(&block).expect("it was kept") }
    }

    fn ship(&mut self, runs: &[Run], content: &[u64], now_ms: u64) {
        let payload: Vec<u8> = content.iter().flat_map(|content| content.to_le_bytes()).collect();
        assert_eq!(payload.len(), content.len() * CONTENT_BYTES);
        let mut digest = [0; 32];
        digest[..CONTENT_BYTES].copy_from_slice(&content.iter().fold(0, |sum: u64, next| sum.rotate_left(7) ^ next).to_le_bytes());
        let runs = runs.iter().map(|run| (*run, Content::Data)).collect();
        let blocks = Blocks { runs, encoding: Encoding::Plain, digest, payload: Bytes::from(payload) };
        self.sender.handle_shipped(&blocks, now_ms);
        self.sender.handle_written(blocks.payload.len() as u64, now_ms);
        self.send(Message::Blocks(blocks));
    }

    fn send(&mut self, message: Message) {
        if self.is_connected {
            self.down.push_back(Envelope { generation: self.sender.lineage().current(), message });
        }
    }
}

fn blocks_of(runs: &[Run]) -> impl Iterator<Item = u32> {
    runs.iter().flat_map(|run| run.blocks())
}

fn sender(volume: Id, lineage: Lineage, known: Option<Known>, compare_first: RoaringBitmap) -> Sender {
    let settings = Settings { rpo_ms: 200, ..Settings::default() };
    Sender::new(settings, volume, u64::from(BLOCKS) * BLOCK_BYTES as u64, lineage, known, compare_first)
}
