//! From results to bytes: replies, in batches, one send at a time.

use super::Worker;
use super::batch::{Batch, Reply};
use super::operation::Task;
use super::sys::Work;
use crate::nbd::transmission::{self, Failure, Header, Statuses};
use crate::request::Op;
use std::io;

impl Worker {
    /// The operation is done.
    pub(super) fn succeed(&mut self, number: usize, statuses: Statuses) {
        let operation = &mut self.operations[number];
        let connection = &self.connections[operation.connection];
        let (command, replies) = (&operation.command, connection.session.replies);
        if let Some(op) = operation.observed() {
            connection.served.metrics.observe_request(op, self.now.duration_since(operation.begun));
        }
        let reply = match operation.task {
            Task::Describe(_) => Reply::Bytes(transmission::block_status(command, &statuses, replies)),
            Task::Serve(order) => match operation.buf.take_if(|_| order.request.op == Op::Read) {
                None => Reply::Header(transmission::done(command, replies)),
                Some(mut buf) => {
                    let data = operation.data.clone();
                    let header = transmission::read(command, replies);
                    buf.put_header(data.start, header.as_bytes());
                    Reply::Data { buf, header_bytes: header.as_bytes().len(), data }
                }
            },
        };
        self.reply(number, reply);
    }

    /// The operation has failed.
    pub(super) fn fail(&mut self, number: usize, error: &io::Error) {
        let operation = &self.operations[number];
        let connection = &self.connections[operation.connection];
        let command = &operation.command;
        tracing::debug!(volume = connection.served.volume.name, kind = command.kind, offset = command.offset, %error, "nbd: a request failed");
        let reply = Reply::Header(connection.failure(command, Failure::from(error)));
        self.reply(number, reply);
    }

    /// A request that did not become an operation is answered.
    pub(super) fn refuse(&mut self, key: usize, reply: Header) -> bool {
        self.queue(key, Reply::Header(reply), 0);
        true
    }

    /// Nobody waits for an answer.
    pub(super) fn forget(&mut self, number: usize) {
        let operation = self.operations.remove(number);
        operation.buf.into_iter().for_each(|buf| self.pool.give(buf));
        self.release(operation.connection, 1, operation.window_bytes);
    }

    fn reply(&mut self, number: usize, reply: Reply) {
        let operation = self.operations.remove(number);
        operation.buf.into_iter().for_each(|buf| self.pool.give(buf));
        self.queue(operation.connection, reply, operation.window_bytes);
    }

    fn queue(&mut self, key: usize, reply: Reply, window_bytes: u64) {
        self.connections[key].replies.push_back((reply, window_bytes));
        self.call(key);
    }

    /// Sends what there is, unless something is being sent.
    pub(super) fn send(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        if connection.replies.is_empty() {
            return;
        }
        let Some(mut batch) = connection.batch.take() else { return };
        while !batch.is_full()
            && let Some((reply, window_bytes)) = connection.replies.pop_front()
        {
            batch.add(reply, window_bytes);
        }
        if connection.broken {
            return self.unload(key, batch);
        }
        batch.seal();
        self.ring.start(connection.socket_file, key, Work::Send(batch));
    }

    pub(super) fn sent(&mut self, key: usize, batch: Box<Batch>, result: &io::Result<usize>) {
        if result.is_err() {
            let connection = &mut self.connections[key];
            connection.broken = true;
            connection.hang_up();
            // What it has sent already may be much: none of it begins.
            self.end(key, Ok(()));
        }
        self.unload(key, batch);
    }

    fn unload(&mut self, key: usize, mut batch: Box<Batch>) {
        let (requests, window_bytes) = (batch.requests, batch.window_bytes);
        batch.clear(&mut self.pool);
        self.connections[key].batch = Some(batch);
        self.release(key, requests, window_bytes);
    }

    /// There is room in the window again.
    pub(super) fn release(&mut self, key: usize, requests: u32, window_bytes: u64) {
        self.connections[key].leave(requests, window_bytes);
        self.budget_bytes += window_bytes as i64;
        self.call(key);
        for key in std::mem::take(&mut self.starved) {
            if self.connections.contains(key) {
                self.call(key);
            }
        }
    }
}
