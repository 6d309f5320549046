//! The primary's side of one replica: what to ship next, when to cut, what is safely there.
//!
//! ```text
//!   Offline ──connected──► Attaching ──attached──► Online ──refused──► Refused
//!      ▲                                              │
//!      └────────────────── disconnected ──────────────┘
//!
//!   Online:  [zeroes of holes] ──► compare, ship early while the backlog is large ──► cut ──► freeze ──► ship frozen ──► commit
//! ```
//!
//! Inputs are the `handle_*` methods; after each, [`Sender::poll`] is called until it answers [`Action::Wait`].
//!
//! Invariants
//! - A block is in the tracker's open or frozen map, in `early`, in `asked`, in `owed`, in the frozen epoch's `changed`, or in a pending epoch's
//!   `changed`, from its write until a commit that contains that write is acknowledged. Shipped is not clean.
//! - `compare_first` holds only blocks of the open map; it is a hint that saves bytes.
//! - Nothing is sent between the last block of a cut epoch and its commit.

mod backlog;
mod behind;
mod effort;
mod outlook;
mod pace;
mod poll;

pub use backlog::{Backlog, Pending};
pub use effort::{Compression, Effort};
pub use pace::{Cuts, Pace, Settings};
pub use poll::Action;

use crate::block::{BLOCK_BYTES, BlockNumber};
use crate::forecast::Gauge;
use crate::generation::{Id, Lineage, Relation};
use crate::group::GroupCut;
use crate::history::History;
use crate::tracker::{Epoch, Tracker};
use crate::wire::{Attach, Attached, Base, Blocks, Compared, EpochDigest, Message, Refusal, Refused};
use backlog::{Frozen, Holes};
use roaring::RoaringBitmap;
use std::collections::{BTreeMap, VecDeque};

/// Most epochs that are sent and not yet acknowledged.
pub const MAX_PENDING_EPOCHS: usize = 16;

/// Most questions that are asked and not yet answered.
pub const MAX_OPEN_QUESTIONS: usize = 64;

/// See the module's documentation.
pub struct Sender {
    settings: Settings,
    volume: Id,
    size_bytes: u64,
    lineage: Lineage,
    phase: Phase,
    known: Option<Known>,
    compare_first: RoaringBitmap,
    early: RoaringBitmap,
    /// What changed here before this copy was promoted, and the standby may lack, until it says where it stands; and all blocks of that.
    owed: History,
    owed_blocks: RoaringBitmap,
    asked: BTreeMap<u64, RoaringBitmap>,
    next_ticket: u64,
    holes: Holes,
    mark_base: Option<MarkBase>,
    cut: Cut,
    pending: VecDeque<Pending>,
    digest: EpochDigest,
    cursor: BlockNumber,
    pace: Pace,
    /// How hard content is compressed.
    pub effort: Effort,
    /// What forecasts are made from.
    pub gauge: Gauge,
    cut_requested: bool,
    /// The group's cut, and its time, that the epoch being cut is a part of.
    cut_with: Option<(GroupCut, u64)>,
    /// Size in the last commit of this stream. A stream begins with an epoch, if only an empty one: the standby knows from it the size, and
    /// that nothing older is left to come.
    told_bytes: Option<u64>,
    /// Whether the attached copy has a recovery point, which a promotion could continue.
    has_point: bool,
    /// Whether blocks are marked of which nobody knows how long.
    of_unknown_age: bool,
    outgoing: VecDeque<Message>,
}

/// What the primary knows of the standby's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Which copy it is; `None` if it was this site's own before a handover.
    pub replica: Option<Id>,
    /// The last epoch that it acknowledged: everything that changed since is marked.
    pub acked: Epoch,
}

/// Where the connection stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// No connection.
    Offline,
    /// The standby has been asked where it stands.
    Attaching,
    /// Epochs travel.
    Online,
    /// The standby will not have us: nothing is sent until the operator, or time, changes that.
    Refused(Refused),
}

enum Cut {
    None,
    /// Cut at this size; writes of the epoch are still under way.
    Closing(Epoch, u64),
    Frozen(Frozen),
}

/// Which blocks a copy needs that has no usable base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkBase {
    /// The copy is all zeroes: what is allocated here.
    Allocated,
    /// The copy holds anything: compare what is allocated here, zero the rest.
    Everything,
}

impl Sender {
    /// A sender of `volume`; `known` is what was recorded of the standby, `compare_first` which of the marked blocks it may hold.
    pub fn new(
        settings: Settings,
        volume: Id,
        size_bytes: u64,
        lineage: Lineage,
        known: Option<Known>,
        compare_first: RoaringBitmap,
    ) -> Self {
        Self {
            settings,
            volume,
            size_bytes,
            lineage,
            phase: Phase::Offline,
            known,
            compare_first,
            early: RoaringBitmap::new(),
            owed: History::default(),
            owed_blocks: RoaringBitmap::new(),
            asked: BTreeMap::new(),
            next_ticket: 0,
            holes: Holes::default(),
            mark_base: None,
            cut: Cut::None,
            pending: VecDeque::new(),
            digest: EpochDigest::default(),
            cursor: 0,
            pace: Pace::default(),
            effort: Effort::default(),
            gauge: Gauge::default(),
            cut_requested: false,
            cut_with: None,
            told_bytes: None,
            has_point: false,
            of_unknown_age: false,
            outgoing: VecDeque::new(),
        }
    }

    /// Where the connection stands.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// What the primary knows of the standby's copy. To be recorded when it changes.
    pub fn known(&self) -> Option<Known> {
        self.known
    }

    /// The newest epoch that the standby has durably, as a recovery point: with it, every epoch before, whether it came by itself or not.
    pub fn safe(&self) -> Option<Epoch> {
        self.known.filter(|_| self.has_point).map(|known| known.acked)
    }

    /// The lineage that goes into every message.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// How much the standby does not have. Computed, never stored.
    pub fn backlog(&self, tracker: &Tracker) -> Backlog {
        let frozen = match &self.cut {
            Cut::None => (0, 0),
            Cut::Closing(..) => (tracker.frozen().len(), tracker.frozen().len()),
            Cut::Frozen(frozen) => (frozen.unsent.len(), frozen.changed.len()),
        };
        let holes: u64 = self.holes.unsent().iter().map(|run| u64::from(run.len)).sum();
        let asked: u64 = self.asked.values().map(RoaringBitmap::len).sum();
        let pending: u64 = self.pending.iter().map(|pending| pending.changed.len()).sum();
        let unsent_blocks = tracker.open().len() + frozen.0;
        let in_doubt_blocks = tracker.open().len() + frozen.1 + holes + self.early.len() + asked + pending + self.owed_blocks.len();
        Backlog { unsent_blocks, in_doubt_blocks }
    }

    /// Whether everything that was written is acknowledged. Computed, never stored.
    pub fn is_drained(&self, tracker: &Tracker) -> bool {
        self.known.is_some() && self.backlog(tracker).in_doubt_blocks == 0
    }

    /// Whether what is left to send is small enough for an epoch, and the standby has a recovery point to add it to. Where cuts are made only when
    /// asked for: whether each one that was asked for is there.
    pub fn is_converged(&self, tracker: &Tracker, now_ms: u64) -> bool {
        let comparing = !self.compare_first.is_empty() || !self.asked.is_empty() || !self.holes.unsent().is_empty();
        let known = self.known.is_some() && self.mark_base.is_none();
        let idle = || !self.cut_requested && matches!(self.cut, Cut::None) && self.pending.is_empty();
        let asked = self.settings.cuts == Cuts::Asked && idle();
        known
            && !comparing
            && (asked || self.settings.cuts == Cuts::InTime && self.pace.fits_a_cut(&self.settings, tracker.open().len(), now_ms))
    }

    /// The operator wants something else.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Asks for a cut as soon as one is possible, whether or not it is due.
    pub fn request_cut(&mut self) {
        self.cut_requested = true;
    }

    /// The volume has this size: it may have grown. The epoch that is cut next carries it, soon.
    pub fn handle_resized(&mut self, size_bytes: u64) {
        if size_bytes > self.size_bytes {
            self.size_bytes = size_bytes;
            self.cut_requested = true;
        }
    }

    /// A stream is there.
    pub fn handle_connected(&mut self, now_ms: u64) {
        self.phase = Phase::Attaching;
        self.pace.handle_connected(now_ms);
        self.gauge.handle_connected();
        let attach = Attach { volume: self.volume, size_bytes: self.size_bytes, lineage: self.lineage.clone() };
        self.outgoing = VecDeque::from([Message::Attach(attach)]);
    }

    /// The stream broke. What was sent early counts as changed again, and may be there already.
    pub fn handle_disconnected(&mut self, tracker: &Tracker) {
        if !matches!(self.phase, Phase::Refused(_)) {
            self.phase = Phase::Offline;
        }
        self.outgoing.clear();
        self.holes = Holes::default();
        self.mark_base = None;
        self.pace.handle_disconnected();
        self.abandon(tracker);
    }

    /// A message from the standby. `Err` says that it breaks the protocol: close the stream.
    pub fn handle_message(&mut self, tracker: &Tracker, message: Message, now_ms: u64) -> Result<(), &'static str> {
        match (message, &self.phase) {
            (Message::Attached(attached), Phase::Attaching) => {
                self.handle_attached(tracker, attached);
                Ok(())
            }
            (Message::Refused(refused), _) => {
                // A copy that will not have us, and is not merely short of room, is no copy of ours.
                self.has_point &= refused.reason == Refusal::Storage;
                self.phase = Phase::Refused(refused);
                Ok(())
            }
            (Message::Compared(compared), Phase::Online) => self.handle_compared(tracker, compared, now_ms),
            (Message::Committed(epoch), Phase::Online) => self.handle_committed(epoch, now_ms),
            (Message::Damaged(runs), Phase::Online) => self.handle_damaged(tracker, &runs),
            _ => Err("the message does not belong here"),
        }
    }

    /// Whether the standby knows a later generation than ours: then this site must stop acknowledging, at once.
    pub fn is_superseded(&self) -> bool {
        let Phase::Refused(refused) = &self.phase else { return false };
        refused.reason == Refusal::SplitBrain || matches!(self.lineage.relation(&refused.lineage), Relation::TheirsAhead(_))
    }

    fn handle_attached(&mut self, tracker: &Tracker, attached: Attached) {
        self.phase = Phase::Online;
        self.told_bytes = None;
        let same = |known: Known| known.replica.is_none_or(|replica| replica == attached.replica) && attached.committed >= known.acked;
        let usable = self.known.is_some_and(same);
        self.has_point = usable && attached.base == Base::Point;
        let base = match attached.base {
            Base::Blank => Some(MarkBase::Allocated),
            Base::Point | Base::PointBut(_) if !usable => Some(MarkBase::Everything),
            Base::Unfinished => Some(MarkBase::Everything),
            Base::Point => None,
            Base::PointBut(mut blocks) => {
                // The copy may be of a larger volume: of an old primary that grew before it was overtaken.
                blocks &= self.all_blocks();
                tracker.mark(&blocks, None);
                self.compare_first |= blocks;
                None
            }
        };
        // The standby's durable commit number decides which of the epochs under way arrived.
        while let Some(pending) = self.pending.pop_front() {
            if base.is_none() && pending.epoch <= attached.committed {
                continue;
            }
            self.cut_requested |= self.settings.cuts == Cuts::Asked;
            self.mark_again(tracker, &pending.changed, pending.oldest_ms);
        }
        match base {
            None => self.known = Some(Known { replica: Some(attached.replica), acked: attached.committed }),
            Some(_) => self.known = None,
        }
        self.settle_owed(tracker, attached.committed);
        self.pace.set_replica(attached.replica);
        self.mark_base = base;
    }

    /// The allocated blocks, asked for by [`Action::FindAllocated`]. Writes since then are marked by themselves.
    pub fn handle_allocated(&mut self, tracker: &Tracker, allocated: &RoaringBitmap) {
        tracker.mark(allocated, None);
        self.gauge.handle_marked();
        if self.mark_base.take() == Some(MarkBase::Everything) {
            self.compare_first |= allocated;
            let free = self.all_blocks() - allocated;
            self.holes = Holes::new(&free);
        }
    }

    fn handle_compared(&mut self, tracker: &Tracker, compared: Compared, now_ms: u64) -> Result<(), &'static str> {
        // What breaks the protocol changes nothing: the blocks stay where they are, and come again.
        let asked = self.asked.get(&compared.ticket).ok_or("an answer to a question that was not asked")?;
        let mut different = RoaringBitmap::new();
        for run in compared.different {
            if !asked.contains_range(run.blocks()) {
                return Err("an answer about blocks that were not asked about");
            }
            different.insert_range(run.blocks());
        }
        self.gauge.handle_gone((asked.len() - different.len()) * BLOCK_BYTES as u64, 0, now_ms);
        self.early |= asked - &different;
        self.asked.remove(&compared.ticket);
        tracker.mark(&different, None);
        Ok(())
    }

    fn handle_committed(&mut self, epoch: Epoch, now_ms: u64) -> Result<(), &'static str> {
        let first = self.pending.pop_front_if(|first| first.epoch == epoch).ok_or("a commit that was not asked for, or out of order")?;
        self.known = Some(Known { replica: self.pace.replica(), acked: epoch });
        self.has_point = true;
        self.of_unknown_age = false;
        self.pace.handle_committed(&first, now_ms);
        self.gauge.handle_committed(epoch, now_ms);
        Ok(())
    }

    /// Blocks were read, encoded and handed to the stream.
    pub fn handle_shipped(&mut self, blocks: &Blocks, now_ms: u64) {
        self.digest.add(blocks);
        self.pace.handle_enqueued(blocks.payload.len() as u64, now_ms);
        self.gauge.handle_shipped(blocks, now_ms);
    }

    /// The network took bytes that were handed to it.
    pub fn handle_written(&mut self, len_bytes: u64, now_ms: u64) {
        self.pace.handle_written(len_bytes, now_ms);
        self.gauge.handle_written(len_bytes, now_ms);
    }

    /// The cut that was asked for is done.
    pub fn handle_cut(&mut self, epoch: Epoch, now_ms: u64) {
        self.cut = Cut::Closing(epoch, self.size_bytes);
        (self.cut_requested, self.cut_with) = (false, None);
        self.pace.handle_cut(now_ms);
        self.gauge.handle_cut(epoch, now_ms);
    }

    /// The epoch that was cut has closed; `changed` is what was not sent early.
    pub fn handle_frozen(&mut self, tracker: &Tracker, changed: RoaringBitmap, unix_ms: u64) {
        let Cut::Closing(epoch, size_bytes) = self.cut else { return };
        let all = std::mem::take(&mut self.early) | &changed;
        let oldest_ms = tracker.frozen_oldest_ms();
        let (group, cut_unix_ms) = self.cut_with.take().map_or((None, unix_ms), |(cut, unix_ms)| (Some(cut), unix_ms));
        self.cut = Cut::Frozen(Frozen { epoch, unsent: changed, changed: all, oldest_ms, cut_unix_ms, group, size_bytes });
        if self.phase != Phase::Online {
            self.abandon(tracker);
        }
    }

    /// Content of the frozen epoch could not be kept: it is given up, and comes again with a later one.
    pub fn handle_overflow(&mut self, tracker: &Tracker) {
        self.pace.handle_overflow();
        self.abandon(tracker);
        if self.phase == Phase::Online {
            self.outgoing.push_back(Message::Abandon);
            self.compare_first.clear();
            self.holes.send_again();
        }
    }

    /// Gives up what is not committed under way: everything of it is marked in the open epoch before it is let go. A cut that was asked for is
    /// made anew.
    fn abandon(&mut self, tracker: &Tracker) {
        let sent = std::mem::take(&mut self.early);
        let asked = std::mem::take(&mut self.asked).into_values();
        let sent = asked.fold(sent, |all, asked| all | asked);
        self.mark_again(tracker, &sent, None);
        // An epoch that is closing stays so until its last write has finished: only then is it known what changed.
        if let Cut::Frozen(frozen) = &mut self.cut {
            let (changed, oldest_ms) = (std::mem::take(&mut frozen.changed), frozen.oldest_ms);
            self.mark_again(tracker, &changed, oldest_ms);
            self.cut_requested |= self.settings.cuts == Cuts::Asked;
            self.cut = Cut::None;
            tracker.thaw();
        }
        self.digest = EpochDigest::default();
    }

    fn mark_again(&mut self, tracker: &Tracker, blocks: &RoaringBitmap, oldest_ms: Option<u64>) {
        tracker.mark(blocks, oldest_ms);
        self.gauge.handle_marked();
        self.compare_first |= blocks;
    }
}

#[cfg(test)]
mod tests;
