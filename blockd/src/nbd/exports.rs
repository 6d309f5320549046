//! What an address serves, and who is connected to it.

use super::edges::Edges;
use super::handshake::{self, ExportInfo, MAX_LISTED_EXPORTS};
use crate::metrics::VolumeMetrics;
use crate::request::Access;
use crate::volume::Volume;
use blockd_api::NbdAddress;
use std::collections::{BTreeMap, HashMap};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// A volume that NBD clients can reach, at however many addresses.
pub(super) struct Served {
    pub(super) volume: Arc<Volume>,
    pub(super) metrics: Arc<VolumeMetrics>,
    /// Held exclusively by a write that reads the sectors at its ends and writes them back, and shared by every other change.
    pub(super) edges: Edges,
}

/// Number of a connection, unique in the process.
pub(super) type ConnectionId = u64;

/// The exports of one address.
pub(super) struct ExportTable {
    /// For the log.
    pub(super) address: NbdAddress,
    inner: Mutex<Inner>,
    left: Notify,
}

/// What is served under a name.
#[derive(Clone)]
pub(super) struct Offer {
    pub(super) served: Arc<Served>,
    /// What clients may do here; it may be another thing elsewhere.
    pub(super) access: Access,
}

#[derive(Default)]
struct Inner {
    exports: BTreeMap<String, Offer>,
    connections: HashMap<ConnectionId, Connection>,
}

struct Connection {
    socket: Arc<OwnedFd>,
    /// What it chose, once the handshake is over.
    export: Option<String>,
}

/// Which connections are meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which<'a> {
    All,
    Of(&'a str),
}

impl ExportTable {
    pub(super) fn new(address: NbdAddress) -> Self {
        Self { address, inner: Mutex::default(), left: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an export under the volume's name; `false` if there is one of that name.
    pub(super) fn add(&self, offer: Offer) -> bool {
        let mut inner = self.lock();
        if inner.exports.contains_key(&offer.served.volume.name) {
            return false;
        }
        inner.exports.insert(offer.served.volume.name.clone(), offer);
        true
    }

    /// Removes an export: nobody can choose it any more. Returns how many there are left, or `None` if there was none of that name.
    pub(super) fn remove(&self, name: &str) -> Option<usize> {
        let mut inner = self.lock();
        inner.exports.remove(name).map(|_| inner.exports.len())
    }

    /// A client has connected.
    pub(super) fn enter(&self, id: ConnectionId, socket: Arc<OwnedFd>) {
        self.lock().connections.insert(id, Connection { socket, export: None });
    }

    /// A client has chosen an export; `None` if that is gone meanwhile.
    pub(super) fn choose(&self, id: ConnectionId, name: &str) -> Option<Offer> {
        let mut inner = self.lock();
        let offer = inner.exports.get(name)?.clone();
        inner.connections.get_mut(&id)?.export = Some(name.to_owned());
        Some(offer)
    }

    /// A connection is over, and everything that it had under way.
    pub(super) fn leave(&self, id: ConnectionId) {
        self.lock().connections.remove(&id);
        self.left.notify_waiters();
    }

    /// Shuts the sockets down: for reading, so that a connection completes what is under way, or both ways, so that it gives up sending too.
    pub(super) fn hang_up(&self, which: Which<'_>, how: Shutdown) {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        for connection in self.lock().connections.values().filter(|connection| which.includes(connection)) {
            // A client that is gone already needs no hanging up.
            let _ = rustix::net::shutdown(&connection.socket, how);
        }
    }

    /// Returns when none of the connections is left.
    pub(super) async fn empty(&self, which: Which<'_>) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if !self.lock().connections.values().any(|connection| which.includes(connection)) {
                return;
            }
            left.await;
        }
    }
}

impl Which<'_> {
    fn includes(self, connection: &Connection) -> bool {
        match self {
            Self::All => true,
            Self::Of(name) => connection.export.as_deref() == Some(name),
        }
    }
}

impl handshake::Exports for ExportTable {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        let inner = self.lock();
        let offer = match name {
            "" if inner.exports.len() == 1 => inner.exports.values().next(),
            name => inner.exports.get(name),
        };
        offer.map(|Offer { served, access }| ExportInfo {
            name: served.volume.name.clone(),
            description: format!("Tern volume {}", served.volume.name),
            size_bytes: served.volume.size_bytes(),
            access: *access,
        })
    }

    fn list(&self) -> Vec<String> {
        self.lock().exports.keys().take(MAX_LISTED_EXPORTS).cloned().collect()
    }
}
