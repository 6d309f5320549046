//! Requests that are done here and wait for the volume's standbys, or for a lease.
//!
//! Front ends [ask](Held::asks); in mode `async` that is one load. The threads that replicate the volume, one a standby, look at what waits,
//! and let it go once every promise that is in force is kept. Whatever waits is told in the end: the standbys have it, or less is promised from
//! now on, or it fails because nobody replicates any more or because its client's time is up.

use super::Lease;
use replicator_engine::acknowledgement::{Done, Promise};
use replicator_engine::tracker::{Epoch, LaneId, MAX_LANES};
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Is called, once, when the request is to be acknowledged, or with the reason why it never will be.
pub type Release = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Wakes the thread that replicates. It must not wait for anything.
pub type Nudge = Box<dyn Fn() + Send>;

/// For how long a client that leaves, or a daemon that stops, waits for the standby.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Whose requests they are: they can be given a deadline together.
pub type Owner = u64;

/// What waits now, as one of the standbys sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many, for a standby or for a lease.
    pub requests: usize,
    /// Since when the first of those does that wait for this standby.
    pub since: Option<Instant>,
    /// The newest epoch that one of them waits for.
    pub newest: Option<Epoch>,
}

struct Request {
    /// What it waits for beside a lease.
    done: Option<Done>,
    owner: Owner,
    since: Instant,
    release: Release,
}

/// What one of the standbys is promised to have.
#[derive(Default)]
struct Side {
    in_force: Promise,
    /// The newest epoch that it has.
    safe: Option<Epoch>,
    /// `None` while nobody replicates to it.
    nudge: Option<Nudge>,
    /// Whether the thread has been woken, and has not looked since.
    nudged: bool,
}

impl Side {
    fn has(&self, done: Done) -> bool {
        self.in_force.completes(done, self.safe)
    }

    /// Whether somebody will let go a request that promises this, if anything.
    fn lets_go(&self, done: Option<Done>) -> bool {
        self.nudge.is_some() || !done.is_some_and(|done| self.in_force.covers(done.kind))
    }

    fn wake(&mut self) {
        if let Some(nudge) = self.nudge.as_ref().filter(|_| !std::mem::replace(&mut self.nudged, true)) {
            nudge();
        }
    }
}

#[derive(Default)]
struct Inner {
    requests: Vec<Request>,
    sides: [Side; MAX_LANES],
    /// Requests of whom fail from when on.
    deadlines: Vec<(Owner, Instant)>,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Held {
    /// The safest of all.
    in_force: AtomicU8,
    last_owner: AtomicU64,
    lease: Lease,
    inner: Mutex<Inner>,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_force(&self) -> Promise {
        Promise::from_number(self.in_force.load(SeqCst)).unwrap_or(Promise::Sync)
    }

    /// Until when anything may be acknowledged.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    fn has_to_wait(&self, done: Option<Done>) -> bool {
        done.is_some_and(|done| self.in_force().covers(done.kind)) || self.lease.has_run_out()
    }

    /// An owner of requests that nobody else is.
    pub fn new_owner(&self) -> Owner {
        self.last_owner.fetch_add(1, SeqCst) + 1
    }

    /// Whether the request has to wait; `done`: what it promises, if anything. If so, what `release` makes is called later, perhaps before
    /// this returns.
    pub fn asks(&self, done: Option<Done>, owner: Owner, release: impl FnOnce() -> Release) -> bool {
        self.has_to_wait(done) && self.asks_at(Instant::now(), done, owner, release)
    }

    /// [`Self::asks`] at this time.
    pub fn asks_at(&self, now: Instant, done: Option<Done>, owner: Owner, release: impl FnOnce() -> Release) -> bool {
        if !self.has_to_wait(done) {
            return false;
        }
        let mut inner = self.lock();
        // It may have changed, and whoever changed it does not look again.
        if !self.has_to_wait(done) {
            return false;
        }
        let release = release();
        if inner.sides.iter().all(|side| side.nudge.is_none()) || !inner.sides.iter().all(|side| side.lets_go(done)) {
            drop(inner);
            release(Err(nobody()));
            return true;
        }
        inner.requests.push(Request { done, owner, since: now, release });
        inner.sides.iter_mut().for_each(Side::wake);
        true
    }

    /// The requests that wait now, and those that come until [`Self::forget_deadline`], fail after `limit` if they still wait then.
    pub fn set_deadline(&self, owner: Owner, limit: Duration) {
        let mut inner = self.lock();
        if inner.deadlines.iter().all(|(of, _)| *of != owner) {
            inner.deadlines.push((owner, Instant::now() + limit));
        }
    }

    /// The owner waits without limit again, or is gone.
    pub fn forget_deadline(&self, owner: Owner) {
        self.lock().deadlines.retain(|(of, _)| *of != owner);
    }

    /// Replication to a standby: from now on somebody lets requests go.
    pub fn open(&self, lane: LaneId, in_force: Promise, nudge: Nudge) {
        let mut inner = self.lock();
        inner.sides[lane.index()] = Side { in_force, safe: None, nudge: Some(nudge), nudged: false };
        self.put_in_force(&inner);
    }

    /// Replication to a standby: requests that become done from now on meet this promise.
    pub fn enforce(&self, lane: LaneId, promise: Promise) {
        let mut inner = self.lock();
        inner.sides[lane.index()].in_force = promise;
        self.put_in_force(&inner);
    }

    fn put_in_force(&self, inner: &Inner) {
        let safest = inner.sides.iter().map(|side| side.in_force).max().unwrap_or_default();
        self.in_force.store(safest as u8, SeqCst);
    }

    /// Replication to a standby: what waits.
    pub fn look(&self, lane: LaneId) -> Waiting {
        let mut inner = self.lock();
        let Inner { requests, sides, .. } = &mut *inner;
        let side = &mut sides[lane.index()];
        side.nudged = false;
        let for_it = || requests.iter().filter_map(|request| Some((request.done?, request.since))).filter(|(done, _)| !side.has(*done));
        Waiting {
            requests: requests.len(),
            since: for_it().map(|(_, since)| since).min(),
            newest: for_it().map(|(done, _)| done.epoch).max(),
        }
    }

    /// Replication to a standby, which has every epoch up to `safe`: tells those that need not wait any more, or must not.
    pub fn let_go(&self, lane: LaneId, safe: Option<Epoch>) {
        self.let_some_go(lane, safe, usize::MAX);
    }

    /// The same, but tells so many at most, the oldest first; how many it told.
    pub fn let_some_go(&self, lane: LaneId, safe: Option<Epoch>, at_most: usize) -> usize {
        let mut inner = self.lock();
        inner.sides[lane.index()].safe = safe;
        self.tell(inner, at_most)
    }

    fn tell(&self, mut inner: MutexGuard<'_, Inner>, at_most: usize) -> usize {
        let (now, has_lease) = (Instant::now(), !self.lease.has_run_out());
        let Inner { requests, deadlines, sides } = &mut *inner;
        let completes = |done: Option<Done>| has_lease && done.is_none_or(|done| sides.iter().all(|side| side.has(done)));
        let is_late = |owner: Owner| deadlines.iter().any(|(of, at)| *of == owner && now >= *at);
        let ended: Vec<_> = requests
            .extract_if(.., |request| completes(request.done) || is_late(request.owner))
            .take(at_most)
            .map(|request| (completes(request.done), request.release))
            .collect();
        drop(inner);
        let told = ended.len();
        for (completes, release) in ended {
            release(if completes { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) });
        }
        told
    }

    /// Replication to a standby has ended: what waits for it fails, and so does whatever would wait. The promise stays in force.
    pub fn close(&self, lane: LaneId) {
        let ended = {
            let mut inner = self.lock();
            inner.sides[lane.index()].nudge = None;
            let Inner { requests, sides, .. } = &mut *inner;
            let nobody_left = sides.iter().all(|side| side.nudge.is_none());
            let waits_for_it = |done: Done| sides.iter().any(|side| side.nudge.is_none() && !side.has(done));
            requests.extract_if(.., |request| nobody_left || request.done.is_some_and(waits_for_it)).collect::<Vec<_>>()
        };
        ended.into_iter().for_each(|request| (request.release)(Err(nobody())));
    }

    /// The same for all standbys.
    pub fn close_all(&self) {
        LaneId::all().for_each(|lane| self.close(lane));
    }

    /// The volume does not have this standby any more: nothing is promised of it.
    pub(super) fn forget(&self, lane: LaneId) {
        let mut inner = self.lock();
        inner.sides[lane.index()] = Side::default();
        self.put_in_force(&inner);
        self.tell(inner, usize::MAX);
    }

    /// The volume has no standby any more: nothing is promised.
    pub(super) fn forget_promise(&self) {
        LaneId::all().for_each(|lane| self.forget(lane));
    }
}

fn nobody() -> io::Error {
    io::Error::other("replication has ended, and the standby did not confirm this request")
}

#[cfg(test)]
mod tests {
    use super::*;
    use replicator_engine::acknowledgement::Kind;
    use std::sync::mpsc;

    fn done(epoch: Epoch) -> Done {
        Done { kind: Kind::Durable, epoch }
    }

    /// Asks for a request of this epoch; says whether it waits.
    fn ask(held: &Held, epoch: Epoch, told: &mpsc::Sender<(Epoch, bool)>) -> bool {
        let told = told.clone();
        held.asks(Some(done(epoch)), epoch, || Box::new(move |result| told.send((epoch, result.is_ok())).unwrap()))
    }

    #[test]
    fn requests_go_once_the_standby_has_their_epoch_and_one_nudge_wakes_for_all() {
        let (held, (tell, told), (nudge, nudged)) = (Held::default(), mpsc::channel(), mpsc::channel());
        assert!(!ask(&held, 1, &tell), "nothing is promised");
        held.open(LaneId::FIRST, Promise::Barrier, Box::new(move || nudge.send(()).unwrap()));
        assert!(ask(&held, 5, &tell) && ask(&held, 6, &tell));
        assert!(!held.asks(Some(Done { kind: Kind::Write, epoch: 6 }), 0, || unreachable!("a write does not wait")));
        assert_eq!(nudged.try_iter().count(), 1);
        let waiting = held.look(LaneId::FIRST);
        assert_eq!((waiting.requests, waiting.newest), (2, Some(6)));
        held.let_go(LaneId::FIRST, Some(5));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(5, true)]);
        held.enforce(LaneId::FIRST, Promise::Local);
        assert_eq!(held.let_some_go(LaneId::FIRST, Some(5), 0), 0);
        assert_eq!(held.let_some_go(LaneId::FIRST, Some(5), 2), 1);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(6, true)]);
    }

    #[test]
    fn whoever_waits_is_told_when_its_time_is_up_or_nobody_replicates() {
        let (held, (tell, told)) = (Held::default(), mpsc::channel());
        held.open(LaneId::FIRST, Promise::Sync, Box::new(|| {}));
        assert!((5..8).all(|epoch| ask(&held, epoch, &tell)));
        held.set_deadline(6, Duration::ZERO);
        held.let_go(LaneId::FIRST, None);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(6, false)]);
        held.forget_deadline(6);
        held.close(LaneId::FIRST);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(5, false), (7, false)]);
        assert!(ask(&held, 8, &tell), "told at once");
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(8, false)]);
        held.forget_promise();
        assert!(!ask(&held, 9, &tell));
    }

    #[test]
    fn without_a_valid_lease_nothing_goes_reads_included() {
        let (held, (tell, told)) = (Held::default(), mpsc::channel());
        held.open(LaneId::FIRST, Promise::Local, Box::new(|| {}));
        held.lease().set_until(0);
        let tell_of_read = tell.clone();
        assert!(held.asks(None, 1, || Box::new(move |result| tell_of_read.send((0, result.is_ok())).unwrap())));
        assert!(ask(&held, 5, &tell), "what is promised or not");
        held.let_go(LaneId::FIRST, Some(9));
        assert_eq!((told.try_iter().count(), held.look(LaneId::FIRST).requests), (0, 2));
        held.lease().set_until(super::super::boot_ms() + 60_000);
        held.let_go(LaneId::FIRST, None);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(0, true), (5, true)]);
        assert!(!held.asks(None, 1, || unreachable!("the lease is valid")));
    }

    #[test]
    fn a_request_waits_for_every_promise_that_is_in_force_and_for_no_other() {
        let (held, (tell, told)) = (Held::default(), mpsc::channel());
        let [near, far] = [0, 1].map(|place| LaneId::all().nth(place).unwrap());
        held.open(near, Promise::Sync, Box::new(|| {}));
        held.open(far, Promise::Barrier, Box::new(|| {}));
        let tell_of_write = tell.clone();
        let write = Some(Done { kind: Kind::Write, epoch: 5 });
        assert!(held.asks(write, 1, || Box::new(move |result| tell_of_write.send((4, result.is_ok())).unwrap())));
        assert!(ask(&held, 5, &tell));
        assert_eq!((held.look(near).newest, held.look(far).newest), (Some(5), Some(5)));
        held.let_go(near, Some(5));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(4, true)], "of a write only the near one is promised to have it");
        assert_eq!((held.look(near).since, held.look(near).newest), (None, None), "what waits for the other is none of its business");
        held.let_go(far, Some(5));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(5, true)]);
        assert!(ask(&held, 6, &tell));
        held.let_go(near, Some(6));
        held.close(near);
        assert!(told.try_iter().next().is_none(), "it waits for the far one alone");
        held.forget(far);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(6, true)]);
        assert!(ask(&held, 7, &tell), "the near one's promise is in force, and nobody keeps it: told at once");
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(7, false)]);
    }
}
