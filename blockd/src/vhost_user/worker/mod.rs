//! A thread that serves queues: chains in, one batch of submissions, completions out.
//!
//! ```text
//!   turn:  messages ──► completions ──► what waits for the gate ──► used rings ──► new chains
//!          (mailbox)    (io_uring)                                  interrupts     (admit, start)
//!
//!   nothing to do?  [linger: look at rings and completions for a moment]  ──►  sleep: ask for kicks, submit and wait in one system call
//! ```
//!
//! A [`Worker`] belongs to its thread, and so do its queues and its ring: there is no lock on the way of a request. The connection's thread
//! leaves messages and gets answers; other threads leave the answers that operations wait for. Kicks, messages and completions all end the
//! one wait, in io_uring.
//!
//! Chains are taken only while the gate is open, and one that meets a gate that has just shut goes back: what a queue has taken is being
//! carried out. The one exception is a discard of several ranges whose gate shuts between two of them; it waits, and if its queue is
//! stopped meanwhile, it is done: a discard is a hint.

mod control;
mod linger;
mod requests;

use super::chain::Spares;
use super::device::Device;
use super::mailbox::Mailbox;
use super::operation::Operation;
use super::queue::VirtQueue;
use super::sys::{Completion, Ring, Work};
use super::table::Table;
use super::zeroing::Job;
use crate::request::MAX_TRANSFER_BYTES;
use crate::store::{BufferPool, Inline, Pace};
use linger::Linger;
use replicator::intake::Owner;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use vm_memory::GuestMemoryMmap;

/// Operations of a worker at once. Further chains stay in their queues.
const MAX_OPERATIONS: usize = 1024;
/// Memory for unaligned transfers of a worker. At least one transfer of the largest size fits.
const MAX_BOUNCE_BYTES: u64 = 2 * MAX_TRANSFER_BYTES;
/// Chains taken from a queue before the others get their turn.
const MAX_CHAINS_A_TURN: usize = 256;
/// How long a worker leaves a kernel alone that takes no submissions.
const REFUSED_PAUSE: Duration = Duration::from_millis(1);
/// Requests at a time from which on the disk's pace is looked at: a guest refills its ring with fewer so soon that it does not pay.
const PACED_REQUESTS: usize = 16;

/// Kicks that are not watched any more are watched again so often in a row. What is no eventfd may be readable at any time, and never tell.
const MAX_UNWATCHED: u8 = 16;

/// Tokens of watched descriptors: a queue's place below, and above it a number that is never used again.
const PLACES: u64 = 1 << 8;
const BELL: u64 = PLACES - 1;

/// See the module's documentation.
pub(super) struct Worker {
    device: Arc<Device>,
    /// What queues and chains lie in. Operations under way keep the one that they began with.
    memory: Arc<GuestMemoryMmap>,
    ring: Ring,
    mailbox: Arc<Mailbox>,
    zeroing: Sender<Job>,
    operations: Table<Operation>,
    queues: Vec<Option<VirtQueue>>,
    /// Whose requests wait for the standby, by queue.
    owners: Vec<Owner>,
    /// The token under which each queue's kick is watched.
    tokens: Vec<u64>,
    /// How often each has been unwatched since it last told something.
    unwatched: Vec<u8>,
    last_token: u64,
    /// Queues that are to stop, and whom to tell.
    stopping: Vec<(usize, Option<Sender<Option<u16>>>)>,
    /// No message is listened to any more.
    closing: bool,
    /// Operations between two steps that found the gate shut.
    waiting: Vec<usize>,
    spares: Spares,
    pool: BufferPool,
    bounce_bytes: u64,
    /// While operations are under way, and while the guest is to begin some.
    lingers: [Linger; 2],
    inline: Inline,
    pace: Pace<(usize, Work)>,
}

/// What a turn has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing happened.
    Idle,
    /// Something did, and more may have happened meanwhile.
    Busy,
}

impl Worker {
    /// A worker for `places` queues, which looks for work for `poll` at most before it sleeps. Only the thread that calls this may use it.
    pub(super) fn new(
        device: Arc<Device>,
        memory: Arc<GuestMemoryMmap>,
        mailbox: Arc<Mailbox>,
        zeroing: Sender<Job>,
        places: usize,
        poll: Duration,
    ) -> io::Result<Self> {
        let mut ring = Ring::new(device.volume.image.clone(), MAX_OPERATIONS)?;
        ring.watch(BELL, mailbox.as_fd())?;
        let owners = (0..places).map(|_| device.volume.intake.held().new_owner()).collect();
        Ok(Self {
            device,
            memory,
            ring,
            mailbox,
            zeroing,
            operations: Table::default(),
            queues: (0..places).map(|_| None).collect(),
            owners,
            tokens: vec![0; places],
            unwatched: vec![0; places],
            last_token: 0,
            stopping: Vec::new(),
            closing: false,
            waiting: Vec::new(),
            spares: Spares::default(),
            pool: BufferPool::default(),
            bounce_bytes: 0,
            lingers: [Linger::new(poll), Linger::new(poll)],
            inline: Inline::default(),
            pace: Pace::new(PACED_REQUESTS),
        })
    }

    /// Serves until it is told to close, and what was begun is complete.
    pub(super) fn run(mut self) {
        loop {
            let turn = self.turn();
            if self.is_done() {
                return;
            }
            if turn == Turn::Idle {
                self.wait();
            }
        }
    }

    fn is_done(&self) -> bool {
        self.closing && self.operations.len() == 0 && self.queues.iter().all(Option::is_none)
    }

    fn turn(&mut self) -> Turn {
        let mut turn = Turn::Idle;
        for message in self.mailbox.take() {
            turn = Turn::Busy;
            self.handle(message);
        }
        while let Some(completion) = self.ring.reap() {
            turn = Turn::Busy;
            match completion {
                Completion::Finished(finished) => self.finished(finished),
                Completion::Readable(token) => self.kicked(token),
                Completion::Unwatched(token) => self.watch_again(token),
            }
        }
        self.resume_waiting();
        self.publish();
        for place in 0..self.queues.len() {
            if self.queues[place].is_some() && self.take_chains(place) {
                turn = Turn::Busy;
            }
        }
        // What could be answered at once.
        self.publish();
        self.finish_stops();
        turn
    }

    /// Whether chains may be taken at all. If not, something else ends the wait: a completion, or the gate's bell.
    fn may_take(&self) -> bool {
        let full = self.operations.len() >= MAX_OPERATIONS || self.bounce_bytes + MAX_TRANSFER_BYTES > MAX_BOUNCE_BYTES;
        !full && self.device.volume.gate.is_open()
    }

    /// Whether there is something for a turn to do now.
    fn has_news(&mut self) -> bool {
        self.mailbox.has_news() || self.ring.look() || self.may_take() && self.has_available()
    }

    fn has_available(&self) -> bool {
        let mut queues = self.queues.iter().flatten();
        queues.any(|queue| queue.layout.rings(&self.memory).is_ok_and(|rings| queue.has_available(&rings)))
    }

    /// Waits until there is something for a turn to do.
    fn wait(&mut self) {
        let began = Instant::now();
        let linger = usize::from(self.operations.len() == 0);
        if !self.look_around(began, self.lingers[linger].limit()) {
            self.sleep();
        }
        self.lingers[linger].waited(began.elapsed());
    }

    /// Looks for news until `limit` has passed; says whether there are any.
    fn look_around(&mut self, began: Instant, limit: Duration) -> bool {
        if limit.is_zero() || self.submit_now().is_err() {
            return false;
        }
        loop {
            if self.has_news() {
                return true;
            }
            if began.elapsed() >= limit {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    fn submit_now(&mut self) -> io::Result<()> {
        self.ring.submit().inspect_err(|error| tracing::debug!(%error, "vhost-user: the kernel takes no submissions now"))
    }

    /// Asks for kicks, and sleeps until something happens.
    fn sleep(&mut self) {
        if self.may_take() && self.arm() {
            return;
        }
        if let Err(error) = self.ring.wait() {
            tracing::warn!(volume = self.device.volume.name, %error, "vhost-user: the kernel takes no submissions now: trying again");
            std::thread::sleep(REFUSED_PAUSE);
        }
        self.disarm();
    }

    /// `true`: there is something to take already.
    fn arm(&self) -> bool {
        let mut any = false;
        for queue in self.queues.iter().flatten() {
            any |= queue.layout.rings(&self.memory).is_ok_and(|rings| queue.arm(&rings));
        }
        any
    }

    fn disarm(&self) {
        for queue in self.queues.iter().flatten() {
            if let Ok(rings) = queue.layout.rings(&self.memory) {
                queue.disarm(&rings);
            }
        }
    }

    fn publish(&mut self) {
        for queue in self.queues.iter_mut().flatten().filter(|queue| queue.has_batch()) {
            if let Ok(rings) = queue.layout.rings(&self.memory) {
                queue.publish(&rings);
            }
        }
    }
}

impl Drop for Worker {
    /// After a panic, nobody else gives the passes back.
    fn drop(&mut self) {
        self.ring.drain();
        for operation in self.operations.drain() {
            if let Some(pass) = operation.pass {
                let _ = self.device.volume.complete(pass, Err::<(), _>(io::ErrorKind::Interrupted.into()));
            }
        }
    }
}
