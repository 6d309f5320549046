//! What a worker knows of a client.

use super::batch::{Batch, Reply};
use super::input::Input;
use super::mailbox::Mailbox;
use super::sys::{Expect, File, Work};
use super::{Client, CutOff};
use crate::bells::Rope;
use crate::nbd::exports::Served;
use crate::nbd::transmission::{self, Command, Failure, Header, Plan, Session};
use crate::store::Pace;
use replicator::intake::{DRAIN_LIMIT, Owner};
use rustix::net::RecvFlags;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Requests of a connection that are carried out at once.
pub const MAX_REQUESTS: u32 = 64;
/// Data of a connection's requests; two of the largest.
pub const MAX_WINDOW_BYTES: u64 = 64 << 20;

/// Data that a connection may have though others have all the memory: theirs may be waited for without end, by whoever waits for a volume that
/// is not served here, or takes no answers.
pub(super) const OWN_BYTES: u64 = 256 << 10;

/// Requests at a time from which on the disk's pace is looked at: a client takes long for the bytes of a few large ones.
const PACED_REQUESTS: usize = 8;

/// What comes next from the client, or is to be done with what came last.
#[derive(Clone, Copy)]
pub(super) enum Reading {
    /// The header of a request.
    Header,
    /// Nothing before there is room for this request.
    Room(Command, Plan),
    /// Data of the write that is this operation.
    Data(usize),
    /// Data of a refused write, which is thrown away. Then it is told so.
    Skip(u64, Header),
    /// Nothing is read any more.
    Over,
}

/// See the module's documentation.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) socket_file: File,
    pub(super) image_file: File,
    pub(super) served: Arc<Served>,
    pub(super) session: Session,
    pub(super) stall_timeout: Duration,
    pub(super) runtime: Handle,
    pub(super) input: Input,
    pub(super) reading: Reading,
    /// The ring has the input's buffer, or that of the data.
    pub(super) receiving: bool,
    pub(super) expect: Expect,
    /// The last write was large: not much is received ahead of the next, whose data had to be copied.
    pub(super) large_writes: bool,
    /// Transfers of operations.
    pub(super) pace: Pace<(usize, Work)>,
    /// Each with the room in the window that it gives back; bounded by the window.
    pub(super) replies: VecDeque<(Reply, u64)>,
    /// Operations that wait for another thread, and how many are with one.
    pub(super) helping: VecDeque<usize>,
    pub(super) helpers: usize,
    /// Away while it is sent.
    pub(super) batch: Option<Box<Batch>>,
    /// The client takes nothing any more.
    pub(super) broken: bool,
    /// The window: requests that were begun and whose answer is not sent yet, and their data.
    requests: u32,
    window_bytes: u64,
    /// It is in the worker's list of those to be attended to.
    pub(super) due: bool,
    /// Seconds that have passed without progress.
    pub(super) idle_ticks: u32,
    /// It was hung up on because it sent nothing more.
    pub(super) stalled: bool,
    /// Of the requests that wait for the standby.
    pub(super) owner: Owner,
    end: Result<(), CutOff>,
    over: oneshot::Sender<Result<(), CutOff>>,
    _bell: Rope,
}

impl Connection {
    pub(super) fn new(client: Client, socket_file: File, image_file: File, mailbox: &Arc<Mailbox>) -> Self {
        let Client { socket, input: (bytes, filled), served, session, stall_timeout, runtime, over } = client;
        let mailbox = mailbox.clone();
        let bell = served.volume.gate.bells().add(move || mailbox.ring());
        let owner = served.volume.intake.held().new_owner();
        Self {
            socket,
            socket_file,
            image_file,
            served,
            session,
            stall_timeout,
            runtime,
            input: Input::new(bytes, filled),
            reading: Reading::Header,
            receiving: false,
            expect: Expect::Something,
            large_writes: false,
            pace: Pace::new(PACED_REQUESTS),
            replies: VecDeque::new(),
            helping: VecDeque::new(),
            helpers: 0,
            batch: Some(Box::default()),
            broken: false,
            requests: 0,
            window_bytes: 0,
            due: false,
            idle_ticks: 0,
            stalled: false,
            owner,
            end: Ok(()),
            over,
            _bell: bell,
        }
    }

    /// Whether a request with that much data may begin.
    pub(super) fn has_room(&self, data_bytes: u64) -> bool {
        self.requests < MAX_REQUESTS && self.window_bytes + data_bytes <= MAX_WINDOW_BYTES
    }

    /// Whether a request with that much data may begin while others have all the memory.
    pub(super) fn has_own_room(&self, data_bytes: u64) -> bool {
        data_bytes == 0 || self.window_bytes + data_bytes <= OWN_BYTES
    }

    /// A request begins.
    pub(super) fn enter(&mut self, data_bytes: u64) {
        self.requests += 1;
        self.window_bytes += data_bytes;
    }

    /// Requests are over, the answers sent or not wanted any more.
    pub(super) fn leave(&mut self, requests: u32, data_bytes: u64) {
        self.requests -= requests;
        self.window_bytes -= data_bytes;
    }

    /// The client has begun to send something, and not ended.
    pub(super) fn is_amid(&self) -> bool {
        match self.reading {
            Reading::Header => self.input.len() > 0,
            Reading::Data(_) | Reading::Skip(..) => true,
            Reading::Room(..) | Reading::Over => false,
        }
    }

    /// Length of a request without its data.
    pub(super) fn header_bytes(&self) -> usize {
        self.session.replies.request_header_bytes()
    }

    /// The answer to a request that failed.
    pub(super) fn failure(&self, command: &Command, failure: Failure) -> Header {
        transmission::failure(command, failure, self.session.replies)
    }

    /// Nothing is read any more.
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.reading, Reading::Over)
    }

    /// Ends it; the first reason counts.
    pub(super) fn end(&mut self, end: Result<(), CutOff>) {
        if !self.is_ended() {
            (self.reading, self.end, self.idle_ticks) = (Reading::Over, end, 0);
            self.served.volume.intake.held().set_deadline(self.owner, DRAIN_LIMIT);
        }
    }

    /// Whether there is something from the client that the ring has not received.
    pub(super) fn has_sent_more(&self) -> bool {
        let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        rustix::net::recv(&self.socket, &mut [0_u8; 1], peek).is_ok_and(|(_, len_bytes)| len_bytes > 0)
    }

    /// Whether nothing is left to be done.
    pub(super) fn is_over(&self) -> bool {
        self.is_ended() && !self.receiving && self.batch.is_some() && self.requests == 0
    }

    /// Tells whoever waits for it.
    pub(super) fn tell_the_end(self) {
        self.served.volume.intake.held().forget_deadline(self.owner);
        // Nobody may wait any more: then the thread of the handshakes has failed.
        let _ = self.over.send(self.end);
    }

    /// Makes whatever waits for the client end.
    pub(super) fn hang_up(&self) {
        // A client that is gone already needs no hanging up.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}
