//! The thread that greets clients, on a tokio-uring runtime.

use super::connection;
use super::exports::{ConnectionId, ExportTable};
use super::greeting::Greeting;
use super::handshake::Security;
use super::log_limit::LogLimit;
use super::tls::{Tls, TlsPolicy};
use super::worker::Workers;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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

/// A client that was accepted.
pub(super) struct Newcomer {
    pub(super) id: ConnectionId,
    /// To hang up with; whoever serves it has a descriptor of its own.
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

/// What all connections share.
pub(super) struct Shared {
    pub(super) handshake_timeout: Duration,
    pub(super) stall_timeout: Duration,
    pub(super) log_limit: LogLimit,
    pub(super) greeting: Greeting,
    pub(super) workers: Workers,
}

/// See the module's documentation.
pub(super) struct Rings {
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
    /// It holds no more than the number of connections allows. `None` once the threads are to end.
    queue: Mutex<Option<mpsc::UnboundedSender<Admitted>>>,
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
        stall_timeout: Duration,
    ) -> io::Result<(Arc<Self>, Vec<JoinHandle<()>>)> {
        let (workers, mut handles) = Workers::start(threads.max(1), max_connections)?;
        let (log_limit, greeting) = (LogLimit::default(), Greeting::new(max_connections));
        let shared = Arc::new(Shared { handshake_timeout, stall_timeout, log_limit, greeting, workers });
        let (queue, newcomers) = mpsc::unbounded_channel();
        // Whether there is io_uring here is known only on the thread that uses it.
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let greet = {
            let shared = shared.clone();
            move || run(shared, newcomers, &started)
        };
        handles.push(std::thread::Builder::new().name("tern-nbd-greet".into()).spawn(greet)?);
        start.recv().unwrap_or_else(|_| Err(io::Error::other("a thread of the NBD service ended at its start")))?;
        let connections = Arc::new(Semaphore::new(max_connections));
        Ok((Arc::new(Self { shared, connections, queue: Mutex::new(Some(queue)) }), handles))
    }

    pub(super) fn log_limit(&self) -> &LogLimit {
        &self.shared.log_limit
    }

    /// Has a client greeted, or closes its connection if there are too many.
    pub(super) fn welcome(&self, newcomer: Newcomer) {
        let Ok(permit) = self.connections.clone().try_acquire_owned() else {
            self.shared.greeting.make_room();
            if let Some(suppressed) = self.log_limit().admit(Instant::now()) {
                tracing::warn!(suppressed, "nbd: too many connections, a client is turned away: see nbd.max_connections");
            }
            return;
        };
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = &*queue else { return };
        let stream = match newcomer.socket.try_clone() {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "nbd: no descriptor is left for a client"),
        };
        let (id, table) = (newcomer.id, newcomer.table.clone());
        table.enter(id, newcomer.socket.clone());
        self.shared.greeting.enter(id, newcomer.socket.clone());
        if queue.send(Admitted { newcomer, stream, _permit: permit }).is_err() {
            self.shared.greeting.leave(id);
            table.leave(id);
        }
    }

    /// Whether every thread lives, once each has shown it.
    pub(super) async fn answer(&self) -> bool {
        let greeted = self.queue.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|queue| !queue.is_closed());
        greeted && self.shared.workers.answer().await
    }

    /// The threads end once their last connection is over.
    pub(super) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.shared.workers.close();
    }
}

/// The thread that greets. Its runtime is dropped only when no operation is in flight any more.
fn run(shared: Arc<Shared>, mut newcomers: mpsc::UnboundedReceiver<Admitted>, started: &std::sync::mpsc::SyncSender<io::Result<()>>) {
    let mut builder = tokio_uring::builder();
    builder.entries(SUBMISSIONS).uring_builder(tokio_uring::uring_builder().setup_cqsize(COMPLETIONS));
    let runtime = match tokio_uring::Runtime::new(&builder) {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(error))),
    };
    let _ = started.send(Ok(()));
    runtime.block_on(async {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                newcomer = newcomers.recv() => match newcomer {
                    Some(admitted) => drop(connections.spawn_local(serve(admitted, shared.clone()))),
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

async fn serve(admitted: Admitted, shared: Arc<Shared>) {
    let (id, table) = (admitted.newcomer.id, admitted.newcomer.table.clone());
    // Also if the task panics: who waits for the connection to end must not wait for ever.
    let _leave = Leave { id, table, shared: shared.clone() };
    connection::serve(admitted.newcomer, admitted.stream, shared).await;
}

struct Leave {
    id: ConnectionId,
    table: Arc<ExportTable>,
    shared: Arc<Shared>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.shared.greeting.leave(self.id);
        self.table.leave(self.id);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "nbd: a connection's task failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_threads_show_that_they_live_and_one_that_has_failed_is_found_out() {
        let (rings, threads) = Rings::start(2, 16, Duration::from_secs(1), Duration::from_secs(1)).unwrap();
        assert!(rings.answer().await);
        // As a worker's panic does.
        rings.shared.workers.fail_one();
        assert!(!rings.answer().await);
        drop(threads);
    }
}
