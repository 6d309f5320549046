//! Transmission: a few threads, each with one io_uring for many connections.
//!
//! ```text
//!   turn:  enter ──► completions ──► mail ──► connections with something to do ──► enter …
//!            ▲       received, sent,  admitted,  input ──► requests ──► operations
//!            │       read, written    helped     replies ──► batches
//!            └──── one system call: submits all of it, and waits
//! ```
//!
//! A worker is the only owner of its connections, operations, buffers and ring: on the way of a request there is no lock, no allocation and
//! no other thread. What would block, or has to wait for others (holes, block status, an admission that is pending, the edges of an
//! unaligned write), comes back by the [`mailbox`].
//!
//! Requests run concurrently and are answered as they complete. Whatever ends a connection (DISC, a client that is gone, a fault, the
//! service), what has begun is completed before it is over; what still waits for its volume does not begin. Of a long range of zeroes, what
//! is not done when nobody can be answered any more stays undone.

mod batch;
mod connection;
mod input;
mod mailbox;
mod operation;
mod receiving;
mod replying;
mod serving;
pub(super) mod sys;
mod watch;

pub use connection::{MAX_REQUESTS, MAX_WINDOW_BYTES};

use super::connection::InputError;
use super::exports::Served;
use super::transmission::{Fault, Session};
use crate::debt::Inbox;
use crate::store::{BufferPool, Inline};
use connection::Connection;
use mailbox::{Mailbox, Message};
use operation::Operation;
use slab::Slab;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sys::{File, Finished, Ring, Work};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Most memory for the data of requests, over all workers, but for a little that each connection has to itself.
const MAX_DATA_BYTES: i64 = 1 << 30;
/// When a thread that does not answer is asked whether it waits for a disk.
const ANSWER_LIMIT: Duration = Duration::from_millis(100);
/// Files of a connection: its socket and its image.
const FILES: usize = 2;
/// The number of the mailbox among the files.
const MAILBOX: usize = 0;

/// Why a connection in transmission was ended by us.
#[derive(Debug, thiserror::Error)]
pub(super) enum CutOff {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("the thread that served it has ended")]
    Abandoned,
}

/// A client whose handshake is over.
pub(super) struct Client {
    pub(super) socket: OwnedFd,
    /// What it has sent already, in a buffer that is used on.
    pub(super) input: (Vec<u8>, Range<usize>),
    pub(super) served: Arc<Served>,
    pub(super) session: Session,
    /// How long it may say nothing in the middle of a request.
    pub(super) stall_timeout: Duration,
    /// Where that runs which would block.
    pub(super) runtime: Handle,
    /// Is told the end.
    pub(super) over: oneshot::Sender<Result<(), CutOff>>,
}

/// The threads.
pub(super) struct Workers {
    mailboxes: Vec<Arc<Mailbox>>,
    next: AtomicUsize,
}

impl Workers {
    /// Starts the threads. Each expects up to `max_connections`.
    pub(super) fn start(threads: usize, max_connections: usize) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (mut mailboxes, mut handles) = (Vec::new(), Vec::new());
        for number in 0..threads {
            let mailbox = Arc::new(Mailbox::new()?);
            mailboxes.push(mailbox.clone());
            let (started, start) = std::sync::mpsc::sync_channel(1);
            let budget_bytes = MAX_DATA_BYTES / threads as i64;
            let run = move || run(mailbox, max_connections, budget_bytes, &started);
            handles.push(std::thread::Builder::new().name(format!("tern-nbd-{number}")).spawn(run)?);
            // Whether there is io_uring here is known only on the thread that uses it.
            start.recv().unwrap_or_else(|_| Err(io::Error::other("a thread of the NBD service ended at its start")))?;
        }
        Ok((Self { mailboxes, next: AtomicUsize::new(0) }, handles))
    }

    /// Serves a client until its connection is over.
    pub(super) fn serve(&self, client: Client) {
        let next = self.next.fetch_add(1, Relaxed) % self.mailboxes.len();
        let mut in_turn = self.mailboxes.iter().cycle().skip(next).take(self.mailboxes.len());
        let free = in_turn.find(|mailbox| !mailbox.is_at_disk()).unwrap_or(&self.mailboxes[next]);
        free.send(Message::Client(Box::new(client)));
    }

    /// As though one had panicked.
    #[cfg(test)]
    pub(super) fn fail_one(&self) {
        self.mailboxes[0].close();
    }

    /// Whether every thread lives, once each has shown it.
    pub(super) async fn answer(&self) -> bool {
        for mailbox in &self.mailboxes {
            let (done, mut answer) = oneshot::channel();
            mailbox.send(Message::Answer(done));
            loop {
                match timeout(ANSWER_LIMIT, &mut answer).await {
                    Ok(Ok(())) => break,
                    Ok(Err(_)) => return false,
                    // A disk may take as long as it likes.
                    Err(_) if mailbox.is_at_disk() => break,
                    Err(_) => {}
                }
            }
        }
        true
    }

    /// The threads end once their last connection is over.
    pub(super) fn close(&self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.send(Message::Close));
    }
}

fn run(mailbox: Arc<Mailbox>, max_connections: usize, budget_bytes: i64, started: &SyncSender<io::Result<()>>) {
    match Worker::new(mailbox, max_connections, budget_bytes) {
        Ok(mut worker) => {
            let _ = started.send(Ok(()));
            while worker.turn() {}
        }
        Err(error) => drop(started.send(Err(error))),
    }
}

/// See the module's documentation.
struct Worker {
    mailbox: Arc<Mailbox>,
    ring: Ring,
    bell: File,
    pool: BufferPool,
    connections: Slab<Connection>,
    operations: Slab<Operation>,
    /// Connections that have something to do in this turn.
    due: Vec<usize>,
    /// Operations that found their gate shut.
    waiting: Vec<usize>,
    /// Memory for data that may still be used; below zero by what connections have beyond it, [`connection::OWN_BYTES`] each at most.
    budget_bytes: i64,
    /// Connections that wait for it.
    starved: Vec<usize>,
    /// Of this turn.
    now: Instant,
    watch: watch::Watch,
    inline: Inline,
    closing: bool,
}

impl Worker {
    fn new(mailbox: Arc<Mailbox>, max_connections: usize, budget_bytes: i64) -> io::Result<Self> {
        let mut ring = Ring::new(1 + FILES * max_connections)?;
        let bell = ring.learn(MAILBOX, &*mailbox);
        ring.start(bell, 0, Work::Listen(Box::default()));
        Ok(Self {
            mailbox,
            ring,
            bell,
            pool: BufferPool::default(),
            connections: Slab::new(),
            operations: Slab::new(),
            due: Vec::new(),
            waiting: Vec::new(),
            budget_bytes,
            starved: Vec::new(),
            now: Instant::now(),
            watch: watch::Watch::default(),
            inline: Inline::default(),
            closing: false,
        })
    }

    /// `false` if it was the last one.
    fn turn(&mut self) -> bool {
        if let Err(error) = self.ring.enter(self.watch.patience()) {
            tracing::error!(%error, "nbd: the kernel takes no submissions now: trying again");
        }
        self.now = Instant::now();
        while let Some(finished) = self.ring.reap() {
            self.finished(finished);
        }
        self.watch();
        while let Some(key) = self.due.pop() {
            self.attend(key);
        }
        !(self.closing && self.connections.is_empty())
    }

    /// What was started, or carried out at once, is done.
    fn finished(&mut self, finished: Finished) {
        let Finished { tag, work, result, expect } = finished;
        match work {
            Work::Receive(bytes, part, _) => self.received(tag, bytes, part.len(), &result, expect),
            Work::Fill(transfer) => self.filled(tag, transfer, &result),
            Work::Send(batch) => self.sent(tag, batch, &result),
            Work::Read(transfer) | Work::Write(transfer) => {
                let key = self.operations[tag].connection;
                self.connections[key].pace.done(self.now);
                self.start_kept(key);
                self.transferred(tag, transfer.buf, result.map(drop));
            }
            Work::Sync => self.synced(tag, result.map(drop)),
            Work::Listen(count) => {
                self.ring.start(self.bell, 0, Work::Listen(count));
                self.read_mail();
            }
        }
    }

    fn read_mail(&mut self) {
        for message in self.mailbox.take() {
            match message {
                Message::Client(client) => self.welcome(*client),
                Message::Admitted(key, answer) => self.answered(key, answer),
                Message::Released(key, result) => self.released(key, result),
                Message::Edges(key, hold) => self.held(key, hold),
                Message::Helped(key, result) => self.helped(key, result),
                // Whoever asked may not wait any more.
                Message::Answer(done) => drop(done.send(())),
                Message::Close => self.closing = true,
            }
        }
        // It may be that a gate has opened.
        for key in std::mem::take(&mut self.waiting) {
            self.admit(key);
        }
    }

    /// Has the connection attended to in this turn.
    fn call(&mut self, key: usize) {
        if !std::mem::replace(&mut self.connections[key].due, true) {
            self.due.push(key);
        }
    }

    fn attend(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.due = false;
        self.send(key);
        self.consume(key);
        self.settle(key);
    }

    fn welcome(&mut self, client: Client) {
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let socket = self.ring.learn(1 + FILES * key, &client.socket);
        let image = self.ring.learn(1 + FILES * key + 1, &client.served.volume.image);
        entry.insert(Connection::new(client, socket, image, &self.mailbox));
        self.call(key);
    }

    /// Removes a connection that is over, and has nothing under way.
    fn settle(&mut self, key: usize) {
        if !self.connections[key].is_over() {
            return;
        }
        (1..=FILES).for_each(|file| self.ring.forget(FILES * key + file));
        self.connections.remove(key).tell_the_end();
    }
}

impl Drop for Worker {
    /// Whoever comes after a panic is turned away.
    fn drop(&mut self) {
        self.mailbox.close();
    }
}
