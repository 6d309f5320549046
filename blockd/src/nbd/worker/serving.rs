//! Carries out operations on their volume's image.
//!
//! ```text
//!   admit ──► [edges] ──► [sectors at the ends] ──► transfer ──► [sync] ──► complete ──► next part, or reply
//!     └─ gate shut: waits       └─ or by another thread: holes, block status
//! ```

use super::Worker;
use super::mailbox::{Debt, Message};
use super::operation::{Stage, Task};
use super::sys::{self, Transfer, Work};
use crate::debt::Inbox;
use crate::nbd::edges::Hold;
use crate::nbd::statuses::statuses;
use crate::nbd::transmission::{Order, Statuses, Zeroing};
use crate::request::{Op, Request, Space};
use crate::store::{AlignedBuf, Image};
use crate::volume::{Admission, Completion, Pass, Waiter};
use replicator::intake::Release;
use std::io;
use std::ops::Range;

/// Threads for a connection that do what would block the worker: holes, and looking for them. A file system makes one hole of a file at a time
/// anyway, and a disk that hangs must not take other clients with it.
const HELPERS: usize = 4;

impl Worker {
    /// A buffer for the data of a request, and where the data lies in it: at the same distance from a multiple of the image's alignment as
    /// on the disk.
    pub(super) fn buffer(&mut self, key: usize, request: Request) -> (AlignedBuf, Range<usize>) {
        let around = self.around(key, request);
        let start = (request.offset - around.start) as usize;
        (self.pool.take((around.end - around.start) as usize), start..start + request.len_bytes as usize)
    }

    /// The whole sectors that a request touches.
    fn around(&self, key: usize, Request { offset, len_bytes, .. }: Request) -> Range<u64> {
        let align = self.align_bytes(key);
        offset / align * align..(offset + len_bytes).next_multiple_of(align)
    }

    fn align_bytes(&self, key: usize) -> u64 {
        self.connections[key].served.volume.image.align_bytes()
    }

    /// Asks whether the operation's part may be carried out.
    pub(super) fn admit(&mut self, number: usize) {
        let operation = &self.operations[number];
        let connection = &self.connections[operation.connection];
        let waiter = || -> Waiter {
            let never = Message::Admitted(number, Err(io::Error::other("the volume is being closed")));
            let debt = Debt::new(&self.mailbox, never);
            Box::new(move |answer| debt.answer(Message::Admitted(number, answer)))
        };
        match connection.served.volume.admit(operation.part, waiter) {
            Admission::Granted(pass) => self.admitted(number, pass),
            // Waited for even if the client is gone: the pass has to be handed back.
            Admission::Pending => {}
            Admission::Closed if connection.is_ended() => self.forget(number),
            Admission::Closed => self.waiting.push(number),
        }
    }

    /// The answer to a pending admission.
    pub(super) fn answered(&mut self, number: usize, answer: io::Result<Pass>) {
        match answer {
            Ok(pass) => self.admitted(number, pass),
            Err(error) => {
                self.connections[self.operations[number].connection].served.volume.abandon();
                self.fail(number, &error);
            }
        }
    }

    fn admitted(&mut self, number: usize, pass: Pass) {
        let operation = &mut self.operations[number];
        operation.pass = Some(pass);
        let (key, part) = (operation.connection, operation.part);
        match (operation.task, part.op) {
            (Task::Describe(_), _) => self.help(number),
            (_, Op::Read) => {
                let (buf, data) = self.buffer(key, part);
                self.operations[number].data = data;
                self.transfer(number, Stage::Data, buf, self.around(key, part).start);
            }
            (_, Op::Flush) => self.sync(number),
            (_, Op::Write(_) | Op::Discard | Op::WriteZeroes(..)) => self.seek_hold(number),
            (_, Op::Cache) => self.done(number, Ok(Vec::new())),
        }
    }

    /// Taken after admission: who waits for admission must not hold up one that an epoch waits for.
    fn seek_hold(&mut self, number: usize) {
        let operation = &self.operations[number];
        let (key, part) = (operation.connection, operation.part);
        let whole = self.around(key, part) == (part.offset..part.offset + part.len_bytes);
        let hold = if whole { Hold::Shared } else { Hold::Exclusive };
        let edges = &self.connections[key].served.edges;
        if hold == Hold::Shared && edges.try_share() {
            return self.held(number, hold);
        }
        let mailbox = self.mailbox.clone();
        edges.wait(hold, Box::new(move || mailbox.send(Message::Edges(number, hold))));
    }

    /// The edges are held.
    pub(super) fn held(&mut self, number: usize, hold: Hold) {
        let operation = &mut self.operations[number];
        operation.hold = Some(hold);
        if operation.zeroes().is_some() {
            return self.help(number);
        }
        if !matches!(operation.part.op, Op::Write(_)) {
            let (key, part) = (operation.connection, operation.part);
            let (mut buf, data) = self.buffer(key, part);
            buf[data.clone()].fill(0);
            let operation = &mut self.operations[number];
            (operation.buf, operation.data) = (Some(buf), data);
        }
        self.write(number);
    }

    /// Reads what the image has in the first and last sector outside of the data, then writes it all.
    fn write(&mut self, number: usize) {
        let operation = &self.operations[number];
        let (key, part, stage) = (operation.connection, operation.part, operation.stage);
        let (around, align) = (self.around(key, part), self.align_bytes(key));
        if stage == Stage::Begun && around.start < part.offset {
            let sector = self.pool.take(align as usize);
            self.transfer(number, Stage::Head, sector, around.start);
        } else if stage <= Stage::Head && part.offset + part.len_bytes < around.end {
            let sector = self.pool.take(align as usize);
            self.transfer(number, Stage::Tail, sector, around.end - align);
        } else if let Some(buf) = self.operations[number].buf.take() {
            self.transfer(number, Stage::Data, buf, around.start);
        }
    }

    fn transfer(&mut self, number: usize, stage: Stage, buf: AlignedBuf, offset: u64) {
        let operation = &mut self.operations[number];
        operation.stage = stage;
        let transfer = Transfer::whole(buf, offset);
        let writes = stage == Stage::Data && operation.part.op != Op::Read;
        let work = if writes { Work::Write(transfer) } else { Work::Read(transfer) };
        let key = operation.connection;
        if let Some((number, work)) = self.connections[key].pace.begin((number, work)) {
            self.start(number, work);
        }
    }

    /// Gives the disk what was kept from it, as far as its pace allows.
    pub(super) fn start_kept(&mut self, key: usize) {
        while let Some((number, work)) = self.connections[key].pace.resume() {
            self.start(number, work);
        }
    }

    /// Has the ring do a work on the image, or does it now if there is nothing else to do.
    fn start(&mut self, number: usize, work: Work) {
        let connection = &self.connections[self.operations[number].connection];
        // A disk that hangs must not take other clients with it.
        let alone = self.operations.len() == 1 && self.connections.len() == 1 && connection.input.len() == 0;
        if !self.inline.begin(alone) || matches!(work, Work::Read(_)) {
            return self.ring.start(connection.image_file, number, work);
        }
        self.ring.submit();
        let finished = self.inline.run(|| self.mailbox.while_at_disk(|| sys::run(&connection.served.volume.image, number, work)));
        if connection.has_sent_more() {
            self.inline.held_up();
        }
        self.finished(finished);
    }

    /// A transfer of the operation is over.
    pub(super) fn transferred(&mut self, number: usize, buf: AlignedBuf, result: io::Result<()>) {
        let operation = &mut self.operations[number];
        let whole = match operation.stage {
            Stage::Begun | Stage::Sync | Stage::Data => {
                operation.buf = Some(buf);
                if result.is_ok() && operation.wants_sync() {
                    self.let_go(number);
                    return self.sync(number);
                }
                return self.done(number, result.map(|()| Vec::new()));
            }
            Stage::Head | Stage::Tail => operation.buf.as_mut().expect("only the sector was away"),
        };
        if operation.stage == Stage::Head {
            whole[..operation.data.start].copy_from_slice(&buf[..operation.data.start]);
        } else {
            let behind = whole.len() - operation.data.end;
            let (to, from) = (operation.data.end, buf.len() - behind);
            whole[to..].copy_from_slice(&buf[from..]);
        }
        self.pool.give(buf);
        match result {
            Ok(()) => self.write(number),
            Err(error) => self.done(number, Err(error)),
        }
    }

    fn sync(&mut self, number: usize) {
        self.operations[number].stage = Stage::Sync;
        self.start(number, Work::Sync);
    }

    pub(super) fn synced(&mut self, number: usize, result: io::Result<()>) {
        let image = &self.connections[self.operations[number].connection].served.volume.image;
        let result = image.note_sync(result);
        self.done(number, result.map(|()| Vec::new()));
    }

    /// Has another thread do what would block this one.
    fn help(&mut self, number: usize) {
        let key = self.operations[number].connection;
        self.connections[key].helping.push_back(number);
        self.start_helpers(key);
    }

    fn start_helpers(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        while connection.helpers < HELPERS
            && let Some(number) = connection.helping.pop_front()
        {
            connection.helpers += 1;
            let operation = &self.operations[number];
            let (volume, contexts) = (connection.served.volume.clone(), connection.session.contexts);
            let (task, part) = (operation.task, operation.part);
            let space = operation.zeroes().unwrap_or(Space::MayFree);
            let Request { offset, len_bytes, .. } = part;
            let work = move || match task {
                Task::Describe(max_extents) => statuses(&volume, part, contexts, max_extents),
                Task::Serve(Order { zeroing, .. }) => zero(&volume.image, offset, len_bytes, space, zeroing).map(|()| Vec::new()),
            };
            let debt = Debt::new(&self.mailbox, Message::Helped(number, Err(io::Error::other("a helper's thread has ended"))));
            connection.runtime.spawn_blocking(move || debt.answer(Message::Helped(number, work())));
        }
    }

    pub(super) fn helped(&mut self, number: usize, result: io::Result<Statuses>) {
        let key = self.operations[number].connection;
        self.connections[key].helpers -= 1;
        self.start_helpers(key);
        self.done(number, result);
    }

    fn let_go(&mut self, number: usize) {
        let operation = &mut self.operations[number];
        if let Some(hold) = operation.hold.take() {
            self.connections[operation.connection].served.edges.release(hold);
        }
    }

    /// The operation's part is done, well or not.
    fn done(&mut self, number: usize, result: io::Result<Statuses>) {
        self.let_go(number);
        let operation = &mut self.operations[number];
        let connection = &self.connections[operation.connection];
        let volume = &connection.served.volume;
        let Some(pass) = operation.pass.take() else { return self.answer(number, result) };
        if result.is_ok() && operation.advance() {
            return match volume.complete(pass, result) {
                // It may be hours until the zeroes of a whole disk are written, and nobody hears of it any more.
                Ok(_) if connection.broken => self.forget(number),
                Ok(_) => self.admit(number),
                Err(error) => self.fail(number, &error),
            };
        }
        if matches!(operation.task, Task::Describe(_)) {
            let result = volume.complete(pass, result);
            return self.answer(number, result);
        }
        self.finish(number, pass, result.map(drop));
    }

    /// All of it is done here: it is answered, now or once it need not wait any more.
    fn finish(&mut self, number: usize, pass: Pass, result: io::Result<()>) {
        let operation = &mut self.operations[number];
        let connection = &self.connections[operation.connection];
        let release = || -> Release {
            let never = Message::Released(number, Err(io::Error::other("the volume is being closed")));
            let debt = Debt::new(&self.mailbox, never);
            Box::new(move |result| debt.answer(Message::Released(number, result)))
        };
        match connection.served.volume.finish(pass, result, connection.owner, release) {
            Completion::Told(result) => self.answer(number, result.map(|()| Vec::new())),
            Completion::Held(pass) => operation.pass = Some(pass),
        }
    }

    /// What was held need not wait any more.
    pub(super) fn released(&mut self, number: usize, result: io::Result<()>) {
        match self.operations[number].pass.take() {
            Some(pass) => self.finish(number, pass, result),
            None => self.answer(number, result.map(|()| Vec::new())),
        }
    }

    fn answer(&mut self, number: usize, result: io::Result<Statuses>) {
        match result {
            Ok(statuses) => self.succeed(number, statuses),
            Err(error) => self.fail(number, &error),
        }
    }
}

/// Makes zeroes of whole pages. Blocks.
fn zero(image: &Image, offset: u64, len_bytes: u64, space: Space, zeroing: Zeroing) -> io::Result<()> {
    match (space, zeroing) {
        (Space::Keep, Zeroing::AnyWay) => image.zero(offset, len_bytes),
        (Space::Keep, Zeroing::Fast) => image.zero_fast(offset, len_bytes),
        (Space::MayFree, Zeroing::AnyWay) => image.punch(offset, len_bytes),
        (Space::MayFree, Zeroing::Fast) => image.punch_fast(offset, len_bytes),
    }
}
