//! Links that keep themselves up.

use super::*;
use crate::pairing::tests::MemoryCatalogue;
use crate::pairing::{Peer, PeerBook};
use bytes::Bytes;
use tokio::sync::mpsc;

const KIND: StreamKind = StreamKind(3);

pub(super) struct Linked {
    pub(super) identity: Identity,
    pub(super) book: Arc<PeerBook>,
    pub(super) transport: Transport,
    pub(super) links: Arc<Links>,
    pub(super) streams: mpsc::Receiver<IncomingStream>,
}

struct ByBook(Arc<PeerBook>);

impl PeerPolicy for ByBook {
    fn admission(&self, site: &SiteId) -> Admission {
        if self.0.find(site).is_some() { Admission::Peer } else { Admission::Unknown }
    }
}

impl Linked {
    pub(super) fn new(seed: u64) -> Self {
        let book = Arc::new(PeerBook::open(Arc::new(MemoryCatalogue::default())).unwrap());
        Self::with(Identity::ephemeral().unwrap(), book, seed)
    }

    fn with(identity: Identity, book: Arc<PeerBook>, seed: u64) -> Self {
        let transport = Transport::bind(localhost(), identity.clone(), Arc::new(ByBook(book.clone())), Settings::default()).unwrap();
        let (links, streams) = Links::start(transport.clone(), book.clone(), seed);
        Self { identity, book, transport, links, streams }
    }

    pub(super) fn id(&self) -> SiteId {
        self.identity.id()
    }

    fn know(&self, other: &Self, name: &str) {
        let addresses = vec![other.transport.local_address().unwrap().to_string()];
        self.book.record(Peer { id: other.id(), name: name.to_owned(), addresses }, &[]).unwrap();
    }

    pub(super) async fn link_to(&self, other: SiteId) -> Link {
        let mut links = self.links.changed();
        soon(links.wait_for(|links| links.get(&other).is_some_and(Link::is_live))).await.unwrap()[&other].clone()
    }

    pub(super) async fn no_link_to(&self, other: SiteId) {
        let mut links = self.links.changed();
        soon(links.wait_for(|links| !links.contains_key(&other))).await.unwrap();
    }
}

#[tokio::test]
async fn peers_find_each_other_and_exchange_streams() {
    let (mut one, two) = (Linked::new(1), Linked::new(2));
    one.know(&two, "two");
    two.know(&one, "one");
    let link = two.link_to(one.id()).await;
    let (mut send, _recv) = soon(link.open(KIND, b"hello")).await.unwrap();
    soon(send.send(Bytes::from_static(b"frame"))).await.unwrap();
    let mut stream = soon(one.streams.recv()).await.unwrap();
    assert_eq!((stream.link.peer(), stream.kind, &stream.header[..]), (two.id(), KIND, &b"hello"[..]));
    assert_eq!(soon(stream.recv.recv()).await.unwrap().unwrap(), "frame");
    assert_eq!(one.links.last_failure(&two.id()), None);
}

#[tokio::test]
async fn crossing_links_settle_on_one() {
    for seed in 0..8 {
        let (one, two) = (Linked::new(seed), Linked::new(seed + 100));
        one.know(&two, "two");
        two.know(&one, "one");
        let (addresses, ids) = ([one.transport.local_address().unwrap(), two.transport.local_address().unwrap()], [one.id(), two.id()]);
        // Both dial at once, besides what the managers do.
        let crossing = tokio::join!(soon(one.transport.dial(addresses[1], ids[1])), soon(two.transport.dial(addresses[0], ids[0])));
        one.link_to(two.id()).await;
        two.link_to(one.id()).await;
        drop(crossing);
        // Whatever is left in the end carries a stream both ways.
        for (from, to) in [(&one, &two), (&two, &one)] {
            let opened = soon(async {
                loop {
                    let link = from.link_to(to.id()).await;
                    if let Ok((send, recv)) = link.open(KIND, b"").await {
                        break (link, send, recv);
                    }
                    link.closed().await;
                }
            });
            opened.await;
        }
    }
}

#[tokio::test]
async fn a_link_comes_back_after_the_peer_restarted() {
    let (one, two) = (Linked::new(1), Linked::new(2));
    one.know(&two, "two");
    two.know(&one, "one");
    let first = one.link_to(two.id()).await;
    let (identity, book) = (two.identity.clone(), two.book.clone());
    two.transport.stop().await;
    drop(two);
    assert_eq!(soon(first.closed()).await.code(), Some(CloseCode::Stopping));
    let two = Linked::with(identity, book, 3);
    let second = one.link_to(two.id()).await;
    assert_ne!(first.hello().instance, second.hello().instance);
}

#[tokio::test]
async fn a_removed_peer_loses_its_link_and_hears_why() {
    let (one, two) = (Linked::new(1), Linked::new(2));
    one.know(&two, "two");
    two.know(&one, "one");
    one.link_to(two.id()).await;
    let link = two.link_to(one.id()).await;
    one.book.remove(&two.id(), &[]).unwrap();
    one.no_link_to(two.id()).await;
    assert_eq!(soon(link.closed()).await.code(), Some(CloseCode::PeerRemoved));
    // It tries on and learns that it is a stranger.
    let failure = soon(async {
        loop {
            match two.links.last_failure(&one.id()) {
                Some(failure) => break failure,
                None => tokio::task::yield_now().await,
            }
        }
    });
    assert!(failure.await.contains("unknown key"));
}

#[tokio::test]
async fn a_peer_without_an_address_is_waited_for() {
    let (one, two) = (Linked::new(1), Linked::new(2));
    one.book.record(Peer { id: two.id(), name: "two".into(), addresses: Vec::new() }, &[]).unwrap();
    two.know(&one, "one");
    assert_eq!(one.link_to(two.id()).await.direction(), Direction::Accepted);
}
