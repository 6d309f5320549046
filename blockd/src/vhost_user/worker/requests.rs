//! From a chain to its answer: parse, admit, carry out, give back.

use super::super::chain::{self, Parsed, Status};
use super::super::descriptors::Descriptors;
use super::super::mailbox::{Debt, Message};
use super::super::operation::{Chain, Operation};
use super::super::queue::Head;
use super::super::sys::{Finished, Work};
use super::super::zeroing::Job;
use super::{MAX_CHAINS_A_TURN, Worker};
use crate::request::{Op, Space};
use crate::volume::{Admission, Completion, Pass, Waiter};
use replicator::intake::Release;
use std::io;
use std::time::Instant;

/// Whether a step could be begun.
#[derive(PartialEq, Eq)]
enum Step {
    Begun,
    GateShut,
}

impl Worker {
    /// Takes what there is; says whether there was something.
    pub(super) fn take_chains(&mut self, place: usize) -> bool {
        for count in 0..MAX_CHAINS_A_TURN {
            let Some((head, parsed)) = self.take_chain(place) else { return count > 0 };
            let begun = match parsed {
                Ok(parsed) => self.begin(Chain { queue: place, head, memory: self.memory.clone() }, parsed),
                Err(chain::NoStatus) => {
                    self.put_used(place, head, 0);
                    Step::Begun
                }
            };
            if begun == Step::GateShut {
                self.queues[place].iter_mut().for_each(|queue| queue.put_back(head));
                return count > 0;
            }
        }
        true
    }

    fn take_chain(&mut self, place: usize) -> Option<(Head, Result<Parsed, chain::NoStatus>)> {
        if !self.may_take() {
            return None;
        }
        let queue = self.queues[place].as_mut()?;
        let head = queue.take(&queue.layout.rings(&self.memory).ok()?)?;
        let chain = Descriptors::of(&self.memory, queue.layout.descriptors, queue.layout.size, head.index);
        Some((head, chain::parse(&self.memory, chain, &mut self.spares)))
    }

    fn begin(&mut self, chain: Chain, parsed: Parsed) -> Step {
        let (place, head, status_at, writable_bytes) = (chain.queue, chain.head, parsed.status, parsed.writable_bytes);
        match Operation::prepare(&self.device, &mut self.ring, &mut self.pool, chain, parsed) {
            Err(status) => {
                chain::answer(&self.memory, status_at, status);
                self.put_used(place, head, writable_bytes);
                Step::Begun
            }
            Ok(operation) => {
                self.bounce_bytes += operation.bounce_bytes;
                let key = self.operations.insert(operation);
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
            let never = Message::Admitted(key, Err(io::Error::other("the volume is being closed")));
            let debt = Debt::new(mailbox, never);
            Box::new(move |answer| debt.answer(Message::Admitted(key, answer)))
        };
        match self.device.volume.admit(operation.request(), waiter) {
            Admission::Granted(pass) => {
                self.admitted(key, pass);
                Step::Begun
            }
            Admission::Pending => Step::Begun,
            Admission::Closed => Step::GateShut,
        }
    }

    pub(super) fn admitted(&mut self, key: usize, pass: Pass) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        operation.pass = Some(pass);
        let request = operation.request();
        let space = match request.op {
            Op::Read | Op::Write(_) | Op::Flush => {
                return match operation.work.take() {
                    Some(transfer) => self.transfer(key, transfer),
                    None => self.start_work(key, Work::Sync),
                };
            }
            Op::Discard => Space::MayFree,
            Op::WriteZeroes(space, _) => space,
            Op::Cache => return self.stage_done(key, Ok(())),
        };
        let never = Message::Zeroed(key, Err(io::Error::other("the thread that makes zeroes has ended")));
        let debt = Debt::new(&self.mailbox, never);
        // A job that nobody takes answers by itself.
        let _ = self.zeroing.send(Job { key, debt, space, offset: request.offset, len_bytes: request.len_bytes });
    }

    fn transfer(&mut self, key: usize, transfer: Work) {
        if let Some((key, transfer)) = self.pace.begin((key, transfer)) {
            self.start_work(key, transfer);
        }
    }

    /// Gives the disk what was kept from it, as far as its pace allows.
    pub(super) fn start_kept(&mut self) {
        while let Some((key, transfer)) = self.pace.resume() {
            self.start_work(key, transfer);
        }
    }

    fn start_work(&mut self, key: usize, work: Work) {
        let alone = self.operations.len() == 1 && !self.has_available();
        if self.inline.begin(alone) && !matches!(work, Work::Read(_)) {
            let finished = self.inline.run(|| self.ring.run(key, work));
            if self.has_available() {
                self.inline.held_up();
            }
            return self.finished(finished);
        }
        let paced = !matches!(work, Work::Sync);
        if let Err(error) = self.ring.start(key, work) {
            if paced {
                self.pace.done(Instant::now());
            }
            self.step_done(key, Err(error));
        }
    }

    pub(super) fn finished(&mut self, finished: Finished) {
        let Finished { tag: key, work, mut result } = finished;
        let (transfer, reads) = match work {
            Work::Sync => return self.step_done(key, self.device.volume.image.note_sync(result)),
            Work::Read(transfer) => (transfer, true),
            Work::Write(transfer) => (transfer, false),
        };
        self.pace.done(Instant::now());
        self.start_kept();
        let (vectors, buf) = transfer.into_parts();
        self.ring.give(vectors);
        if let Some(buf) = buf {
            let delivered = self.operations.get_mut(key).filter(|_| reads).map(|operation| operation.deliver(&buf));
            if let Some(Err(_)) = delivered {
                result = result.and(Err(io::ErrorKind::InvalidInput.into()));
            }
            self.pool.give(buf);
        }
        self.stage_done(key, result);
    }

    /// The step's data is in place, or will never be.
    pub(super) fn stage_done(&mut self, key: usize, result: io::Result<()>) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        if result.is_ok() && operation.wants_sync() {
            operation.syncing = true;
            return self.start_work(key, Work::Sync);
        }
        self.step_done(key, result);
    }

    fn step_done(&mut self, key: usize, result: io::Result<()>) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        let Some(pass) = operation.pass.take() else { return self.complete(key, result) };
        if result.is_err() || operation.is_last() {
            return self.finish(key, pass, result);
        }
        if let Err(error) = self.device.volume.complete(pass, result) {
            return self.complete(key, Err(error));
        }
        operation.advance();
        if self.admit(key) == Step::GateShut {
            self.waiting.push(key);
        }
    }

    /// All of it is done here: it is answered, now or once it need not wait any more.
    fn finish(&mut self, key: usize, pass: Pass, result: io::Result<()>) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        let (mailbox, owner) = (&self.mailbox, self.owners[operation.chain.queue]);
        let release = || -> Release {
            let never = Message::Released(key, Err(io::Error::other("the volume is being closed")));
            let debt = Debt::new(mailbox, never);
            Box::new(move |result| debt.answer(Message::Released(key, result)))
        };
        match self.device.volume.finish(pass, result, owner, release) {
            Completion::Told(result) => self.complete(key, result),
            Completion::Held(pass) => operation.pass = Some(pass),
        }
    }

    /// What was held need not wait any more.
    pub(super) fn released(&mut self, key: usize, result: io::Result<()>) {
        let Some(pass) = self.operations.get_mut(key).and_then(|operation| operation.pass.take()) else { return };
        self.finish(key, pass, result);
    }

    pub(super) fn complete(&mut self, key: usize, result: io::Result<()>) {
        let Some(operation) = self.forget(key) else { return };
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                tracing::debug!(volume = self.device.volume.name, request = ?operation.request(), %error, "vhost-user: a request failed");
                Status::IoError
            }
        };
        operation.answer(&self.device, status);
        let Operation { chain: Chain { queue, head, .. }, writable_bytes, data, .. } = operation;
        self.spares.give(data);
        self.put_used(queue, head, writable_bytes);
    }

    /// The rings are where the front end last said; the data was where it said when the chain was taken.
    fn put_used(&mut self, place: usize, head: Head, len_bytes: u32) {
        let Some(queue) = &mut self.queues[place] else { return };
        match queue.layout.rings(&self.memory) {
            Ok(rings) => queue.put_used(&rings, head, len_bytes),
            Err(_) => queue.lose(head),
        }
    }

    fn forget(&mut self, key: usize) -> Option<Operation> {
        let operation = self.operations.remove(key)?;
        self.bounce_bytes -= operation.bounce_bytes;
        Some(operation)
    }

    pub(super) fn resume_waiting(&mut self) {
        if self.waiting.is_empty() || !self.device.volume.gate.is_open() {
            return;
        }
        for key in std::mem::take(&mut self.waiting) {
            if self.admit(key) == Step::GateShut {
                self.waiting.push(key);
            }
        }
    }

    /// What would be left of the discards of a queue that stops counts as done.
    pub(super) fn give_up_waiting(&mut self, place: usize) {
        let of_queue = |key: &usize| self.operations.get(*key).is_some_and(|operation| operation.chain.queue == place);
        let (given_up, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting).into_iter().partition(of_queue);
        self.waiting = waiting;
        given_up.into_iter().for_each(|key| self.complete(key, Ok(())));
    }
}
