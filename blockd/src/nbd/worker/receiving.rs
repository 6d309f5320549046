//! From bytes to operations: input, the window, data of writes.

use super::connection::Reading;
use super::operation::{Operation, Task};
use super::sys::{Expect, Transfer, Work};
use super::{CutOff, Worker};
use crate::nbd::connection::InputError;
use crate::nbd::transmission::{Command, Order, Plan};
use crate::request::Op;
use std::io;

/// Data of which more than this is still to come is not worth a copy.
const DIRECT_BYTES: usize = 16 << 10;
/// Writes from this size on are large.
const LARGE_BYTES: u64 = 32 << 10;
/// What is received ahead of a large write's data.
const AHEAD_BYTES: usize = 4 << 10;

impl Worker {
    /// Makes what it can of what the client has sent, and receives more if that is what lacks.
    pub(super) fn consume(&mut self, key: usize) {
        while !self.connections[key].receiving && self.step(key) {}
    }

    /// `false`: there is nothing to do before something happens.
    fn step(&mut self, key: usize) -> bool {
        let connection = &self.connections[key];
        match connection.reading {
            Reading::Header if connection.input.len() >= connection.header_bytes() => self.decode(key),
            Reading::Header => self.receive(key),
            Reading::Room(command, plan) => self.enter(key, command, plan),
            Reading::Data(operation) => self.take_data(key, operation),
            Reading::Skip(0, reply) => {
                self.connections[key].reading = Reading::Header;
                self.refuse(key, reply)
            }
            Reading::Skip(..) if connection.input.len() == 0 => self.receive(key),
            Reading::Skip(left_bytes, reply) => {
                let connection = &mut self.connections[key];
                let part = (connection.input.len() as u64).min(left_bytes) as usize;
                connection.input.take(part);
                connection.reading = Reading::Skip(left_bytes - part as u64, reply);
                true
            }
            Reading::Over => false,
        }
    }

    fn decode(&mut self, key: usize) -> bool {
        let connection = &mut self.connections[key];
        let (header_bytes, session) = (connection.header_bytes(), connection.session);
        let command = Command::decode(connection.input.take(header_bytes), session.replies);
        let size_bytes = connection.served.volume.size_bytes();
        match command.and_then(|command| Ok((command, command.plan(session, size_bytes)?))) {
            Ok((_, Plan::Disconnect)) => self.end(key, Ok(())),
            Ok((command, plan)) => connection.reading = Reading::Room(command, plan),
            Err(fault) => self.end(key, Err(fault.into())),
        }
        true
    }

    /// Lets a request into the window, if there is room.
    fn enter(&mut self, key: usize, command: Command, plan: Plan) -> bool {
        let window_bytes = match plan {
            Plan::Serve(order) if order.request.op.moves_data() => order.request.len_bytes,
            _ => 0,
        };
        let connection = &mut self.connections[key];
        let has_memory = self.budget_bytes >= window_bytes as i64 || connection.has_own_room(window_bytes);
        if !connection.has_room(window_bytes) || !has_memory {
            if connection.has_room(window_bytes) && !self.starved.contains(&key) {
                self.starved.push(key);
            }
            self.watch.begin();
            return false;
        }
        connection.enter(window_bytes);
        self.budget_bytes -= window_bytes as i64;
        connection.reading = Reading::Header;
        match plan {
            Plan::Disconnect => {}
            Plan::Refuse(refusal) => connection.reading = Reading::Skip(refusal.skip_bytes, connection.failure(&command, refusal.failure)),
            Plan::Serve(order) => self.begin(Operation::new(key, command, Task::Serve(order), order.request, window_bytes, self.now)),
            Plan::Describe { request, max_extents } => {
                self.begin(Operation::new(key, command, Task::Describe(max_extents), request, window_bytes, self.now));
            }
        }
        true
    }

    fn begin(&mut self, mut operation: Operation) {
        let (key, request) = (operation.connection, operation.part);
        match (operation.task, request.op) {
            (Task::Serve(Order { .. }), Op::Write(_)) => {
                let (buf, data) = self.buffer(key, request);
                (operation.buf, operation.data) = (Some(buf), data);
                let operation = self.operations.insert(operation);
                let connection = &mut self.connections[key];
                connection.large_writes = request.len_bytes >= LARGE_BYTES;
                connection.reading = Reading::Data(operation);
            }
            (Task::Serve(_), Op::Cache) => {
                // Nothing that a direct store can do.
                let operation = self.operations.insert(operation);
                self.succeed(operation, Vec::new());
            }
            _ => {
                let operation = self.operations.insert(operation);
                self.admit(operation);
            }
        }
    }

    fn take_data(&mut self, key: usize, number: usize) -> bool {
        let (connection, operation) = (&mut self.connections[key], &mut self.operations[number]);
        let buf = operation.buf.as_mut().expect("nothing is received into it now");
        let mut rest = operation.data.start + operation.received_bytes..operation.data.end;
        let part = rest.len().min(connection.input.len());
        buf[rest.start..rest.start + part].copy_from_slice(connection.input.take(part));
        operation.received_bytes += part;
        rest.start += part;
        if rest.is_empty() {
            connection.reading = Reading::Header;
            self.admit(number);
            return true;
        }
        if rest.len() <= DIRECT_BYTES {
            return self.receive(key);
        }
        if let Some(buf) = operation.buf.take() {
            self.fill(key, Transfer { buf, part: rest, offset: 0 });
        }
        false
    }

    fn receive(&mut self, key: usize) -> bool {
        let connection = &mut self.connections[key];
        let ahead = matches!(connection.reading, Reading::Header) && connection.large_writes;
        let (bytes, part) = connection.input.lend(if ahead { AHEAD_BYTES } else { usize::MAX });
        connection.receiving = true;
        self.ring.start(connection.socket_file, key, Work::Receive(bytes, part, connection.expect));
        if connection.is_amid() {
            self.watch.begin();
        }
        false
    }

    pub(super) fn received(&mut self, key: usize, bytes: Vec<u8>, asked_bytes: usize, result: &io::Result<usize>, expect: Expect) {
        let connection = &mut self.connections[key];
        let received_bytes = *result.as_ref().unwrap_or(&0);
        connection.input.give_back(bytes, received_bytes);
        connection.receiving = false;
        // A socket that cannot tell what is left has told it by filling the buffer.
        connection.expect = if received_bytes == asked_bytes { Expect::Something } else { expect };
        connection.idle_ticks = 0;
        if received_bytes == 0 {
            self.hear_the_end(key);
        }
        self.call(key);
    }

    fn fill(&mut self, key: usize, transfer: Transfer) {
        let connection = &mut self.connections[key];
        connection.receiving = true;
        self.ring.start(connection.socket_file, key, Work::Fill(transfer));
        self.watch.begin();
    }

    pub(super) fn filled(&mut self, key: usize, transfer: Transfer, result: &io::Result<usize>) {
        let connection = &mut self.connections[key];
        connection.receiving = false;
        connection.idle_ticks = 0;
        let gone = matches!(result, Err(_) | Ok(0));
        if !gone && !transfer.part.is_empty() {
            return self.fill(key, transfer);
        }
        if let Reading::Data(number) = connection.reading {
            self.operations[number].buf = Some(transfer.buf);
            if gone {
                self.hear_the_end(key);
            } else {
                connection.reading = Reading::Header;
                self.admit(number);
            }
        }
        self.call(key);
    }

    /// The client sends no more: an end of file, a reset, it makes no difference.
    fn hear_the_end(&mut self, key: usize) {
        let connection = &self.connections[key];
        let end = match () {
            () if connection.stalled => Err(InputError::Stalled.into()),
            () if connection.is_amid() => Err(InputError::Vanished.into()),
            () => Ok(()),
        };
        self.end(key, end);
    }

    /// Nothing is received from the client any more; what still waits for its volume need not begin.
    pub(super) fn end(&mut self, key: usize, end: Result<(), CutOff>) {
        let connection = &mut self.connections[key];
        match connection.reading {
            Reading::Data(number) => self.waiting.push(number),
            Reading::Skip(..) => self.release(key, 1, 0),
            Reading::Header | Reading::Room(..) | Reading::Over => {}
        }
        self.connections[key].end(end);
        for number in std::mem::take(&mut self.waiting) {
            match self.operations[number].connection == key {
                true => self.forget(number),
                false => self.waiting.push(number),
            }
        }
        self.watch.begin();
        self.call(key);
    }
}
