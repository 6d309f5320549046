//! The NBD service as the daemon sees it.

use super::edges::Edges;
use super::exports::{ExportTable, Offer, Served, Which};
use super::listener::{ExportError, Listener};
use super::rings::Rings;
use super::tls::Tls;
use crate::metrics::VolumeMetrics;
use crate::request::Access;
use crate::supervisor::Probe;
use crate::unix_socket::SocketAccess;
use crate::volume::Volume;
use blockd_api::NbdAddress;
use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long connections may take to send the answers that are due, when they are to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a client that has begun to send something may say nothing, unless a test wants to see it.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Which TCP addresses may be listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those that only this host can reach.
    Loopback,
    /// All.
    Anywhere,
}

/// What the service can be told.
#[derive(Clone, Debug)]
pub struct NbdOptions {
    /// Most connections at once, over all addresses.
    pub max_connections: usize,
    /// How long a client may take to choose an export.
    pub handshake_timeout: Duration,
    /// How long a client that has begun to send a request may say nothing; seconds.
    pub stall_timeout: Duration,
    /// Who may open the unix sockets.
    pub access: SocketAccess,
    /// Where TCP sockets may listen.
    pub reach: Reach,
    /// What TCP clients may, or have to, secure their connections with.
    pub tls: Option<Tls>,
    /// Threads that serve connections.
    pub threads: usize,
}

/// See the module's documentation.
pub struct NbdService {
    options: NbdOptions,
    rings: Arc<Rings>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listeners: BTreeMap<NbdAddress, Listener>,
    /// A volume has one entry, however many addresses it has. A copy that is served under its name is another volume.
    served: Vec<Weak<Served>>,
    /// Until the service is shut down.
    threads: Option<Vec<JoinHandle<()>>>,
}

impl NbdService {
    /// Starts the threads. Nothing is listened on yet.
    pub fn start(options: NbdOptions) -> io::Result<Self> {
        let (rings, threads) = Rings::start(options.threads, options.max_connections, options.handshake_timeout, options.stall_timeout)?;
        let state = State { threads: Some(threads), ..State::default() };
        Ok(Self { options, rings, state: Mutex::new(state) })
    }

    /// Serves a volume under its name at `address`, beside whatever is served there already. Returns the address, with the port if it was
    /// left open. Must be called within a tokio runtime, which goes on to accept clients.
    pub async fn export(
        &self,
        volume: Arc<Volume>,
        metrics: Arc<VolumeMetrics>,
        address: &NbdAddress,
        access: Access,
    ) -> Result<NbdAddress, ExportError> {
        let mut state = self.state.lock().await;
        if state.threads.is_none() {
            return Err(ExportError::ShuttingDown);
        }
        let name = volume.name.clone();
        let offer = Offer { served: state.served(volume, metrics), access };
        if let Some(listener) = state.listeners.get(address) {
            return match listener.table.add(offer) {
                true => Ok(address.clone()),
                false => Err(ExportError::Exists { name, address: address.clone() }),
            };
        }
        let (bound, listener) =
            Listener::bind(address, self.options.access, self.options.reach, self.options.tls.as_ref(), self.rings.clone())?;
        listener.table.add(offer);
        state.listeners.insert(bound.clone(), listener);
        Ok(bound)
    }

    /// Ends an export. Returns when its last connection is over and nothing of it is under way; `false` if there was no such export.
    pub async fn unexport(&self, name: &str, address: &NbdAddress) -> bool {
        let mut state = self.state.lock().await;
        let Some(listener) = state.listeners.get(address) else { return false };
        let Some(left) = listener.table.remove(name) else { return false };
        let table = match state.listeners.remove(address) {
            Some(listener) if left == 0 => listener.close().await,
            Some(listener) => {
                let table = listener.table.clone();
                state.listeners.insert(address.clone(), listener);
                table
            }
            None => return false,
        };
        drop(state);
        end(&table, if left == 0 { Which::All } else { Which::Of(name) }, Instant::now() + FAREWELL).await;
        true
    }

    /// Ends every export of the volume.
    pub async fn unexport_everywhere(&self, name: &str) {
        let addresses: Vec<_> = self.state.lock().await.listeners.keys().cloned().collect();
        for address in addresses {
            self.unexport(name, &address).await;
        }
    }

    /// Ends all exports, and then the threads. Returns when nothing is under way any more.
    pub async fn shutdown(&self) {
        let mut state = self.state.lock().await;
        let Some(threads) = state.threads.take() else { return };
        let mut tables = Vec::new();
        for (_, listener) in std::mem::take(&mut state.listeners) {
            tables.push(listener.close().await);
        }
        drop(state);
        tables.iter().for_each(|table| table.hang_up(Which::All, Shutdown::Read));
        // One for all: each address in turn would add up to more than a service manager waits.
        let deadline = Instant::now() + FAREWELL;
        for table in tables {
            end(&table, Which::All, deadline).await;
        }
        self.rings.close();
        let joined = tokio::task::spawn_blocking(|| threads.into_iter().try_for_each(JoinHandle::join)).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("nbd: a thread of the service failed");
        }
    }
}

/// The threads never wait for a disk, a client or each other.
impl Probe for NbdService {
    fn name(&self) -> &'static str {
        "the NBD service"
    }

    async fn answer(&self) {
        if !self.rings.answer().await {
            std::future::pending::<()>().await;
        }
    }
}

impl State {
    fn served(&mut self, volume: Arc<Volume>, metrics: Arc<VolumeMetrics>) -> Arc<Served> {
        self.served.retain(|served| served.strong_count() > 0);
        if let Some(served) = self.served.iter().filter_map(Weak::upgrade).find(|served| Arc::ptr_eq(&served.volume, &volume)) {
            return served;
        }
        let served = Arc::new(Served { volume, metrics, edges: Edges::default() });
        self.served.push(Arc::downgrade(&served));
        served
    }
}

/// Hangs up, politely until the deadline.
async fn end(table: &ExportTable, which: Which<'_>, deadline: Instant) {
    table.hang_up(which, Shutdown::Read);
    if tokio::time::timeout_at(deadline, table.empty(which)).await.is_err() {
        table.hang_up(which, Shutdown::Both);
        table.empty(which).await;
    }
}
