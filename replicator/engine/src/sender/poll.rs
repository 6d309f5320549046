//! What the sender wants done next: the one place that orders comparing, early shipping, cutting, freezing and committing.

use super::backlog::Holes;
use super::{Cut, Cuts, MAX_OPEN_QUESTIONS, MAX_PENDING_EPOCHS, Pending, Phase, Sender};
use crate::block::{Run, runs};
use crate::tracker::Tracker;
use crate::wire::{Blocks, Commit, Content, Digest, Encoding, MAX_COMPARE_BLOCKS, MAX_RUNS, Message};
use bytes::Bytes;
use roaring::RoaringBitmap;

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this.
    Send(Message),
    /// Find out which blocks are allocated and call [`Sender::handle_allocated`].
    FindAllocated,
    /// Read these blocks of the image, send them, call [`Sender::handle_shipped`].
    ShipOpen(Vec<Run>),
    /// The same, but of the frozen epoch: content that was kept goes before the image's.
    ShipFrozen(Vec<Run>),
    /// Read and fingerprint these blocks, and ask about them under this ticket.
    Ask(u64, Vec<Run>),
    /// Cut, and call [`Sender::handle_cut`].
    Cut,
    /// Try to freeze the epoch that was cut, and call [`Sender::handle_frozen`] if it closed.
    Freeze,
    /// Nothing until an input, or until this time.
    Wait(u64),
}

impl Sender {
    /// What to do next.
    pub fn poll(&mut self, tracker: &Tracker, now_ms: u64) -> Action {
        if let Cut::Closing(epoch, _) = self.cut {
            // Even without a connection: until it is frozen, writes over the epoch's blocks wait.
            if tracker.has_closed(epoch) {
                return Action::Freeze;
            }
            return Action::Wait(now_ms + 1);
        }
        if let Some(message) = self.outgoing.pop_front() {
            return Action::Send(message);
        }
        if self.phase != Phase::Online {
            return Action::Wait(u64::MAX);
        }
        if self.mark_base.is_some() {
            return Action::FindAllocated;
        }
        if self.pace.window_is_full(&self.settings) {
            self.effort.handle_link_full();
            return Action::Wait(u64::MAX);
        }
        if !self.holes.unsent().is_empty() {
            return Action::Send(Message::Blocks(self.next_holes()));
        }
        let next = if matches!(self.cut, Cut::Frozen(_)) { self.poll_frozen() } else { self.poll_open(tracker, now_ms) };
        if matches!(next, Action::Wait(_)) {
            self.gauge.handle_idle();
        }
        next
    }

    fn next_holes(&mut self) -> Blocks {
        let runs = self.holes.take(MAX_RUNS).iter().map(|run| (*run, Content::Zero)).collect();
        let blocks = Blocks { runs, encoding: Encoding::Plain, digest: empty_digest(), payload: Bytes::new() };
        self.digest.add(&blocks);
        blocks
    }

    fn poll_frozen(&mut self) -> Action {
        let Cut::Frozen(frozen) = &mut self.cut else { unreachable!("asked only while frozen") };
        let next = frozen.take_unsent(self.pace.chunk_blocks(&self.settings));
        if !next.is_empty() {
            return Action::ShipFrozen(next);
        }
        let (blocks, digest) = std::mem::take(&mut self.digest).value();
        let (size_bytes, cut_unix_ms, group) = (frozen.size_bytes, frozen.cut_unix_ms, frozen.group);
        let commit = Commit { epoch: frozen.epoch, blocks, digest, size_bytes, cut_unix_ms, group };
        self.told_bytes = Some(size_bytes);
        self.holes = Holes::default();
        let changed = std::mem::take(&mut frozen.changed);
        self.pending.push_back(Pending { epoch: frozen.epoch, changed, oldest_ms: frozen.oldest_ms });
        self.cut = Cut::None;
        self.outgoing.push_back(Message::Commit(commit));
        Action::Send(self.outgoing.pop_front().expect("just put there"))
    }

    fn poll_open(&mut self, tracker: &Tracker, now_ms: u64) -> Action {
        let dirty = tracker.open().len();
        let comparing = !self.compare_first.is_empty() || !self.asked.is_empty();
        let told = self.told_bytes == Some(self.size_bytes);
        let something = dirty > 0 || !self.early.is_empty() || self.known.is_none() || self.cut_requested || !told;
        let wanted = self.wants_cut();
        let may_cut = !comparing && wanted && something && self.pending.len() < MAX_PENDING_EPOCHS;
        let due_ms = if self.cut_requested { now_ms } else { self.pace.next_cut_ms(&self.settings) };
        let fits = self.may_freeze_all() || self.pace.fits_a_cut(&self.settings, dirty, now_ms);
        if may_cut && fits && now_ms >= due_ms {
            return Action::Cut;
        }
        if !self.compare_first.is_empty() && self.asked.len() >= MAX_OPEN_QUESTIONS {
            return Action::Wait(u64::MAX);
        }
        if !self.compare_first.is_empty() || (dirty > 0 && !fits && wanted) {
            if let Some(action) = self.ship_early(tracker) {
                return action;
            }
            // Writes are in flight over all that is left.
            return Action::Wait(now_ms + 1);
        }
        if may_cut { Action::Wait(due_ms.max(now_ms + 1)) } else { Action::Wait(now_ms + self.settings.rpo_ms.max(1)) }
    }

    /// Whether the open epoch is to close at all. One that gives the standby its first recovery point is.
    fn wants_cut(&self) -> bool {
        self.settings.cuts == Cuts::InTime || self.cut_requested || self.known.is_none()
    }

    /// Whether a backlog of any size is frozen: there is a recovery point to go back to, and freezing did not fail again and again.
    pub(super) fn may_freeze_all(&self) -> bool {
        self.settings.cuts == Cuts::Asked && self.known.is_some() && !self.pace.gave_up_often()
    }

    /// Takes blocks of the open epoch to ship or to ask about before the cut.
    fn ship_early(&mut self, tracker: &Tracker) -> Option<Action> {
        for _ in 0..2 {
            let (taken, next) = tracker.take_open(self.cursor, self.pace.chunk_blocks(&self.settings).min(MAX_COMPARE_BLOCKS));
            self.cursor = next.unwrap_or(0);
            let Some(first) = taken.first().copied() else { continue };
            let ask = self.compare_first.contains(first.start);
            let mut chosen = RoaringBitmap::new();
            let mut rest = RoaringBitmap::new();
            for block in taken.iter().flat_map(|run| run.blocks()) {
                let same = self.compare_first.contains(block) == ask;
                if same {
                    chosen.insert(block)
                } else {
                    rest.insert(block)
                };
            }
            tracker.open().set_all(&rest);
            if let Some(first) = rest.min() {
                self.cursor = self.cursor.min(first);
            }
            self.compare_first -= &chosen;
            let runs = runs(&chosen).collect();
            if !ask {
                self.early |= chosen;
                return Some(Action::ShipOpen(runs));
            }
            let ticket = self.next_ticket;
            self.next_ticket += 1;
            self.asked.insert(ticket, chosen);
            return Some(Action::Ask(ticket, runs));
        }
        None
    }
}

/// The digest of no content.
fn empty_digest() -> Digest {
    *blake3::hash(&[]).as_bytes()
}
