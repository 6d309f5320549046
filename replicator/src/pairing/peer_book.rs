//! The sites that this one has paired with. The book is in the catalogue; a copy in memory answers without I/O.

use super::name::MAX_ADDRESSES;
use crate::catalogue::{Catalogue, Change, Persist};
use crate::identity::SiteId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Peers that a site may have.
pub const MAX_PEERS: usize = 64;

/// The catalogue's keys are this and the 32 bytes of the site's id; the value is [`Stored`] as JSON.
const KEY_PREFIX: &[u8] = b"peer/";

/// Version of [`Stored`].
const VERSION: u32 = 1;

/// A site that this one has paired with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its key's id: what is pinned.
    pub id: SiteId,
    /// Its name, unique among the peers.
    pub name: String,
    /// Where it can be reached, `HOST:PORT`, tried in this order; empty if only it can connect.
    pub addresses: Vec<String>,
}

/// All peers by id.
pub type Peers = Arc<BTreeMap<SiteId, Peer>>;

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    name: String,
    addresses: Vec<String>,
}

/// Why a peer was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Another peer has the name.
    #[error("another peer is named {0}")]
    NameTaken(String),
    /// There are [`MAX_PEERS`] already.
    #[error("there are {MAX_PEERS} peers already")]
    TooMany,
    /// The catalogue failed.
    #[error("cannot record the peer")]
    Io(#[from] io::Error),
}

/// See the module's documentation.
pub struct PeerBook {
    catalogue: Arc<dyn Catalogue>,
    peers: watch::Sender<Peers>,
    /// Held over a change, I/O included: what was checked must still hold when it is written. Readers never wait for it.
    changing: Mutex<()>,
}

impl PeerBook {
    /// Reads the book.
    pub fn open(catalogue: Arc<dyn Catalogue>) -> io::Result<Self> {
        let mut peers = BTreeMap::new();
        for (key, value) in catalogue.scan(KEY_PREFIX)? {
            let peer = decode(&key, &value)?;
            peers.insert(peer.id, peer);
        }
        Ok(Self { catalogue, peers: watch::Sender::new(Arc::new(peers)), changing: Mutex::new(()) })
    }

    /// All peers now.
    pub fn peers(&self) -> Peers {
        self.peers.borrow().clone()
    }

    /// The peer with this id.
    pub fn find(&self, id: &SiteId) -> Option<Peer> {
        self.peers.borrow().get(id).cloned()
    }

    /// The peer with this name.
    pub fn find_by_name(&self, name: &str) -> Option<Peer> {
        self.peers.borrow().values().find(|peer| peer.name == name).cloned()
    }

    /// Whether there is no room for the peer with this id.
    pub fn is_full_for(&self, id: &SiteId) -> bool {
        let peers = self.peers.borrow();
        peers.len() >= MAX_PEERS && !peers.contains_key(id)
    }

    /// Sees every change.
    pub fn subscribe(&self) -> watch::Receiver<Peers> {
        self.peers.subscribe()
    }

    /// Adds a peer, or replaces what is known of the one with its id; durable on return, together with the changes in `along`. Blocks.
    pub fn record(&self, peer: Peer, along: &[Change]) -> Result<(), RecordError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut peers = BTreeMap::clone(&self.peers());
        if peers.values().any(|other| other.name == peer.name && other.id != peer.id) {
            return Err(RecordError::NameTaken(peer.name));
        }
        if self.is_full_for(&peer.id) {
            return Err(RecordError::TooMany);
        }
        let mut changes = vec![(key(&peer.id), Some(encode(&peer)?))];
        changes.extend_from_slice(along);
        self.catalogue.apply(&changes, Persist::Synced)?;
        peers.insert(peer.id, peer);
        self.peers.send_replace(Arc::new(peers));
        Ok(())
    }

    /// Removes a peer, together with the changes in `along`; durable on return. `None` if it was none. Blocks.
    pub fn remove(&self, id: &SiteId, along: &[Change]) -> io::Result<Option<Peer>> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut peers = BTreeMap::clone(&self.peers());
        let Some(removed) = peers.remove(id) else { return Ok(None) };
        let mut changes = vec![(key(id), None)];
        changes.extend_from_slice(along);
        self.catalogue.apply(&changes, Persist::Synced)?;
        self.peers.send_replace(Arc::new(peers));
        Ok(Some(removed))
    }
}

fn key(id: &SiteId) -> Vec<u8> {
    [KEY_PREFIX, id.as_bytes()].concat()
}

fn encode(peer: &Peer) -> io::Result<Vec<u8>> {
    let addresses = peer.addresses.iter().take(MAX_ADDRESSES).cloned().collect();
    Ok(serde_json::to_vec(&Stored { version: VERSION, name: peer.name.clone(), addresses })?)
}

fn decode(key: &[u8], value: &[u8]) -> io::Result<Peer> {
    let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("the catalogue's entry of a peer is damaged: {what}"));
    let id = key.strip_prefix(KEY_PREFIX).and_then(|id| <[u8; 32]>::try_from(id).ok()).ok_or_else(|| damaged("its key".to_owned()))?;
    let stored: Stored = serde_json::from_slice(value).map_err(|error| damaged(error.to_string()))?;
    if stored.version != VERSION {
        return Err(damaged(format!("version {} is not {VERSION}", stored.version)));
    }
    Ok(Peer { id: SiteId::from_bytes(id), name: stored.name, addresses: stored.addresses })
}
