//! A thread's queues: chains in, one batch of submissions, completions out.
//!
//! ```text
//!            kick, ring readable, bell
//!                      │
//!   turn:  answers ──► completions ──► what waits for the gate ──► new chains ──► submit ──► interrupts
//!          (mailbox)   (io_uring)                                  (admit, start)
//! ```
//!
//! A [`Worker`] belongs to whoever holds its lock: the thread of its queues nearly always, or the connection's thread while it stops a queue.
//! Neither waits for the other's disk under any other lock.
//!
//! Chains are taken only while the gate is open, and one that meets a gate that has just shut goes back: what a queue has taken is being
//! carried out. The one exception is a discard of several ranges whose gate shuts between two of them; it waits, and if its queue is
//! stopped meanwhile, it is done: a discard is a hint.

use super::chain::{self, Status};
use super::device::Device;
use super::mailbox::{Answer, Mailbox};
use super::operation::{Chain, Operation, Prepared};
use super::sys::{Finished, Ring, Work};
use super::table::Table;
use super::virtqueue::{Taken, VirtQueue};
use super::zeroing::Job;
use crate::request::{MAX_TRANSFER_BYTES, Op, Space};
use crate::store::BufferPool;
use crate::volume::{Admission, GateState, Waiter};
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use vm_memory::GuestAddressSpace;

/// Operations of a worker at once. Further chains stay in their queues.
const MAX_OPERATIONS: usize = 1024;
/// Memory for unaligned transfers of a worker. At least one transfer of the largest size fits.
const MAX_BOUNCE_BYTES: u64 = 2 * MAX_TRANSFER_BYTES;
/// Chains taken from a queue before the others get their turn.
const MAX_CHAINS_A_TURN: usize = 1024;

/// What a worker is woken by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// The guest has put chains into this queue of the worker.
    Kick(usize),
    /// The ring or the mailbox is readable.
    Wake,
}

/// See the module's documentation.
pub(super) struct Worker {
    device: Arc<Device>,
    ring: Ring,
    mailbox: Arc<Mailbox>,
    /// Until the worker is closed.
    zeroing: Option<Sender<Job>>,
    operations: Table<Operation>,
    /// Empty until the first event.
    queues: Vec<VirtQueue>,
    /// Operations between two steps that found the gate shut.
    waiting: Vec<usize>,
    pool: BufferPool,
    bounce_bytes: u64,
}

/// Whether a step could be begun.
#[derive(PartialEq, Eq)]
enum Step {
    Begun,
    GateShut,
}

impl Worker {
    pub(super) fn new(device: Arc<Device>, mailbox: Arc<Mailbox>, zeroing: Sender<Job>) -> io::Result<Self> {
        let ring = Ring::new(device.volume.image.clone(), MAX_OPERATIONS)?;
        let (operations, pool) = (Table::default(), BufferPool::default());
        let (queues, waiting) = (Vec::new(), Vec::new());
        Ok(Self { device, ring, mailbox, zeroing: Some(zeroing), operations, queues, waiting, pool, bounce_bytes: 0 })
    }

    /// Is readable while completions wait.
    pub(super) fn ring_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Handles what woke the thread. `queues` makes the worker's queues, at the first event.
    pub(super) fn handle(&mut self, event: Event, queues: impl FnOnce() -> Vec<VirtQueue>) {
        if self.zeroing.is_none() {
            return;
        }
        if self.queues.is_empty() {
            self.queues = queues();
        }
        if let Event::Kick(queue) = event
            && let Some(queue) = self.queues.get_mut(queue)
        {
            queue.due = true;
        }
        self.turn();
    }

    /// Completes what was taken from the queue. It is not ready, or not enabled: nothing more is taken.
    pub(super) fn stop(&mut self, queue: usize) {
        if queue >= self.queues.len() {
            return;
        }
        self.turn();
        self.give_up_waiting(queue);
        while self.queues[queue].taken > 0 {
            self.wait();
            self.turn();
            self.give_up_waiting(queue);
        }
        self.interrupt();
        if std::mem::take(&mut self.queues[queue].started) {
            self.device.stop(self.queues[queue].number);
        }
    }

    /// Completes everything, for ever.
    pub(super) fn close(&mut self) {
        // Holes that are still to be made need the sender.
        self.queues.iter_mut().for_each(|queue| queue.closed = true);
        (0..self.queues.len()).for_each(|queue| self.stop(queue));
        self.zeroing = None;
    }

    fn turn(&mut self) {
        for answer in self.mailbox.take() {
            match answer {
                Answer::Admitted(key, Ok(pass)) => {
                    if let Some(operation) = self.operations.get_mut(key) {
                        operation.pass = Some(pass);
                        self.carry_out(key);
                    }
                }
                Answer::Admitted(key, Err(error)) => {
                    self.device.volume.abandon();
                    self.complete(key, Err(error));
                }
                Answer::Zeroed(key, result) => self.stage_done(key, result),
            }
        }
        while let Some(finished) = self.ring.reap() {
            self.finished(finished);
        }
        self.resume_waiting();
        for queue in 0..self.queues.len() {
            if self.queues[queue].due {
                self.take_chains(queue);
            }
        }
        if let Err(error) = self.ring.submit() {
            tracing::warn!(volume = self.device.volume.name, %error, "vhost-user: the kernel takes no submissions now: trying again");
            self.mailbox.ring();
        }
        self.interrupt();
    }

    /// Blocks until there is something for a turn to do.
    fn wait(&self) {
        let mut fds = [PollFd::new(&self.ring, PollFlags::IN), PollFd::new(&self.mailbox, PollFlags::IN)];
        // Interrupted or not, the next turn looks.
        let _ = poll(&mut fds, None);
    }

    fn take_chains(&mut self, queue: usize) {
        if !self.queues[queue].begin() {
            return;
        }
        if !std::mem::replace(&mut self.queues[queue].started, true) {
            self.device.start(self.queues[queue].number);
        }
        for _ in 0..MAX_CHAINS_A_TURN {
            let full = self.operations.len() >= MAX_OPERATIONS || self.bounce_bytes + MAX_TRANSFER_BYTES > MAX_BOUNCE_BYTES;
            if full || self.device.volume.gate.state() != GateState::Open {
                return;
            }
            match self.queues[queue].take(&self.device.memory) {
                Taken::Nothing => return,
                Taken::Chain(memory, descriptors) => {
                    let head = descriptors.head_index();
                    let begun = match chain::parse(&memory, descriptors) {
                        Ok(parsed) => self.begin(Chain { queue, head, memory }, parsed),
                        Err(chain::NoStatus) => {
                            self.queues[queue].put_used(&memory, head, 0);
                            Step::Begun
                        }
                    };
                    if begun == Step::GateShut {
                        self.queues[queue].put_back();
                        return;
                    }
                }
            }
        }
        // It is still due.
        self.mailbox.ring();
    }

    fn begin(&mut self, chain: Chain, parsed: chain::Parsed) -> Step {
        let (queue, head, memory) = (chain.queue, chain.head, chain.memory.clone());
        let (status_at, writable_bytes) = (parsed.status, parsed.writable_bytes);
        match Operation::prepare(&self.device, &mut self.pool, chain, parsed) {
            Prepared::Answer(status) => {
                chain::answer(&memory, status_at, status);
                self.queues[queue].put_used(&memory, head, writable_bytes);
                Step::Begun
            }
            Prepared::Operation(operation) => {
                self.queues[queue].taken += 1;
                self.bounce_bytes += operation.bounce_bytes;
                let key = self.operations.insert(*operation);
                let begun = self.admit(key);
                if begun == Step::GateShut {
                    self.forget(key);
                }
                begun
            }
        }
    }

    fn admit(&mut self, key: usize) -> Step {
        let Some(operation) = self.operations.get_mut(key) else { return Step::Begun };
        let mailbox = &self.mailbox;
        let waiter = || -> Waiter {
            let mailbox = mailbox.clone();
            Box::new(move |answer| mailbox.send(Answer::Admitted(key, answer)))
        };
        match self.device.volume.admit(operation.request(), waiter) {
            Admission::Granted(pass) => {
                operation.pass = Some(pass);
                self.carry_out(key);
                Step::Begun
            }
            Admission::Pending => Step::Begun,
            Admission::Closed => Step::GateShut,
        }
    }

    fn carry_out(&mut self, key: usize) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        let request = operation.request();
        let space = match request.op {
            Op::Read | Op::Write(_) | Op::Flush => {
                let work = operation.work.take().unwrap_or(Work::Sync);
                return self.start(key, work);
            }
            Op::Discard => Space::MayFree,
            Op::WriteZeroes(space, _) => space,
            Op::Cache => return self.stage_done(key, Ok(())),
        };
        let job = Job { mailbox: self.mailbox.clone(), key, space, offset: request.offset, len_bytes: request.len_bytes };
        let sent = self.zeroing.as_ref().is_some_and(|zeroing| zeroing.send(job).is_ok());
        if !sent {
            self.stage_done(key, Err(io::Error::other("the thread that makes zeroes has ended")));
        }
    }

    fn start(&mut self, key: usize, work: Work) {
        if let Err(error) = self.ring.start(key, work) {
            self.step_done(key, Err(error));
        }
    }

    fn finished(&mut self, finished: Finished) {
        let Finished { tag: key, work, mut result } = finished;
        match work {
            Work::Sync => return self.synced(key, result),
            Work::Read(transfer) => {
                if let Some(buf) = transfer.into_buf() {
                    let delivered = self.operations.get_mut(key).map(|operation| operation.deliver(&buf));
                    if let Some(Err(_)) = delivered {
                        result = result.and(Err(io::ErrorKind::InvalidInput.into()));
                    }
                    self.pool.give(buf);
                }
            }
            Work::Write(transfer) => {
                if let Some(buf) = transfer.into_buf() {
                    self.pool.give(buf);
                }
            }
        }
        self.stage_done(key, result);
    }

    fn synced(&mut self, key: usize, result: io::Result<()>) {
        let result = self.device.volume.image.note_sync(result);
        self.step_done(key, result);
    }

    /// The step's data is in place, or will never be.
    fn stage_done(&mut self, key: usize, result: io::Result<()>) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        if result.is_ok() && operation.wants_sync() {
            operation.syncing = true;
            return self.start(key, Work::Sync);
        }
        self.step_done(key, result);
    }

    fn step_done(&mut self, key: usize, result: io::Result<()>) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        let result = match operation.pass.take() {
            Some(pass) => self.device.volume.complete(pass, result),
            None => result,
        };
        if result.is_err() || !operation.advance() {
            return self.complete(key, result);
        }
        if self.admit(key) == Step::GateShut {
            self.waiting.push(key);
        }
    }

    fn complete(&mut self, key: usize, result: io::Result<()>) {
        let Some(operation) = self.forget(key) else { return };
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                tracing::debug!(volume = self.device.volume.name, request = ?operation.request(), %error, "vhost-user: a request failed");
                Status::IoError
            }
        };
        operation.answer(&self.device, status);
        let Chain { queue, head, .. } = operation.chain;
        // The rings are where the front end last said; the data was where it said when the chain was taken.
        self.queues[queue].put_used(&self.device.memory.memory(), head, operation.writable_bytes);
    }

    fn forget(&mut self, key: usize) -> Option<Operation> {
        let operation = self.operations.remove(key)?;
        self.bounce_bytes -= operation.bounce_bytes;
        self.queues[operation.chain.queue].taken -= 1;
        Some(operation)
    }

    fn resume_waiting(&mut self) {
        if self.waiting.is_empty() || self.device.volume.gate.state() != GateState::Open {
            return;
        }
        for key in std::mem::take(&mut self.waiting) {
            if self.admit(key) == Step::GateShut {
                self.waiting.push(key);
            }
        }
    }

    fn give_up_waiting(&mut self, queue: usize) {
        let of_queue = |key: &usize| self.operations.get(*key).is_some_and(|operation| operation.chain.queue == queue);
        let (given_up, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(of_queue);
        self.waiting = waiting;
        let given_up: Vec<_> = given_up;
        given_up.into_iter().for_each(|key| self.complete(key, Ok(())));
    }

    fn interrupt(&mut self) {
        let memory = self.device.memory.memory();
        self.queues.iter_mut().for_each(|queue| queue.interrupt(&memory));
    }
}
