//! Keeps one live link for each peer: dials until there is one, takes those that peers make, and hands out the streams that they open.
//!
//! Both sides of a pair dial, because one of them may not be reachable. When both succeed, both sides keep the same link (see
//! [`choice`]). What runs on the links is left to those who open and take streams.

mod choice;
mod dialler;

use super::close::{CloseCode, Closed};
use super::endpoint::Transport;
use super::link::{Link, StreamKind};
use super::stream::{RecvHalf, SendHalf};
use crate::identity::SiteId;
use crate::pairing::{PeerBook, Peers};
use bytes::Bytes;
use choice::Offer;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tracing::{info, warn};

/// Streams that peers opened and nobody has taken yet.
const MAX_WAITING_STREAMS: usize = 256;

/// The live link of each connected peer.
pub type LiveLinks = Arc<BTreeMap<SiteId, Link>>;

/// A stream that a peer opened.
#[derive(Debug)]
pub struct IncomingStream {
    /// The link that it came over; it lives at least as long as this.
    pub link: Link,
    /// What it is for.
    pub kind: StreamKind,
    /// What the peer says about it.
    pub header: Bytes,
    /// Towards the peer.
    pub send: SendHalf,
    /// From the peer.
    pub recv: RecvHalf,
}

/// See the module's documentation. Dropped, it lets all links go.
pub struct Links {
    table: Arc<Table>,
    manager: JoinHandle<()>,
}

impl Links {
    /// Begins to keep links to the peers in `book`; streams that peers open come out of the receiver. The seed is for the jitter of
    /// repeated attempts. Must be called within tokio.
    pub fn start(transport: Transport, book: Arc<PeerBook>, seed: u64) -> (Arc<Self>, mpsc::Receiver<IncomingStream>) {
        let (streams, incoming) = mpsc::channel(MAX_WAITING_STREAMS);
        let table =
            Arc::new(Table { site: transport.site(), book, links: watch::Sender::default(), failures: watch::Sender::default(), streams });
        let manager = tokio::spawn(manage(table.clone(), transport, seed));
        (Arc::new(Self { table, manager }), incoming)
    }

    /// The live link to a peer.
    pub fn get(&self, site: &SiteId) -> Option<Link> {
        self.table.live(site)
    }

    /// The link to the same peer that takes the place of `old`, once there is one.
    pub async fn another(&self, old: &Link) -> Link {
        let mut changes = self.table.links.subscribe();
        loop {
            if let Some(link) = self.get(&old.peer()).filter(|link| !link.is(old)) {
                return link;
            }
            // Fails only without a sender; the table has it.
            let _ = changes.changed().await;
        }
    }

    /// Sees every change of the live links, beginning with what they are now.
    pub fn changed(&self) -> watch::Receiver<LiveLinks> {
        let mut links = self.table.links.subscribe();
        links.mark_changed();
        links
    }

    /// Why the last attempt to reach a peer failed, if there is no link to it.
    pub fn last_failure(&self, site: &SiteId) -> Option<String> {
        self.table.failures.borrow().get(site).cloned()
    }
}

#[cfg(test)]
impl Links {
    /// Takes in a link that a test dialled.
    pub(in crate::transport) fn adopt(&self, link: Link) {
        self.table.adopt(link);
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.manager.abort();
        self.table.links.send_replace(LiveLinks::default());
    }
}

/// What the tasks share.
struct Table {
    site: SiteId,
    book: Arc<PeerBook>,
    links: watch::Sender<LiveLinks>,
    failures: watch::Sender<BTreeMap<SiteId, String>>,
    streams: mpsc::Sender<IncomingStream>,
}

impl Table {
    fn live(&self, site: &SiteId) -> Option<Link> {
        self.links.borrow().get(site).filter(|link| link.is_live()).cloned()
    }

    /// Takes a link in, unless the one that is there is to be kept.
    fn adopt(self: &Arc<Self>, link: Link) {
        let peer = link.peer();
        let mut refused = None;
        let mut replaced = None;
        self.links.send_if_modified(|links| {
            // The policy was asked when the connection began; the peer may have been removed since.
            if self.book.find(&peer).is_none() {
                refused = Some((CloseCode::PeerRemoved, "the peer was removed meanwhile"));
                return false;
            }
            let old = links.get(&peer).filter(|old| old.is_live());
            if old.is_some_and(|old| !Offer::of(&link).replaces(&Offer::of(old), self.site, peer)) {
                refused = Some((CloseCode::Superseded, "another connection is kept"));
                return false;
            }
            replaced = Arc::make_mut(links).insert(peer, link.clone());
            true
        });
        if let Some((code, reason)) = refused {
            link.close(code, reason);
            return;
        }
        if let Some(old) = replaced {
            old.close(CloseCode::Superseded, "a newer connection is kept");
        }
        self.failures.send_if_modified(|failures| failures.remove(&peer).is_some());
        info!(
            site = %peer, address = %link.remote_address(), direction = ?link.direction(),
            protocol = link.version(), software = link.hello().software, "link up"
        );
        tokio::spawn(self.clone().attend(link));
    }

    /// Hands on the streams of a link until it ends.
    async fn attend(self: Arc<Self>, link: Link) {
        while let Ok((kind, header, send, recv)) = link.accept().await {
            if self.streams.send(IncomingStream { link: link.clone(), kind, header, send, recv }).await.is_err() {
                break;
            }
        }
        let closed = link.closed().await;
        let was_current = self.links.send_if_modified(|links| {
            let current = links.get(&link.peer()).is_some_and(|current| current.is(&link));
            if current {
                Arc::make_mut(links).remove(&link.peer());
            }
            current
        });
        if was_current && closed != Closed::Here {
            warn!(site = %link.peer(), address = %link.remote_address(), reason = %closed, "link lost");
        }
    }

    fn failed(&self, peer: SiteId, reason: String) {
        let news = self.failures.send_if_modified(|failures| failures.insert(peer, reason.clone()).as_ref() != Some(&reason));
        if news {
            warn!(site = %peer, reason, "cannot reach the peer; trying on");
        }
    }

    fn let_go(&self, peers: &Peers) {
        let mut gone = Vec::new();
        self.links.send_if_modified(|links| {
            gone = links.iter().filter(|(site, _)| !peers.contains_key(site)).map(|(_, link)| link.clone()).collect();
            Arc::make_mut(links).retain(|site, _| peers.contains_key(site));
            !gone.is_empty()
        });
        gone.iter().for_each(|link| link.close(CloseCode::PeerRemoved, ""));
        self.failures.send_if_modified(|failures| {
            failures.retain(|site, _| peers.contains_key(site));
            false
        });
    }
}

/// Accepts links and keeps a dialler for each peer, until the transport stops.
async fn manage(table: Arc<Table>, transport: Transport, seed: u64) {
    let mut book = table.book.subscribe();
    let mut diallers = JoinSet::new();
    let mut known: BTreeMap<SiteId, AbortHandle> = BTreeMap::new();
    book.mark_changed();
    loop {
        tokio::select! {
            link = transport.accept() => match link {
                Some(link) => table.adopt(link),
                None => return,
            },
            changed = book.changed() => {
                if changed.is_err() {
                    return;
                }
                let peers = book.borrow_and_update().clone();
                table.let_go(&peers);
                known.retain(|site, dialler| {
                    let stays = peers.contains_key(site);
                    if !stays {
                        dialler.abort();
                    }
                    stays
                });
                for site in peers.keys() {
                    known.entry(*site).or_insert_with(|| diallers.spawn(dialler::keep(table.clone(), transport.clone(), *site, seed)));
                }
            }
            Some(_) = diallers.join_next() => {}
        }
    }
}
