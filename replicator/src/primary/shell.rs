//! The thread that owns a sender: takes inputs, asks it what to do, does that.

use super::acknowledging::Acknowledging;
use super::group::{Made, Seat};
use super::memory::{load_point, load_promise, remember_known};
use super::scheduling::Scheduling;
use super::verify::{TICKET_BIT, Verification};
use super::{Input, OnCut, Outgoing, PrimaryStatus, Remains, ReplicaError, Session, Setup, read};
use crate::clock::unix_ms;
use crate::codec::Encoder;
use crate::counters;
use bytes::Bytes;
use replicator_engine::acknowledgement::{Promise, TURN_US};
use replicator_engine::block::Run;
use replicator_engine::schedule::Clock;
use replicator_engine::sender::{Action, Known, Phase, Sender};
use replicator_engine::tracker::{Epoch, Tracker};
use replicator_engine::wire::{Against, Blocks, Compare, Compared, Content, Envelope, Message};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// The longest nap: writes are stamped with the time of the last one.
const TICK: Duration = Duration::from_millis(50);
/// The clock begins here: 0 would mean never.
const FIRST_MS: u64 = 1;
/// How often the status is published while there is work.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(20);
/// How long a cut waits before it is tried again.
const CLOSING_NAP: Duration = Duration::from_millis(1);
/// How often extents of the activity log may cool, and totals are stored.
const COOL_INTERVAL: Duration = Duration::from_secs(10);

/// Somebody who waits until what is written now is at the standby.
pub(super) struct Snapshot {
    /// The epoch that has it; `None` until it is cut.
    pub(super) epoch: Option<Epoch>,
    pub(super) on_cut: OnCut,
    reply: oneshot::Sender<Result<Epoch, ReplicaError>>,
}

/// The thread's clock.
pub(super) fn millis_since(started: Instant) -> u64 {
    started.elapsed().as_millis() as u64 + FIRST_MS
}

/// See the module's documentation.
pub(super) struct Shell {
    pub(super) setup: Setup,
    /// The volume's, as this standby's lane sees it.
    pub(super) tracker: Tracker,
    pub(super) sender: Sender,
    pub(super) acknowledging: Acknowledging,
    pub(super) scheduling: Scheduling,
    encoder: Encoder,
    connection: Option<(Session, mpsc::UnboundedSender<Outgoing>)>,
    /// Of the link, as it was when something was sent last.
    pub(super) round_trip: Duration,
    /// Blocks that were asked about, by ticket.
    asked: HashMap<u64, u64>,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) verification: Option<Verification>,
    /// The next ticket of a verification: none is used again.
    pub(super) verify_tickets: u64,
    /// When each epoch that is under way was cut, by both clocks.
    pub(super) cut_times: VecDeque<(Epoch, Instant, u64)>,
    /// Its place in a group.
    pub(super) seat: Option<Seat>,
    /// A cut that was made with the group, and that the sender has not heard of.
    pub(super) made: Option<Made>,
    stored: Option<Known>,
    status: watch::Sender<PrimaryStatus>,
    published: Instant,
    cooled: Instant,
    pub(super) started: Instant,
    error: Option<String>,
}

impl Shell {
    pub(super) fn new(setup: Setup, status: watch::Sender<PrimaryStatus>) -> io::Result<Self> {
        let compare_first = setup.compare_first.clone();
        let size_bytes = setup.image.size_bytes();
        let tracker = setup.intake.tracker_of(setup.lane).clone();
        let mut sender = Sender::new(setup.orders.settings, setup.volume, size_bytes, setup.lineage.clone(), setup.known, compare_first);
        let mut setup = setup;
        sender.handle_promoted(&tracker, std::mem::take(&mut setup.owed));
        if !tracker.open().is_empty() {
            sender.forget_ages();
        }
        let recorded = load_promise(&*setup.catalogue, &setup.promise_key)?;
        let mut scheduling = Scheduling::new(load_point(&*setup.catalogue, &setup.point_key)?);
        scheduling.set(setup.orders.schedule.clone(), Clock { now_ms: FIRST_MS, unix_ms: unix_ms() });
        let (now, encoder) = (Instant::now(), Encoder::with_bases(setup.bases.clone())?);
        Ok(Self {
            stored: setup.known,
            acknowledging: Acknowledging::new(setup.orders.rules, recorded),
            scheduling,
            setup,
            tracker,
            sender,
            encoder,
            connection: None,
            round_trip: Duration::ZERO,
            asked: HashMap::new(),
            snapshots: Vec::new(),
            verification: None,
            verify_tickets: TICKET_BIT,
            cut_times: VecDeque::new(),
            seat: None,
            made: None,
            status,
            published: now,
            cooled: now,
            started: now,
            error: None,
        })
    }

    /// What requests meet from the start.
    pub(super) fn in_force(&self) -> Promise {
        self.acknowledging.status.in_force
    }

    pub(super) fn run(mut self, inputs: &Receiver<Input>) -> Remains {
        let mut nap = Duration::ZERO;
        loop {
            let mut next = match inputs.recv_timeout(nap) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.tracker.set_now(self.now_ms());
            let mut stop = false;
            while let Some(input) = next {
                stop |= matches!(input, Input::Stop);
                self.handle(input);
                next = inputs.try_recv().ok();
            }
            if stop {
                break;
            }
            nap = self.work();
        }
        self.setup.intake.held().let_go(self.setup.lane, self.safe());
        self.remains()
    }

    fn now_ms(&self) -> u64 {
        millis_since(self.started)
    }

    fn handle(&mut self, input: Input) {
        let now_ms = self.now_ms();
        match input {
            Input::Connected(session, sink) => {
                self.disconnect();
                self.connection = Some((session, sink));
                self.sender.handle_resized(self.setup.image.size_bytes());
                self.sender.handle_connected(now_ms);
                self.cut_again();
            }
            Input::Disconnected(session) if self.is_current(session) => self.disconnect(),
            Input::Frame(session, frame, _place) if self.is_current(session) => {
                if let Err(problem) = self.handle_frame(frame, now_ms) {
                    tracing::warn!(volume = %self.setup.volume, problem, "replication: the standby breaks the protocol");
                    self.disconnect();
                }
            }
            Input::Written(session, bytes, round_trip) if self.is_current(session) => {
                self.round_trip = round_trip;
                self.sender.handle_written(bytes, now_ms);
            }
            Input::Snapshot(on_cut, reply) => {
                self.sender.request_cut();
                self.snapshots.push(Snapshot { epoch: None, on_cut, reply });
            }
            Input::Verify(progress, rate, reply) => self.begin_verify(progress, rate, reply),
            // Whoever asked may have left.
            Input::Behind(run, reply) => drop(reply.try_send(self.sender.behind(&self.tracker, run))),
            Input::Resized(size_bytes) => self.sender.handle_resized(size_bytes),
            Input::Orders(orders) => {
                self.sender.set_settings(orders.settings);
                self.acknowledging.set_rules(orders.rules);
                self.scheduling.set(orders.schedule.clone(), Clock { now_ms, unix_ms: unix_ms() });
                self.setup.orders = orders;
            }
            Input::Seat(seat) => self.sit(seat),
            Input::CutWanted => self.sender.request_cut(),
            Input::Held | Input::Disconnected(_) | Input::Frame(..) | Input::Written(..) | Input::Stop => {}
        }
    }

    fn is_current(&self, session: Session) -> bool {
        self.connection.as_ref().is_some_and(|(current, _)| *current == session)
    }

    /// Lets the connection go, if there is one: its task sees its end of the channel close.
    fn disconnect(&mut self) {
        if self.connection.take().is_some() {
            self.sender.handle_disconnected(&self.tracker);
            self.encoder.forget_history();
            self.seat.iter().for_each(Seat::handle_broken);
            self.asked.clear();
            if let Some(verification) = &mut self.verification {
                verification.handle_disconnected();
            }
        }
    }

    fn handle_frame(&mut self, frame: Bytes, now_ms: u64) -> Result<(), &'static str> {
        let message = Envelope::decode(frame).map_err(|_| "a frame that is no message")?.message;
        if let Message::Compared(compared) = &message {
            if Verification::is_ticket(compared.ticket) {
                return self.handle_verified(compared);
            }
            self.count_duplicates(compared);
        }
        self.encoder.handle_answer(&message);
        self.sender.handle_message(&self.tracker, message, now_ms)?;
        if self.sender.known() != self.stored {
            self.remember();
        }
        if matches!(self.sender.phase(), Phase::Refused(_)) {
            // The sender remembers why; marking again what was under way is the same as for a broken connection.
            self.disconnect();
        }
        Ok(())
    }

    fn count_duplicates(&mut self, compared: &Compared) {
        let asked = self.asked.remove(&compared.ticket).unwrap_or(0);
        let different: u64 = compared.different.iter().map(|run| u64::from(run.len)).sum();
        counters::add(&self.setup.counters.duplicate_blocks, asked.saturating_sub(different));
    }

    fn remember(&mut self) {
        let known = self.sender.known();
        if let Err(error) = remember_known(&*self.setup.catalogue, &self.setup.known_key, &mut self.stored, known) {
            return self.failed(&error);
        }
        let Some(acked) = known.map(|known| known.acked) else { return };
        self.seat.iter().for_each(|seat| seat.handle_acked(acked));
        while let Some((epoch, cut, cut_unix_ms)) = self.cut_times.pop_front_if(|(epoch, ..)| *epoch <= acked) {
            if epoch == acked {
                (self.setup.on_commit)(cut.elapsed());
                self.note_point(epoch, cut_unix_ms);
            }
        }
        for snapshot in std::mem::take(&mut self.snapshots) {
            match snapshot.epoch {
                Some(epoch) if epoch <= acked => drop(snapshot.reply.send(Ok(epoch))),
                _ => self.snapshots.push(snapshot),
            }
        }
    }

    /// What was cut may have been given up: whoever waits gets another cut.
    fn cut_again(&mut self) {
        self.snapshots.retain(|snapshot| !snapshot.reply.is_closed());
        if !self.snapshots.is_empty() {
            self.snapshots.iter_mut().for_each(|snapshot| snapshot.epoch = None);
            self.sender.request_cut();
        }
    }

    /// Does one thing, and says how long there is nothing to do.
    fn work(&mut self) -> Duration {
        let now_ms = self.now_ms();
        if self.setup.intake.kept(self.setup.lane).overflowed() {
            self.sender.handle_overflow(&self.tracker);
            self.seat.iter().for_each(Seat::handle_broken);
            self.setup.intake.thaw(self.setup.lane);
            self.cut_again();
        }
        if self.cooled.elapsed() >= COOL_INTERVAL {
            self.cooled = Instant::now();
            self.tidy_up();
        }
        self.acknowledge(now_ms);
        self.keep_time(Clock { now_ms, unix_ms: unix_ms() });
        let action = self.sender.poll(&self.tracker, now_ms);
        if action == Action::Cut && !self.setup.intake.may_cut(self.setup.lane) {
            // Another standby's epoch is closing, or is to be the last one.
            self.publish();
            return CLOSING_NAP;
        }
        let action = match self.in_step(action) {
            Ok(action) => action,
            Err(error) => {
                self.failed(&error);
                return Duration::ZERO;
            }
        };
        if let Action::Wait(until_ms) = action {
            let longest = if self.acknowledging.is_telling { Duration::from_micros(TURN_US) } else { TICK };
            let nap = if self.verify_some() { Duration::ZERO } else { longest.min(Duration::from_millis(until_ms.saturating_sub(now_ms))) };
            self.publish();
            return nap;
        }
        match self.act(action, now_ms) {
            Ok(()) => self.error = None,
            Err(error) => self.failed(&error),
        }
        if self.published.elapsed() >= PUBLISH_INTERVAL {
            self.publish();
        }
        Duration::ZERO
    }

    fn failed(&mut self, error: &io::Error) {
        tracing::error!(volume = %self.setup.volume, %error, "replication: this side failed; it is tried again");
        self.error = Some(error.to_string());
        self.disconnect();
    }

    fn act(&mut self, action: Action, now_ms: u64) -> io::Result<()> {
        let image = &*self.setup.image;
        match action {
            Action::Send(message) => {
                if let Message::Blocks(blocks) = &message {
                    self.count(blocks);
                }
                self.send(message, 0);
            }
            Action::FindAllocated => {
                let allocated = read::allocated(image)?;
                self.sender.handle_allocated(&self.tracker, &allocated);
            }
            Action::ShipOpen(runs) => {
                let content = read::open(image, &runs)?;
                self.ship(&runs, &content, now_ms);
            }
            Action::ShipFrozen(runs) => {
                let content = read::frozen(image, &self.tracker, self.setup.intake.kept(self.setup.lane), &runs)?;
                self.ship(&runs, &content, now_ms);
            }
            Action::Ask(ticket, runs) => {
                let mut question = Compare::new(ticket, Against::Epoch);
                read::ask(image, &mut question, &runs)?;
                self.asked.insert(ticket, runs.iter().map(|run| u64::from(run.len)).sum());
                self.send(Message::Compare(question), 0);
            }
            Action::Cut => self.cut(now_ms)?,
            Action::Freeze => {
                if let Some(changed) = self.setup.intake.try_freeze(self.setup.lane) {
                    self.sender.handle_frozen(&self.tracker, changed, unix_ms());
                }
            }
            Action::Wait(_) => {}
        }
        Ok(())
    }

    fn ship(&mut self, runs: &[Run], content: &[u8], now_ms: u64) {
        let blocks = self.encoder.encode_with(runs, content, self.sender.effort.compression());
        self.sender.effort.handle_encoded(content.len() as u64, Encoder::spent_us(), now_ms);
        self.sender.handle_shipped(&blocks, now_ms);
        self.count(&blocks);
        let payload_bytes = blocks.payload.len() as u64;
        self.send(Message::Blocks(blocks), payload_bytes);
    }

    fn count(&self, blocks: &Blocks) {
        for (run, content) in &blocks.runs {
            let counter = match content {
                Content::Zero => &self.setup.counters.zero_blocks,
                Content::Data => &self.setup.counters.full_blocks,
                Content::Delta => &self.setup.counters.delta_blocks,
            };
            counters::add(counter, u64::from(run.len));
        }
    }

    pub(super) fn send(&mut self, message: Message, payload_bytes: u64) {
        self.encoder.handle_sending(&message);
        let Some((_, sink)) = &self.connection else { return };
        let frame = Envelope { generation: self.sender.lineage().current(), message }.encode();
        // A connection that ended says so through the inbox.
        let _ = sink.send(Outgoing { frame, payload_bytes });
    }

    /// Lets extents cool whose content is at the standby and durable here, stores the totals, gives back memory.
    fn tidy_up(&mut self) {
        self.encoder.forget_idle_history();
        let setup = &self.setup;
        if let Err(error) = setup.counters.store(&*setup.catalogue, setup.volume) {
            tracing::warn!(volume = %setup.volume, %error, "the catalogue cannot be written");
        }
        let hot = setup.intake.log().hot();
        if *self.sender.phase() != Phase::Online || hot.is_empty() {
            return;
        }
        // The standby's acknowledgements do not move meanwhile: this thread handles them.
        let cooled = setup.image.sync().and_then(|()| setup.intake.cool(setup.lane, &self.sender.unacknowledged()));
        if let Err(error) = cooled {
            tracing::warn!(volume = %setup.volume, %error, "activity log: nothing cooled");
        }
    }

    fn publish(&mut self) {
        self.published = Instant::now();
        let tracker = &self.tracker;
        let now_ms = self.now_ms();
        let known = self.sender.known();
        let phase = self.sender.phase().clone();
        self.sender.gauge.set_limit(*self.setup.limit.borrow());
        let clients_bytes = counters::read(&self.setup.counters.changed_bytes);
        let outlook = self.sender.outlook(tracker, clients_bytes, self.round_trip.as_millis() as u64, now_ms);
        let mut status = PrimaryStatus {
            refused: match &phase {
                Phase::Refused(refused) => Some(refused.clone()),
                Phase::Online => None,
                Phase::Offline | Phase::Attaching => self.status.borrow().refused.clone(),
            },
            superseded: self.sender.is_superseded(),
            known,
            open_epoch: tracker.open_epoch(),
            backlog: self.sender.backlog(tracker),
            rpo_ms: self.sender.rpo_ms(tracker, now_ms),
            converged: self.sender.is_converged(tracker, now_ms),
            outlook,
            error: self.error.clone(),
            promise: self.acknowledging.status,
            point_unix_ms: known.and(self.scheduling.point_unix_ms),
            next_cut_unix_ms: self.scheduling.next_unix_ms(),
            dues: self.scheduling.dues,
            phase,
        };
        self.status.send_if_modified(|old| {
            std::mem::swap(old, &mut status);
            *old != status
        });
    }

    fn remains(self) -> Remains {
        let tracker = &self.tracker;
        let mut changed = self.sender.unacknowledged();
        changed |= tracker.open().snapshot();
        changed |= tracker.frozen().snapshot();
        if let Err(error) = self.setup.counters.store(&*self.setup.catalogue, self.setup.volume) {
            tracing::warn!(volume = %self.setup.volume, %error, "the catalogue cannot be written");
        }
        Remains { changed, known: self.sender.known() }
    }
}
