//! Two endpoints on loopback, in one process.

mod bad_input;
mod giving_way;
mod links;
mod peers;
mod streams;

use super::*;
use crate::identity::{Identity, SiteId};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// No step of these tests takes longer unless it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// `future`, or a failed test.
pub(super) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

pub(super) fn localhost() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A policy that knows a set of peers.
#[derive(Default)]
pub(super) struct Known {
    peers: Mutex<BTreeSet<SiteId>>,
}

impl Known {
    pub(super) fn add(&self, site: SiteId) {
        self.peers.lock().unwrap().insert(site);
    }
}

impl PeerPolicy for Known {
    fn admission(&self, site: &SiteId) -> Admission {
        if self.peers.lock().unwrap().contains(site) { Admission::Peer } else { Admission::Unknown }
    }
}

/// A site on loopback.
pub(super) struct Site {
    pub(super) transport: Transport,
    pub(super) known: Arc<Known>,
}

impl Site {
    pub(super) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(super) fn with(settings: Settings) -> Self {
        Self::at(localhost(), Identity::ephemeral().unwrap(), settings)
    }

    pub(super) fn at(listen: SocketAddr, identity: Identity, settings: Settings) -> Self {
        let known = Arc::new(Known::default());
        let transport = Transport::bind(listen, identity, known.clone(), settings).unwrap();
        Self { transport, known }
    }

    pub(super) fn id(&self) -> SiteId {
        self.transport.site()
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.transport.local_address().unwrap()
    }

    pub(super) async fn dial(&self, other: &Self) -> Result<Link, DialError> {
        soon(self.transport.dial(other.address(), other.id())).await
    }
}

/// Two sites that know each other.
pub(super) fn pair() -> (Site, Site) {
    let (one, two) = (Site::new(), Site::new());
    one.known.add(two.id());
    two.known.add(one.id());
    (one, two)
}

/// Both ends of a link, the dialling one first.
pub(super) async fn linked(one: &Site, two: &Site) -> (Link, Link) {
    let dialled = one.dial(two).await.unwrap();
    let accepted = soon(two.transport.accept()).await.unwrap();
    (dialled, accepted)
}
