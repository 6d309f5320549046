//! Requests that are done here and wait for the standby, or for a lease.
//!
//! Front ends [ask](Held::asks); in mode `async` that is one load. The thread that replicates the volume looks at what waits, and lets it
//! go. Whatever waits is told in the end: the standby has it, or less is promised from now on, or it fails because nobody replicates any more
//! or because its client's time is up.

use super::Lease;
use replicator_engine::acknowledgement::{Done, Promise};
use replicator_engine::tracker::Epoch;
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

/// What waits now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many, for the standby or for a lease.
    pub requests: usize,
    /// Since when the first of those does that wait for the standby.
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

#[derive(Default)]
struct Inner {
    requests: Vec<Request>,
    /// `None` while nobody replicates.
    nudge: Option<Nudge>,
    /// Whether the thread has been woken, and has not looked since.
    nudged: bool,
    /// Requests of whom fail from when on.
    deadlines: Vec<(Owner, Instant)>,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Held {
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
        if !self.has_to_wait(done) {
            return false;
        }
        let mut inner = self.lock();
        // It may have changed, and whoever changed it does not look again.
        if !self.has_to_wait(done) {
            return false;
        }
        let release = release();
        if inner.nudge.is_none() {
            drop(inner);
            release(Err(nobody()));
            return true;
        }
        inner.requests.push(Request { done, owner, since: Instant::now(), release });
        if !std::mem::replace(&mut inner.nudged, true)
            && let Some(nudge) = &inner.nudge
        {
            nudge();
        }
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

    /// Replication: from now on somebody lets requests go.
    pub fn open(&self, in_force: Promise, nudge: Nudge) {
        let mut inner = self.lock();
        (inner.nudge, inner.nudged) = (Some(nudge), false);
        self.in_force.store(in_force as u8, SeqCst);
    }

    /// Replication: requests that become done from now on meet this promise.
    pub fn enforce(&self, promise: Promise) {
        self.in_force.store(promise as u8, SeqCst);
    }

    /// Replication: what waits.
    pub fn look(&self) -> Waiting {
        let mut inner = self.lock();
        inner.nudged = false;
        Waiting {
            requests: inner.requests.len(),
            since: inner.requests.iter().filter(|request| request.done.is_some()).map(|request| request.since).min(),
            newest: inner.requests.iter().filter_map(|request| request.done).map(|done| done.epoch).max(),
        }
    }

    /// Replication: tells those that need not wait any more, or must not.
    pub fn let_go(&self, safe: Option<Epoch>) {
        let (in_force, now, has_lease) = (self.in_force(), Instant::now(), !self.lease.has_run_out());
        let completes = |done: Option<Done>| has_lease && done.is_none_or(|done| in_force.completes(done, safe));
        let mut inner = self.lock();
        let Inner { requests, deadlines, .. } = &mut *inner;
        let is_late = |owner: Owner| deadlines.iter().any(|(of, at)| *of == owner && now >= *at);
        let ends = |request: &mut Request| completes(request.done) || is_late(request.owner);
        let ended: Vec<_> = requests.extract_if(.., ends).collect();
        drop(inner);
        for Request { done, release, .. } in ended {
            release(if completes(done) { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) });
        }
    }

    /// Replication has ended: what waits fails, and so does whatever would wait. The promise stays in force.
    pub fn close(&self) {
        let ended = {
            let mut inner = self.lock();
            inner.nudge = None;
            std::mem::take(&mut inner.requests)
        };
        ended.into_iter().for_each(|request| (request.release)(Err(nobody())));
    }

    /// The volume has no standby any more: nothing is promised.
    pub(super) fn forget_promise(&self) {
        self.in_force.store(Promise::Local as u8, SeqCst);
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
        held.open(Promise::Barrier, Box::new(move || nudge.send(()).unwrap()));
        assert!(ask(&held, 5, &tell) && ask(&held, 6, &tell));
        assert!(!held.asks(Some(Done { kind: Kind::Write, epoch: 6 }), 0, || unreachable!("a write does not wait")));
        assert_eq!(nudged.try_iter().count(), 1);
        let waiting = held.look();
        assert_eq!((waiting.requests, waiting.newest), (2, Some(6)));
        held.let_go(Some(5));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(5, true)]);
        held.enforce(Promise::Local);
        held.let_go(Some(5));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(6, true)]);
    }

    #[test]
    fn whoever_waits_is_told_when_its_time_is_up_or_nobody_replicates() {
        let (held, (tell, told)) = (Held::default(), mpsc::channel());
        held.open(Promise::Sync, Box::new(|| {}));
        assert!((5..8).all(|epoch| ask(&held, epoch, &tell)));
        held.set_deadline(6, Duration::ZERO);
        held.let_go(None);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(6, false)]);
        held.forget_deadline(6);
        held.close();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(5, false), (7, false)]);
        assert!(ask(&held, 8, &tell), "told at once");
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(8, false)]);
        held.forget_promise();
        assert!(!ask(&held, 9, &tell));
    }

    #[test]
    fn without_a_valid_lease_nothing_goes_reads_included() {
        let (held, (tell, told)) = (Held::default(), mpsc::channel());
        held.open(Promise::Local, Box::new(|| {}));
        held.lease().set_until(0);
        let tell_of_read = tell.clone();
        assert!(held.asks(None, 1, || Box::new(move |result| tell_of_read.send((0, result.is_ok())).unwrap())));
        assert!(ask(&held, 5, &tell), "what is promised or not");
        held.let_go(Some(9));
        assert_eq!((told.try_iter().count(), held.look().requests), (0, 2));
        held.lease().set_until(super::super::boot_ms() + 60_000);
        held.let_go(None);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [(0, true), (5, true)]);
        assert!(!held.asks(None, 1, || unreachable!("the lease is valid")));
    }
}
