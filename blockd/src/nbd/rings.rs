//! The threads that serve connections, each with an io_uring runtime of its own.

use super::connection;
use super::exports::{ConnectionId, ExportTable};
use super::handshake::Security;
use super::log_limit::LogLimit;
use super::tls::{Tls, TlsPolicy};
use crate::store::BufferPool;
use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

/// Submissions that a ring collects before it tells the kernel.
const SUBMISSIONS: u32 = 256;
/// Completions that wait in a ring; more of them wait in the kernel.
const COMPLETIONS: u32 = 4096;
/// Threads of a ring that do what would block it: holes, and looking for them.
const HELPERS: usize = 16;
/// Most memory for the data of requests, over all connections, in KiB.
const BUFFER_KIB: usize = 1 << 20;

/// A client that was accepted.
pub(super) struct Newcomer {
    pub(super) id: ConnectionId,
    /// To hang up with; the ring has a descriptor of its own.
    pub(super) socket: Arc<OwnedFd>,
    pub(super) table: Arc<ExportTable>,
    /// What it may secure the connection with, and where that runs.
    pub(super) tls: Option<(Tls, Handle)>,
}

impl Newcomer {
    pub(super) fn new(socket: OwnedFd, table: Arc<ExportTable>, tls: Option<(Tls, Handle)>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { id: NEXT.fetch_add(1, Relaxed), socket: Arc::new(socket), table, tls }
    }

    /// What TLS is to it at first.
    pub(super) fn security(&self) -> Security {
        match self.tls.as_ref().map(|(tls, _)| tls.policy) {
            None => Security::Plain,
            Some(TlsPolicy::Offered) => Security::Offered,
            Some(TlsPolicy::Required) => Security::Required,
        }
    }
}

/// What the connections of all rings share.
pub(super) struct Shared {
    pub(super) handshake_timeout: Duration,
    pub(super) log_limit: LogLimit,
    /// Permits are KiB.
    pub(super) buffers: Arc<Semaphore>,
}

/// What the connections of one ring share.
pub(super) struct Ring {
    pub(super) shared: Arc<Shared>,
    pub(super) pool: RefCell<BufferPool>,
    /// Permits to block another thread.
    pub(super) helpers: Semaphore,
}

/// See the module's documentation.
pub(super) struct Rings {
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
    /// Each holds no more than the number of connections allows. Empty once the rings are to end.
    queues: Mutex<Vec<mpsc::UnboundedSender<Admitted>>>,
    next: AtomicUsize,
}

struct Admitted {
    newcomer: Newcomer,
    stream: OwnedFd,
    _permit: OwnedSemaphorePermit,
}

impl Rings {
    /// Starts the threads.
    pub(super) fn start(
        threads: usize,
        max_connections: usize,
        handshake_timeout: Duration,
    ) -> io::Result<(Arc<Self>, Vec<JoinHandle<()>>)> {
        let buffers = Arc::new(Semaphore::new(BUFFER_KIB));
        let shared = Arc::new(Shared { handshake_timeout, log_limit: LogLimit::default(), buffers });
        let mut queues = Vec::new();
        let mut handles = Vec::new();
        for number in 0..threads.max(1) {
            let (queue, newcomers) = mpsc::unbounded_channel();
            let shared = shared.clone();
            // Whether there is io_uring here is known only on the thread that uses it.
            let (started, start) = std::sync::mpsc::sync_channel(1);
            let run = move || run(shared, newcomers, &started);
            handles.push(std::thread::Builder::new().name(format!("tern-nbd-{number}")).spawn(run)?);
            start.recv().unwrap_or_else(|_| Err(io::Error::other("a thread of the NBD service ended at its start")))?;
            queues.push(queue);
        }
        let connections = Arc::new(Semaphore::new(max_connections));
        Ok((Arc::new(Self { shared, connections, queues: Mutex::new(queues), next: AtomicUsize::new(0) }), handles))
    }

    pub(super) fn log_limit(&self) -> &LogLimit {
        &self.shared.log_limit
    }

    /// Hands a client to a ring, or closes its connection if there are too many.
    pub(super) fn welcome(&self, newcomer: Newcomer) {
        let Ok(permit) = self.connections.clone().try_acquire_owned() else {
            if let Some(suppressed) = self.log_limit().admit(Instant::now()) {
                tracing::warn!(suppressed, "nbd: too many connections, a client is turned away: see nbd.max_connections");
            }
            return;
        };
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if queues.is_empty() {
            return;
        }
        let stream = match newcomer.socket.try_clone() {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "nbd: no descriptor is left for a client"),
        };
        let (id, table) = (newcomer.id, newcomer.table.clone());
        table.enter(id, newcomer.socket.clone());
        let queue = &queues[self.next.fetch_add(1, Relaxed) % queues.len()];
        if queue.send(Admitted { newcomer, stream, _permit: permit }).is_err() {
            table.leave(id);
        }
    }

    /// The threads end once their last connection is over.
    pub(super) fn close(&self) {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A thread of the service. Its runtime is dropped only when no operation is in flight any more.
fn run(shared: Arc<Shared>, mut newcomers: mpsc::UnboundedReceiver<Admitted>, started: &std::sync::mpsc::SyncSender<io::Result<()>>) {
    let mut builder = tokio_uring::builder();
    builder.entries(SUBMISSIONS).uring_builder(tokio_uring::uring_builder().setup_cqsize(COMPLETIONS));
    let runtime = match tokio_uring::Runtime::new(&builder) {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(error))),
    };
    let _ = started.send(Ok(()));
    let ring = Rc::new(Ring { shared, pool: RefCell::default(), helpers: Semaphore::new(HELPERS) });
    runtime.block_on(async {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                newcomer = newcomers.recv() => match newcomer {
                    Some(admitted) => drop(connections.spawn_local(serve(admitted, ring.clone()))),
                    None => break,
                },
                Some(ended) = connections.join_next() => report(ended),
            }
        }
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    });
}

async fn serve(admitted: Admitted, ring: Rc<Ring>) {
    let (id, table) = (admitted.newcomer.id, admitted.newcomer.table.clone());
    // Also if the task panics: who waits for the connection to end must not wait for ever.
    let _leave = Leave { id, table };
    connection::serve(admitted.newcomer, admitted.stream, ring).await;
}

struct Leave {
    id: ConnectionId,
    table: Arc<ExportTable>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.table.leave(self.id);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "nbd: a connection's task failed");
    }
}
