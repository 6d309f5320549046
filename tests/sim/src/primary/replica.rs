//! What a primary has for one of its standbys: the real sender, and what the standby's thread does around it.

use super::{Ended, Primary, Scene};
use crate::plant::Plant;
use crate::standby::VOLUME;
use crate::storage::Storage;
use bytes::Bytes;
use replicator::codec::{BasesMemory, Encoder};
use replicator::disk::BlockDevice;
use replicator::intake::Intake;
use replicator::primary::{memory, read};
use replicator_engine::acknowledgement::{Policy, Rules};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::history::History;
use replicator_engine::sender::{Action, Cuts, Known, Phase, Sender, Settings};
use replicator_engine::tracker::{Epoch, LaneId, Tracker};
use replicator_engine::wire::{Against, Compare, Envelope, Message, Refused};
use roaring::RoaringBitmap;
use std::io;

/// What a byte counts where it is decided how hard content is compressed.
const CONTENT_WEIGHT: u64 = 16;

/// Whom a volume is replicated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// One standby: whichever is met.
    Any,
    /// The one at this site, of several.
    At(usize),
}

impl Peer {
    /// Its site, as keys have it.
    pub fn key(self) -> String {
        match self {
            Self::Any => "SITE".into(),
            Self::At(site) => format!("SITE{site}"),
        }
    }

    /// Whether it is the one at this site.
    pub fn is_at(self, site: usize) -> bool {
        self == Self::Any || self == Self::At(site)
    }
}

/// The key of what the standby is known to have.
pub fn known_key(peer: Peer) -> Vec<u8> {
    memory::known_key(VOLUME, &peer.key())
}

pub(super) fn promise_key(peer: Peer) -> Vec<u8> {
    memory::promise_key(VOLUME, &peer.key())
}

/// What is known of a standby when its replica starts.
#[derive(Default)]
pub struct Base {
    pub known: Option<Known>,
    /// What changed since.
    pub marked: RoaringBitmap,
    /// Whether that is a guess.
    pub compare: bool,
    /// What changed here before this site was promoted, and the standby may lack.
    pub owed: History,
}

/// See the module's documentation.
pub struct Replica {
    pub peer: Peer,
    pub(super) lane: LaneId,
    pub(super) tracker: Tracker,
    pub(super) sender: Sender,
    pub(super) policy: Policy,
    encoder: Encoder,
    stored: Option<Known>,
}

fn settings(cuts: Cuts) -> Settings {
    Settings { cuts, rpo_ms: 400, window_bytes: 64 << 10, small_cut_bytes: 16 * BLOCK_BYTES as u64, ..Settings::default() }
}

/// What all volumes of a process have spent on compressing by then: nearly all of a core in each third second.
fn compressing_us(now_ms: u64) -> u64 {
    (now_ms / 3000 * 1000 + (now_ms % 3000).saturating_sub(2000)) * 900
}

impl Replica {
    pub(super) fn start(
        storage: &Storage,
        lineage: Lineage,
        rules: Rules,
        intake: &Intake,
        (peer, lane): (Peer, LaneId),
        base: Base,
    ) -> io::Result<Self> {
        let Base { known, marked, compare, owed } = base;
        let (size_bytes, tracker) = (storage.image.size_bytes(), intake.tracker_of(lane).clone());
        tracker.mark(&marked, Some(1).filter(|_| !marked.is_empty()));
        let compare_first = if compare { marked } else { RoaringBitmap::new() };
        let mut sender = Sender::new(settings(Cuts::InTime), VOLUME, size_bytes, lineage, known, compare_first);
        sender.handle_promoted(&tracker, owed);
        let recorded = super::recorded_promise(&*storage.catalogue, peer)?;
        intake.held().open(lane, recorded, Box::new(|| {}));
        let (policy, encoder) = (Policy::new(rules, recorded), Encoder::with_bases(BasesMemory::new([1 << 20; 2]))?);
        Ok(Self { peer, lane, tracker, sender, policy, encoder, stored: known })
    }

    /// What the standby acknowledged.
    pub fn known(&self) -> Option<Known> {
        self.sender.known()
    }

    /// The copy that the standby has, and its last recovery point.
    pub fn safe(&self) -> Option<(Id, Epoch)> {
        Some((self.known()?.replica?, self.sender.safe()?))
    }

    /// Whether it is attached.
    pub fn is_online(&self) -> bool {
        *self.sender.phase() == Phase::Online
    }

    /// Why the standby will not have it.
    pub fn refused(&self) -> Option<&Refused> {
        if let Phase::Refused(refused) = self.sender.phase() { Some(refused) } else { None }
    }

    /// Whether the standby knows a later generation.
    pub fn is_superseded(&self) -> bool {
        self.sender.is_superseded()
    }

    /// Whether this copy, which is attached, acknowledged everything.
    pub(super) fn is_drained_to(&self, replica: Option<Id>) -> bool {
        let known = self.known().and_then(|known| known.replica);
        self.is_online() && replica.is_some() && known == replica && self.sender.is_drained(&self.tracker)
    }

    /// What the standby lacks.
    pub(super) fn lacks(&self) -> RoaringBitmap {
        self.sender.unacknowledged() | self.tracker.open().snapshot() | self.tracker.frozen().snapshot()
    }

    /// Whether the standby acknowledged the last write to this block.
    pub fn has(&self, block: BlockNumber) -> bool {
        self.is_online() && self.sender.behind(&self.tracker, Run { start: block, len: 1 }).is_empty()
    }

    /// Tells the sender how large the volume is.
    pub(super) fn tell_size(&mut self, size_bytes: u64) {
        self.sender.handle_resized(size_bytes);
    }

    /// The operator wants another mode.
    pub fn set_rules(&mut self, rules: Rules, cuts: Cuts) {
        self.policy.set_rules(rules);
        self.sender.set_settings(settings(cuts));
    }

    /// The operator, or the clock, asks for a cut.
    pub fn ask_for_cut(&mut self) {
        self.sender.request_cut();
    }

    /// A stream to the standby is there.
    pub(super) fn connect(&mut self, size_bytes: u64, now_ms: u64, plant: Option<Plant>) {
        if plant != Some(Plant::KeepSentContent) {
            self.encoder.forget_history();
        }
        self.tell_size(size_bytes);
        self.sender.handle_connected(now_ms);
    }

    /// What was sent is no history for what follows, if nothing was sent for a while.
    pub(super) fn rest(&mut self) {
        self.encoder.forget_idle_history();
    }

    /// The stream broke.
    pub fn disconnect(&mut self) {
        self.sender.handle_disconnected(&self.tracker);
    }

    /// A message came. `Err` says that the stream ends.
    pub(super) fn receive(&mut self, storage: &Storage, message: Message, now_ms: u64) -> Result<(), Ended> {
        self.encoder.handle_answer(&message);
        self.sender.handle_message(&self.tracker, message, now_ms).map_err(Ended::Protocol)?;
        let (key, known) = (known_key(self.peer), self.sender.known());
        memory::remember_known(&*storage.catalogue, &key, &mut self.stored, known).map_err(|_| Ended::Disk)?;
        if self.refused().is_some() { Err(Ended::Refused) } else { Ok(()) }
    }

    /// Writes are few and small here: that content is compressed harder or less hard takes a few of them.
    fn ship(&mut self, runs: &[Run], content: &[u8], now_ms: u64) -> Bytes {
        let blocks = self.encoder.encode_with(runs, content, self.sender.effort.compression());
        self.sender.effort.handle_encoded(content.len() as u64 * CONTENT_WEIGHT, compressing_us(now_ms), now_ms);
        self.sender.handle_shipped(&blocks, now_ms);
        self.sender.handle_written(blocks.payload.len() as u64, now_ms);
        self.frame(Message::Blocks(blocks))
    }

    fn frame(&mut self, message: Message) -> Bytes {
        self.encoder.handle_sending(&message);
        Envelope { generation: self.sender.lineage().current(), message }.encode()
    }
}

impl Primary {
    /// Lets the sender of a standby do up to `steps` things; the frames that it sends are put in `frames`. An error says that this side's disk
    /// failed.
    pub fn run(&mut self, at: usize, scene: &mut Scene<'_>, steps: usize, frames: &mut Vec<Bytes>) -> io::Result<()> {
        let now_ms = scene.now_ms;
        for _ in 0..steps {
            let Replica { lane, tracker, sender, .. } = &mut self.replicas[at];
            tracker.set_now(now_ms);
            if self.intake.kept(*lane).overflowed() {
                sender.handle_overflow(tracker);
                self.intake.thaw(*lane);
            }
            self.acknowledge(at, scene);
            let Replica { lane, tracker, sender, .. } = &mut self.replicas[at];
            let action = sender.poll(tracker, now_ms);
            // Another standby's epoch may be closing, or is to be the last one: then the cut waits.
            if matches!(action, Action::Wait(_)) || action == Action::Cut && !self.intake.may_cut(*lane) {
                break;
            }
            frames.extend(self.act(at, action, scene)?);
        }
        Ok(())
    }

    fn act(&mut self, at: usize, action: Action, scene: &mut Scene<'_>) -> io::Result<Option<Bytes>> {
        let now_ms = scene.now_ms;
        let (image, replica) = (&*self.storage.image, &mut self.replicas[at]);
        match action {
            Action::Send(message) => return Ok(Some(replica.frame(message))),
            Action::FindAllocated => {
                let allocated = read::allocated(image)?;
                replica.sender.handle_allocated(&replica.tracker, &allocated);
            }
            Action::ShipOpen(runs) => {
                let content = read::open(image, &runs)?;
                return Ok(Some(replica.ship(&runs, &content, now_ms)));
            }
            Action::ShipFrozen(runs) => {
                let content = read::frozen(image, &replica.tracker, self.intake.kept(replica.lane), &runs)?;
                return Ok(Some(replica.ship(&runs, &content, now_ms)));
            }
            Action::Ask(ticket, runs) => {
                let mut question = Compare::new(ticket, Against::Epoch);
                read::ask(image, &mut question, &runs)?;
                return Ok(Some(replica.frame(Message::Compare(question))));
            }
            Action::Cut => {
                self.epochs.cover(replica.tracker.open_epoch() + 1)?;
                let epoch = self.intake.cut(replica.lane).expect("no other epoch is closing");
                self.cuts.cut(epoch, image.size_bytes());
                replica.tell_size(image.size_bytes());
                replica.sender.handle_cut(epoch, now_ms);
                self.forget_elsewhere(at);
            }
            Action::Freeze => self.freeze(at, scene),
            Action::Wait(_) => {}
        }
        Ok(None)
    }

    /// A planted bug: what changed is forgotten in the lanes of other standbys.
    fn forget_elsewhere(&self, at: usize) {
        if self.storage.faults.plant() == Some(Plant::ForgetInOtherLane) {
            for (_, other) in self.replicas.iter().enumerate().filter(|(other, _)| *other != at) {
                let open = other.tracker.open();
                open.next(0).map(|block| open.clear(block));
            }
        }
    }

    fn freeze(&mut self, at: usize, scene: &mut Scene<'_>) {
        let replica = &mut self.replicas[at];
        let Some(mut changed) = self.intake.try_freeze(replica.lane) else { return };
        if self.storage.faults.plant() == Some(Plant::ForgetDirtyBit)
            && let Some(first) = changed.min()
        {
            changed.remove(first);
        }
        let epoch = replica.tracker.first_open() - 1;
        let cut = self.cuts.freeze(epoch, &replica.tracker);
        scene.history.frozen(self.lineage.current().id, epoch, cut);
        replica.sender.handle_frozen(&replica.tracker, changed, scene.unix_ms);
    }
}
