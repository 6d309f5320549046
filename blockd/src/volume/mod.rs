//! A volume as front ends see it: a gate, a tracker of writes and an image.
//!
//! ```text
//!   front end ──► admit ──► (its own io_uring on Volume::image) ──► complete ──► front end
//!                  gate, epoch, activity log                 epoch's count, fence   ▲
//!                                                                 └──► held ────────┘ the standby has it
//! ```
//!
//! The volume moves no data itself: whoever was admitted submits to the image with whatever ring it owns. That keeps one thread on a
//! request from the socket to the disk and back.

mod device;
pub mod gate;
mod origin;
mod slot;

pub use gate::{Gate, GateState, Suspension};
pub use origin::{Origin, Source, Trouble, Unfilled, Wanted};
pub use slot::{Content, OriginSlot};

use crate::request::{Durability, Op, Request};
use crate::store::Image;
use replicator::counters::{self, Counters};
use replicator::intake::{Intake, Intaken, Owner, Release};
use replicator_engine::acknowledgement::{Done, Kind};
use replicator_engine::block::{Run, runs};
use replicator_engine::tracker::Write;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest range that is looked through for dirty blocks at once.
const DIRTY_BYTES: u64 = 64 << 30;

/// A volume that is open at this site.
pub struct Volume {
    /// Its name, unique at the site.
    pub name: String,
    /// Where its content lies.
    pub image: Image,
    /// Shut unless the volume may be served here.
    pub gate: Gate,
    /// What has to happen before a write touches the image.
    pub intake: Arc<Intake>,
    /// Who is attached.
    pub clients: Clients,
    /// Totals since it was made.
    pub counters: Arc<Counters>,
    /// Where content comes from that is not in the image yet.
    pub origin: OriginSlot,
}

/// Permission to carry out one request. Hand it back with [`Volume::complete`], whatever became of the request.
#[derive(Debug)]
#[must_use = "a pass that is not handed back keeps the gate from draining"]
pub struct Pass {
    write: Option<Write>,
    /// What its completion promises; `None` for a read, and for what has been waited for.
    done: Option<Done>,
}

impl Pass {
    const READ: Self = Self { write: None, done: None };

    fn of_write(request: Request, write: Write) -> Self {
        let kind = match request.op {
            Op::Write(Durability::Durable) | Op::WriteZeroes(_, Durability::Durable) => Kind::Durable,
            _ => Kind::Write,
        };
        Self { done: Some(Done { kind, epoch: write.epoch() }), write: Some(write) }
    }
}

/// What becomes of a request that is done here.
#[derive(Debug)]
pub enum Completion {
    /// The client is to be told this.
    Told(io::Result<()>),
    /// What [`Volume::finish`] was given is called when it need not wait any more. The pass is handed back then, by the same call.
    Held(Pass),
}

/// Answer to [`Volume::admit`].
#[derive(Debug)]
pub enum Admission {
    /// Go on.
    Granted(Pass),
    /// The volume is not served here now: wait for the gate, then ask again.
    Closed,
    /// The waiter is called with the answer. Content is fetched, old content kept or the activity log written first.
    Pending,
}

/// Is called, once, from another thread, with the pass for a write that had to wait.
pub type Waiter = Box<dyn FnOnce(io::Result<Pass>) + Send>;

impl Volume {
    /// Asks to carry out a checked request. `waiter` is only called upon, and what it makes only used, for [`Admission::Pending`].
    pub fn admit(&self, request: Request, waiter: impl FnOnce() -> Waiter) -> Admission {
        if !self.gate.try_enter() {
            return Admission::Closed;
        }
        let changed_run = request.changed_run();
        if changed_run.is_some() && request.op.moves_data() {
            counters::add(&self.counters.changed_bytes, request.len_bytes);
        }
        if let Some(origin) = self.origin.get().filter(|origin| !origin.has(request)) {
            let (intake, waiter) = (self.intake.clone(), waiter());
            origin.fetch(request, Box::new(move |filled| go_on(&intake, request, filled, waiter)));
            return Admission::Pending;
        }
        let Some(run) = changed_run else {
            // Every change that is complete by now is in this epoch or in an earlier one.
            let flush = || Done { kind: Kind::Durable, epoch: self.intake.tracker().open_epoch() };
            return Admission::Granted(Pass { done: (request.op == Op::Flush).then(flush), ..Pass::READ });
        };
        match self.intake.admit(run) {
            Intaken::Ready(write) => Admission::Granted(Pass::of_write(request, write)),
            Intaken::Parked(parked) => {
                let waiter = waiter();
                self.intake.resolve(parked, Box::new(move |answer| waiter(answer.map(|write| Pass::of_write(request, write)))));
                Admission::Pending
            }
        }
    }

    /// A client's whole request is done here, well or not. It may have to wait for the standby, or for a lease: then `release`, which is only
    /// called upon for that, makes what is called when it need not any more, on any thread. Then this is asked again.
    pub fn finish(&self, mut pass: Pass, result: io::Result<()>, owner: Owner, release: impl FnOnce() -> Release) -> Completion {
        if let Some(write) = pass.write.take() {
            self.intake.tracker().finish_write(write);
            if result.is_ok() {
                self.image.note_written();
            }
        }
        let done = pass.done.take();
        if result.is_ok() && self.intake.held().asks(done, owner, release) {
            return Completion::Held(pass);
        }
        Completion::Told(self.complete(pass, result))
    }

    /// A part of a request is done, well or not. Returns what the client is to be told.
    pub fn complete<T>(&self, pass: Pass, result: io::Result<T>) -> io::Result<T> {
        if let Some(write) = pass.write {
            self.intake.tracker().finish_write(write);
        }
        self.gate.exit()?;
        result.map_err(|error| self.image.note_error(error))
    }

    /// The answer to a [`Waiter`] was an error: leaves the gate in place of [`Self::complete`].
    pub fn abandon(&self) {
        let _ = self.gate.exit();
    }

    /// The parts of a range, not empty, whose blocks are not at the standby yet, ascending; none without a standby. Blocks, shortly. Only the
    /// first 64 GiB of the range are looked at: the second value says up to where the answer goes.
    pub fn dirty(&self, range: Range<u64>) -> (Vec<Range<u64>>, u64) {
        let end = range.end.min(range.start.saturating_add(DIRTY_BYTES));
        let Some(run) = Run::covering(range.start, end - range.start) else { return (Vec::new(), end) };
        let blocks = self.intake.behind().within(run);
        (runs(&blocks).map(|run| run.offset()..run.offset() + run.len_bytes()).collect(), end)
    }

    /// The parts of a range that may hold something other than zeroes, ascending.
    pub fn allocated(&self, range: Range<u64>) -> impl Iterator<Item = io::Result<Range<u64>>> {
        // What comes yet may be anything.
        let (whole, looked_at) = if self.origin.get().is_some() { (Some(Ok(range.clone())), range.end..range.end) } else { (None, range) };
        whole.into_iter().chain(self.image.allocated(looked_at))
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }
}

/// What a request touches is there: asks for the rest of its admission.
fn go_on(intake: &Arc<Intake>, request: Request, filled: io::Result<()>, waiter: Waiter) {
    let run = match (filled, request.changed_run()) {
        (Err(error), _) => return waiter(Err(error)),
        (Ok(()), None) => return waiter(Ok(Pass::READ)),
        (Ok(()), Some(run)) => run,
    };
    match intake.admit(run) {
        Intaken::Ready(write) => waiter(Ok(Pass::of_write(request, write))),
        Intaken::Parked(parked) => {
            intake.resolve(parked, Box::new(move |answer| waiter(answer.map(|write| Pass::of_write(request, write)))));
        }
    }
}

/// Counts the clients that are attached to a volume, by protocol.
#[derive(Debug, Default)]
pub struct Clients {
    /// NBD connections in transmission.
    pub nbd: AtomicU64,
    /// vhost-user connections with a started ring.
    pub vhost_user: AtomicU64,
}

impl Clients {
    /// The protocols by which somebody is attached.
    pub fn attached(&self) -> Vec<&'static str> {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst) > 0;
        [("vhost-user", count(&self.vhost_user)), ("nbd", count(&self.nbd))]
            .into_iter()
            .filter(|(_, on)| *on)
            .map(|(name, _)| name)
            .collect()
    }
}
