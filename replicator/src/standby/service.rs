//! The thread that owns a standby: frames in, answers out, folding in between.

use super::grouped::Patience;
use super::scrubbing::{Asked, Scrub, ScrubBudget, ScrubPace};
use super::trouble::{Trouble, Work};
use super::views::{Ask, Views};
use super::{Board, GroupPlace, Health, PastError, Place, Rollback, Settled, Standby, StandbyStatus};
use crate::clock::unix_ms;
use crate::disk::SegmentFiles;
use crate::journal::JournalError;
use crate::transport::LogLimit;
use crate::undo::Kept;
use bytes::Bytes;
use replicator_engine::generation::Lineage;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Base;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc as tokio_mpsc, oneshot, watch};

/// Committed content that waits to be folded, in bytes of journal: beyond it, folding goes before taking in more. What waits is what a
/// promotion has to fold first.
pub(super) const MAX_UNFOLDED_BYTES: u64 = 16 << 20;

/// Why a standby that takes nothing more is of use all the same.
const UNFOLDABLE: &str = "the recovery point cannot be folded into the image; it stays in the journal";

/// From a fold that failed to the next attempt, if no primary comes meanwhile.
const FOLD_RETRY: Duration = Duration::from_secs(5);

/// One connection's number: inputs of an earlier one are ignored.
pub type Session = u64;

pub(super) enum Input {
    Connected(Session, tokio_mpsc::Sender<Bytes>),
    Disconnected(Session),
    Frame(Session, Bytes, OwnedSemaphorePermit),
    Settle(oneshot::Sender<io::Result<Settled>>),
    SettleAt(Epoch, oneshot::Sender<Result<(Settled, Option<Rollback>), PastError>>),
    Points(oneshot::Sender<io::Result<Vec<Kept>>>),
    View(Ask),
    ForgetOld(oneshot::Sender<io::Result<()>>),
    Scrub(Asked),
    Regroup(Option<(Arc<Board>, usize)>),
    Everywhere(Epoch),
    Resume,
    Stop,
}

/// Opens the standby: at the start, and again after its disk failed.
pub type Open<F> = Box<dyn Fn() -> Result<Standby<F>, JournalError> + Send>;

/// A standby in a thread of its own. Dropped, it stops.
pub struct StandbyService {
    pub(super) inbox: mpsc::Sender<Input>,
    status: watch::Receiver<StandbyStatus>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl StandbyService {
    /// Starts the thread. An error is what is wrong with the journal.
    pub fn start<F: SegmentFiles + 'static>(open: Open<F>, pace: ScrubPace, budget: ScrubBudget) -> Result<Self, JournalError> {
        let (inbox, inputs) = mpsc::channel();
        let (shell, status) = Shell::open(open, Scrub::new(pace, budget))?;
        let thread = std::thread::Builder::new().name("tern-standby".into()).spawn(move || shell.run(&inputs));
        let thread = thread.map_err(JournalError::Io)?;
        Ok(Self { inbox, status, thread: Mutex::new(Some(thread)) })
    }

    /// How it goes; follows every change.
    pub fn status(&self) -> watch::Receiver<StandbyStatus> {
        self.status.clone()
    }

    /// Lets the primary go and brings the image to the last recovery point, where it stays: no primary is taken until [`Self::resume`].
    pub async fn settle(&self) -> io::Result<Settled> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Settle(reply));
        answer.await.unwrap_or_else(|_| Err(is_stopping()))
    }

    /// As [`Self::settle`], for an older recovery point: with what leads the image back to it.
    pub async fn settle_at(&self, epoch: Epoch) -> Result<(Settled, Option<Rollback>), PastError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::SettleAt(epoch, reply));
        answer.await.unwrap_or_else(|_| Err(is_stopping().into()))
    }

    /// The recovery points, the oldest first.
    pub async fn points(&self) -> io::Result<Vec<Kept>> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Points(reply));
        answer.await.unwrap_or_else(|_| Err(is_stopping()))
    }

    /// Looks through the whole image and the undo, at the pace that was set; how it fares then.
    pub async fn scrub(&self) -> io::Result<Health> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Scrub(reply));
        answer.await.unwrap_or_else(|_| Err(is_stopping()))
    }

    /// The volume has other standbys, and each has this epoch: what changes from now on is remembered for the day on which one is promoted.
    pub fn everywhere(&self, epoch: Epoch) {
        self.tell(Input::Everywhere(epoch));
    }

    /// Takes primaries again.
    pub fn resume(&self) {
        self.tell(Input::Resume);
    }

    /// Stops the thread. Blocks.
    pub fn stop(&self) {
        self.tell(Input::Stop);
        if let Some(thread) = self.thread.lock().expect("no panic under this lock").take() {
            let _ = thread.join();
        }
    }

    pub(super) fn tell(&self, input: Input) {
        // The thread is gone only after a stop: whoever waits for an answer then sees its sender dropped.
        let _ = self.inbox.send(input);
    }
}

pub(super) fn is_stopping() -> io::Error {
    io::Error::other("the standby is being stopped")
}

impl Drop for StandbyService {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How far a primary has come since it connected.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    Connected,
    Attached,
    Committed,
}

/// A stream, and where its answers go.
pub(super) type Connection = (Session, tokio_mpsc::Sender<Bytes>);

pub(super) struct Shell<F> {
    /// `None` after its disk failed, until it is opened again.
    pub(super) standby: Option<Standby<F>>,
    open: Open<F>,
    /// What it is opened with.
    pub(super) place: GroupPlace,
    pub(super) connection: Option<Connection>,
    /// What has come of the connection.
    pub(super) progress: Progress,
    /// A stream that began while a primary was attached, and has not said whose it is.
    pub(super) contender: Option<Connection>,
    status: watch::Sender<StandbyStatus>,
    /// Whether the image must stay as it is.
    pub(super) settled: bool,
    pub(super) trouble: Trouble,
    /// After folding failed: when it is tried again.
    pub(super) fold_not_before: Option<Instant>,
    pub(super) patience: Patience,
    pub(super) log_limit: LogLimit,
    views: Views,
    pub(super) scrub: Scrub,
}

impl<F: SegmentFiles + 'static> Shell<F> {
    fn open(open: Open<F>, mut scrub: Scrub) -> Result<(Self, watch::Receiver<StandbyStatus>), JournalError> {
        let standby = open()?;
        scrub.handle_opened(&standby);
        standby.tell_group();
        let (publish, status) = watch::channel(StandbyStatus::default());
        let mut shell = Self {
            place: standby.group_place(),
            standby: Some(standby),
            open,
            connection: None,
            contender: None,
            progress: Progress::Connected,
            status: publish,
            settled: false,
            trouble: Trouble::default(),
            fold_not_before: None,
            patience: Patience::default(),
            log_limit: LogLimit::new(),
            views: Views::default(),
            scrub,
        };
        shell.publish();
        Ok((shell, status))
    }

    fn run(mut self, inputs: &Receiver<Input>) {
        loop {
            let input = match inputs.try_recv() {
                Ok(input) => input,
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) if !self.awaits_group() && self.fold() || self.tidy() => continue,
                Err(TryRecvError::Empty) => {
                    self.scrub();
                    self.publish();
                    let wait = self.fold_not_before.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
                    let wait = wait.min(self.scrub.wait());
                    let wait = wait.min(self.group_wait());
                    let wait = wait.min(self.standby.as_mut().map_or(Duration::MAX, Standby::forget_idle));
                    match inputs.recv_timeout(wait) {
                        Ok(input) => input,
                        Err(RecvTimeoutError::Timeout) => continue,
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            };
            match input {
                Input::Stop => return self.standby.iter().for_each(Standby::remember_health),
                // The stream ends with its sink; the primary tries again.
                Input::Connected(..) if self.settled => {}
                Input::Resume => self.settled = false,
                Input::Everywhere(epoch) => drop(self.standby.as_mut().map(|standby| standby.handle_everywhere(epoch))),
                Input::Connected(session, sink) => self.handle_connected(session, sink),
                Input::Disconnected(session) if self.is_current(session) => self.disconnect(),
                Input::Frame(session, frame, _room) if self.is_current(session) => self.handle_frame(frame),
                Input::Frame(session, frame, _room) => self.handle_contender(session, frame),
                Input::Settle(reply) => drop(reply.send(self.settle().map(|()| self.settled()))),
                Input::SettleAt(epoch, reply) => drop(reply.send(self.settle_at(epoch))),
                Input::Points(reply) => drop(reply.send(self.points())),
                Input::View(ask) => self.show(ask),
                Input::ForgetOld(reply) => drop(reply.send(self.forget_old())),
                Input::Scrub(asked) => self.scrub_now(asked),
                Input::Regroup(place) => self.regroup(place),
                Input::Disconnected(_) => {}
            }
            while self.unfolded_bytes() > MAX_UNFOLDED_BYTES && self.fold() {}
        }
    }

    fn is_current(&self, session: Session) -> bool {
        self.connection.as_ref().is_some_and(|(current, _)| *current == session)
    }

    pub(super) fn disconnect(&mut self) {
        self.connection = None;
        self.progress = Progress::Connected;
        self.scrub.handle_disconnected();
        if let Some(standby) = &mut self.standby {
            standby.handle_disconnected();
        }
        self.publish();
    }

    pub(super) fn reopen(&mut self) -> Result<(), JournalError> {
        if self.standby.is_none() {
            match (self.open)() {
                Ok(standby) => {
                    let standby = self.standby.insert(standby);
                    standby.set_rival(self.status.borrow().rival.clone());
                    self.views.reopen(standby);
                }
                Err(error) => {
                    let full = matches!(&error, JournalError::Io(error) if error.kind() == io::ErrorKind::StorageFull);
                    self.trouble.set(Work::Open, &error, full);
                    return Err(error);
                }
            }
            self.trouble.clear(Work::Open);
        }
        Ok(())
    }

    pub(super) fn lineage(&self) -> Option<Lineage> {
        self.standby.as_ref().map(|standby| standby.place().lineage.clone()).or_else(|| self.status.borrow().lineage.clone())
    }

    pub(super) fn unfolded_bytes(&self) -> u64 {
        self.standby.as_ref().filter(|standby| !standby.journal().is_folded()).map_or(0, |standby| standby.journal().used_bytes().0)
    }

    /// Folds one message; says whether there is more to do now.
    pub(super) fn fold(&mut self) -> bool {
        if self.fold_not_before.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        self.fold_not_before = None;
        let Some(standby) = &mut self.standby else { return false };
        match standby.fold_one() {
            Ok(true) => true,
            Ok(false) => {
                self.trouble.clear(Work::Fold);
                false
            }
            Err(error) => {
                let full = error.kind() == io::ErrorKind::StorageFull;
                self.trouble.set(Work::Fold, &format_args!("{UNFOLDABLE}: {error}"), full);
                self.fold_not_before = Some(Instant::now() + FOLD_RETRY);
                if let Some(text) = self.trouble.of_folding() {
                    self.refuse(self.no_storage(text.to_owned()));
                }
                false
            }
        }
    }

    fn settle(&mut self) -> io::Result<()> {
        self.disconnect();
        self.contender = None;
        self.settled = true;
        self.reopen().map_err(io::Error::other)?;
        let Some(standby) = &mut self.standby else { unreachable!("just opened") };
        standby.settle().map(drop)
    }

    fn settle_at(&mut self, epoch: Epoch) -> Result<(Settled, Option<Rollback>), PastError> {
        self.settle()?;
        let newest = self.settled();
        let Some(standby) = &mut self.standby else { unreachable!("it is settled") };
        let rollback = standby.go_back_to(epoch);
        if !matches!(rollback, Ok(None)) {
            // It is without its undo.
            self.standby = None;
        }
        let Some(rollback) = rollback? else { return Ok((newest, None)) };
        let point = rollback.point();
        Ok((Settled { epoch, size_bytes: point.size_bytes, ..newest }, Some(rollback)))
    }

    /// Where the copy stands now.
    fn settled(&mut self) -> Settled {
        self.publish();
        let Some(standby) = &self.standby else { unreachable!("it is settled") };
        let Place { base, size_bytes, lineage, committed: epoch, .. } = standby.place().clone();
        Settled { epoch, lineage, base, size_bytes, damaged: standby.damaged(), history: standby.history() }
    }

    fn forget_old(&mut self) -> io::Result<()> {
        self.reopen().map_err(io::Error::other)?;
        self.standby.as_mut().map_or(Ok(()), Standby::forget_old)
    }

    fn points(&mut self) -> io::Result<Vec<Kept>> {
        self.reopen().map_err(io::Error::other)?;
        self.standby.as_mut().map_or(Ok(Vec::new()), Standby::points)
    }

    fn show(&mut self, ask: Ask) {
        match self.reopen() {
            Ok(()) => drop(self.standby.as_mut().map(|standby| self.views.answer(standby, ask))),
            Err(error) => ask.refuse(&error),
        }
    }

    /// Thins and drops a little of the older points; says whether there is more to do.
    fn tidy(&mut self) -> bool {
        !self.settled && self.standby.as_mut().is_some_and(|standby| standby.tidy_points(unix_ms()))
    }

    pub(super) fn publish(&mut self) {
        let mut status = self.status.borrow().clone();
        status.attached = self.progress >= Progress::Attached;
        status.session = self.connection.as_ref().map(|(session, _)| *session).filter(|_| status.attached);
        status.caught_up = self.progress == Progress::Committed;
        status.error = self.trouble.get().map(|(text, _)| text.to_owned());
        status.full = self.trouble.get().is_some_and(|(_, full)| full);
        if let Some(standby) = &self.standby {
            let Place { committed, base, lineage, size_bytes, .. } = standby.place();
            status.committed = *committed;
            status.has_point = *base == Base::Point;
            status.lineage = Some(lineage.clone());
            status.size_bytes = *size_bytes;
            status.rival = standby.rival().cloned();
            status.journal_bytes = standby.journal().used_bytes().0;
            status.staged = standby.journal().has_staged();
            status.points = standby.point_count();
            status.undo_bytes = standby.undo_bytes();
            status.points_lost = standby.lost_points().map(str::to_owned);
            status.cut_unix_ms = standby.cut_unix_ms();
            status.kept_old = standby.kept_old();
            status.health = standby.health();
            status.scrub = self.scrub.round().map(|round| standby.scrub_progress(round));
        }
        self.status.send_if_modified(|old| {
            std::mem::swap(old, &mut status);
            *old != status
        });
    }
}

#[cfg(test)]
mod tests;
