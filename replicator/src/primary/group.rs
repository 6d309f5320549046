//! The members of a consistency group, cut at one instant.
//!
//! Each member's thread takes a `Seat`. When its sender wants a cut it asks here; once all are ready, all but the last *park* for a moment,
//! and the last one cuts for all, so that no thread does anything to its volume meanwhile. Writes are held only while the epochs are
//! exchanged: everything that could take time was done before.

use super::Input;
use crate::clock::unix_ms;
use crate::intake::Intake;
use replicator_engine::generation::Id;
use replicator_engine::group::{self, Complete, GroupCut, Ledger, Rounds, Turn};
use replicator_engine::tracker::{Epoch, LaneId};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a member's thread stands still for the others to come.
const PARKED: Duration = Duration::from_millis(5);

/// Cuts that are remembered because they do not count.
const MAX_VOID: usize = 64;

/// Told for how long the writes of all members were held.
pub type OnHold = Box<dyn Fn(Duration) + Send + Sync>;

/// How a group's cuts go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CutterStatus {
    /// The newest cut of all members; 0: none since the start.
    pub newest: u64,
    /// The newest of which the standby has every part.
    pub complete: Option<Complete>,
    /// How many were made since the start.
    pub cuts: u64,
    /// How many were given up, because writes would have been held for too long.
    pub given_up: u64,
    /// The longest that writes were held.
    pub longest_hold: Duration,
    /// Which members keep the group from being cut.
    pub lagging: Vec<usize>,
    /// The last cuts of which some part may not have got to the standby.
    pub void: VecDeque<u64>,
}

/// Which member of which group, and its inbox: its thread takes the seat by itself, so that it never loses a cut that was just made for it.
pub(super) type Place = (Arc<Cutter>, usize, mpsc::Sender<Input>);

/// What a member's thread is to do.
pub(super) enum Asked {
    /// It cuts by itself.
    Alone,
    /// Later.
    Wait,
    /// It was cut.
    Cut(Made),
}

/// A member's part of a cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub epoch: Epoch,
    pub cut: GroupCut,
    pub unix_ms: u64,
}

struct Member {
    ticket: u64,
    /// Its intake, and which lane of it is its standby's: the volume has no other.
    intake: (Arc<Intake>, LaneId),
    inbox: mpsc::Sender<Input>,
    /// Its thread stands still.
    parked: bool,
    /// It was told that a cut is wanted, and has not asked since.
    nudged: bool,
    made: Option<Made>,
}

struct State {
    rounds: Rounds,
    ledger: Ledger,
    members: Vec<Option<Member>>,
    status: CutterStatus,
}

/// See the module's documentation.
pub struct Cutter {
    group: Id,
    state: Mutex<State>,
    made: Condvar,
    status: watch::Sender<CutterStatus>,
    started: Instant,
    on_hold: OnHold,
    tickets: AtomicU64,
}

impl Cutter {
    /// For a group of so many members, of whom none is there yet.
    pub fn new(group: Id, members: usize, on_hold: OnHold) -> Self {
        let status = CutterStatus { lagging: (0..members).collect(), ..CutterStatus::default() };
        let state = State {
            rounds: Rounds::new(members),
            ledger: Ledger::default(),
            members: (0..members).map(|_| None).collect(),
            status: status.clone(),
        };
        let (status, _) = watch::channel(status);
        Self { group, state: Mutex::new(state), made: Condvar::new(), status, started: Instant::now(), on_hold, tickets: AtomicU64::new(0) }
    }

    /// How it goes; follows the cuts.
    pub fn status(&self) -> watch::Receiver<CutterStatus> {
        // Who is late is a matter of time.
        self.publish(&mut self.lock());
        self.status.subscribe()
    }

    /// The place of a member, for its thread.
    pub(super) fn seat(self: &Arc<Self>, member: usize, intake: (Arc<Intake>, LaneId), inbox: mpsc::Sender<Input>) -> Seat {
        let ticket = self.tickets.fetch_add(1, Relaxed);
        let mut state = self.lock();
        state.forget(member);
        state.members[member] = Some(Member { ticket, intake, inbox, parked: false, nudged: false, made: None });
        Seat { cutter: self.clone(), member, ticket, able: false, ready: false }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn publish(&self, state: &mut State) {
        let now_ms = self.now_ms();
        state.status.lagging = (0..state.members.len()).filter(|member| state.rounds.lags(*member, now_ms)).collect();
        self.status.send_if_modified(|old| {
            let is_news = *old != state.status;
            if is_news {
                old.clone_from(&state.status);
            }
            is_news
        });
    }

    /// Cuts all. Everybody else stands still. `None`: it would take too long just now.
    fn cut_all(&self, state: &mut State) -> Option<()> {
        let intakes: Vec<_> = state.members.iter().flatten().map(|member| member.intake.clone()).collect();
        let mut prepared = intakes.iter().map(|(intake, lane)| intake.try_prepare_cut(*lane)).collect::<Option<Vec<_>>>()?;
        let began = Instant::now();
        prepared.iter().for_each(|member| member.hold());
        let made = group::may_cut(began.elapsed().as_millis() as u64).then(|| prepared.iter_mut().map(|member| member.cut()).collect());
        drop(prepared);
        let held = began.elapsed();
        state.status.longest_hold = state.status.longest_hold.max(held);
        (self.on_hold)(held);
        let made: Option<Vec<Epoch>> = made;
        let Some(epochs) = made else {
            state.status.given_up += 1;
            return None;
        };
        let (number, unix_ms) = (epochs.iter().copied().max().unwrap_or(0), unix_ms());
        let cut = GroupCut { group: self.group, number };
        for (member, epoch) in state.members.iter_mut().flatten().zip(&epochs) {
            (member.made, member.nudged) = (Some(Made { epoch: *epoch, cut, unix_ms }), false);
        }
        state.ledger.handle_cut(Complete { number, unix_ms, epochs });
        state.rounds.handle_cut();
        (state.status.newest, state.status.cuts) = (number, state.status.cuts + 1);
        Some(())
    }
}

impl State {
    /// The member is not there any more, and what it had under way is not counted.
    fn forget(&mut self, member: usize) {
        self.members[member] = None;
        self.rounds.set_away(member);
        self.handle_broken(member);
    }

    /// What the member has under way is not counted.
    fn handle_broken(&mut self, member: usize) {
        let broken = self.ledger.handle_broken(member);
        if broken.is_empty() {
            return;
        }
        self.rounds.handle_void();
        let void = &mut self.status.void;
        void.extend(broken);
        void.drain(..void.len().saturating_sub(MAX_VOID));
    }

    /// Has all come, if one of the cuts that they wait for does not count.
    fn make_up(&mut self) {
        if self.rounds.is_cut_owed() {
            self.nudge(0..self.members.len());
        }
    }

    /// Has these come.
    fn nudge(&mut self, awaited: impl IntoIterator<Item = usize>) {
        for other in awaited {
            let Some(member) = &mut self.members[other] else { continue };
            if !member.parked && !member.nudged {
                member.nudged = true;
                // A thread that is gone gives up its seat.
                let _ = member.inbox.send(Input::CutWanted);
            }
        }
    }
}

/// A member's place, held by its thread. Dropped, the group goes on without the member, and without points.
pub(super) struct Seat {
    cutter: Arc<Cutter>,
    member: usize,
    ticket: u64,
    /// What was said last.
    able: bool,
    /// The others may be waiting for it to stand still.
    ready: bool,
}

impl Seat {
    /// Nobody else took the place since.
    fn lock(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.cutter.lock();
        let is_mine = state.members[self.member].as_ref().is_some_and(|member| member.ticket == self.ticket);
        is_mine.then_some(state)
    }

    /// The sender wants a cut now, and nothing is to be done before.
    pub fn ask(&mut self) -> Asked {
        let (cutter, me) = (self.cutter.clone(), self.member);
        self.able = true;
        let Some(mut state) = self.lock() else { return Asked::Alone };
        state.members[me].iter_mut().for_each(|member| member.nudged = false);
        let asked = match state.rounds.ask(me, cutter.now_ms()) {
            Turn::Alone => Asked::Alone,
            Turn::Wait => {
                let awaited: Vec<usize> = state.rounds.awaited().filter(|other| *other != me).collect();
                state.nudge(awaited);
                Asked::Wait
            }
            Turn::Together => {
                let others_parked =
                    state.members.iter().enumerate().all(|(at, member)| at == me || member.as_ref().is_some_and(|m| m.parked));
                if others_parked && cutter.cut_all(&mut state).is_some() {
                    cutter.made.notify_all();
                } else {
                    let others = (0..state.members.len()).filter(|other| *other != me);
                    state.nudge(others);
                    state = park(&cutter, state, me);
                }
                state.members[me].as_mut().and_then(|member| member.made.take()).map_or(Asked::Wait, Asked::Cut)
            }
        };
        cutter.publish(&mut state);
        drop(state);
        self.ready = matches!(asked, Asked::Wait);
        asked
    }

    /// The sender does not want a cut, or cannot have one now. `able`: it has a recovery point to add to, and a connection.
    pub fn set_busy(&mut self, able: bool) {
        if able == self.able && !self.ready {
            return;
        }
        (self.able, self.ready) = (able, false);
        let Some(mut state) = self.lock() else { return };
        if able {
            state.rounds.set_able(self.member);
        } else {
            state.rounds.set_away(self.member);
        }
        state.make_up();
        self.cutter.publish(&mut state);
    }

    /// What is under way may not arrive.
    pub fn handle_broken(&self) {
        if let Some(mut state) = self.lock() {
            state.handle_broken(self.member);
            state.make_up();
            self.cutter.publish(&mut state);
        }
    }

    /// The standby has these.
    pub fn handle_acked(&self, acked: Epoch) {
        let Some(mut state) = self.lock() else { return };
        if state.ledger.handle_acked(self.member, acked) {
            state.status.complete = state.ledger.complete().cloned();
            // Requests of other members may have waited for that.
            for (_, other) in state.members.iter().enumerate().filter(|(at, _)| *at != self.member) {
                other.iter().for_each(|member| drop(member.inbox.send(Input::Held)));
            }
            self.cutter.publish(&mut state);
        }
    }

    /// Up to which epoch this member is in a group point.
    pub fn safe(&self) -> Epoch {
        self.lock().map_or(0, |state| state.ledger.safe(self.member))
    }

    /// Whether nobody keeps the group from being cut.
    pub fn is_together(&self) -> bool {
        self.lock().is_some_and(|state| state.rounds.is_together(self.cutter.now_ms()))
    }

    /// Whether this member keeps the group's clock, where cuts are made by a schedule: the first does, and without points of the group
    /// each.
    pub fn keeps_time(&self) -> bool {
        self.member == 0 || !self.is_together()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(mut state) = self.lock() {
            state.forget(self.member);
            self.cutter.publish(&mut state);
        }
    }
}

/// Stands still for a moment, in which another one may cut for all.
fn park<'a>(cutter: &'a Cutter, mut state: MutexGuard<'a, State>, me: usize) -> MutexGuard<'a, State> {
    let set = |state: &mut State, parked: bool| state.members[me].iter_mut().for_each(|member| member.parked = parked);
    set(&mut state, true);
    let is_waiting = |state: &mut State| state.members[me].as_ref().is_some_and(|member| member.made.is_none());
    let (mut state, _) = cutter.made.wait_timeout_while(state, PARKED, is_waiting).unwrap_or_else(PoisonError::into_inner);
    set(&mut state, false);
    state
}
