//! Peers and strangers that do not keep to the protocol: they are told why, and nothing else is disturbed.

use super::super::tls::{self, Purpose};
use super::*;
use crate::documented::{PROTOCOL, check_limit, example};
use crate::site_link::REPLICATION;
use quinn::{ClientConfig, Connection, Endpoint};
use std::sync::OnceLock;

/// A client with a key of its own that writes what it likes.
struct Forger {
    identity: Identity,
    endpoint: Endpoint,
}

impl Forger {
    /// It is a known peer of `site`.
    fn known_to(site: &Site) -> Self {
        let identity = Identity::ephemeral().unwrap();
        site.known.add(identity.id());
        Self { identity, endpoint: Endpoint::client(localhost()).unwrap() }
    }

    async fn connect(&self, site: &Site) -> Connection {
        let tls = tls::client(&self.identity, Purpose::Link, site.id(), Arc::new(OnceLock::new())).unwrap();
        let config = ClientConfig::new(Arc::new(tls));
        soon(self.endpoint.connect_with(config, site.address(), "any").unwrap()).await.unwrap()
    }

    /// The code and reason that `bytes` on the first stream lead to.
    async fn reason_for(&self, site: &Site, bytes: &[u8]) -> Closed {
        let connection = self.connect(site).await;
        let (mut send, _recv) = soon(connection.open_bi()).await.unwrap();
        soon(send.write_all(bytes)).await.unwrap();
        let _ = send.finish();
        soon(connection.closed()).await.into()
    }

    /// A link whose far end this forger speaks.
    async fn link(&self, site: &Site) -> (Connection, Link) {
        let connection = self.connect(site).await;
        let (mut send, mut recv) = soon(connection.open_bi()).await.unwrap();
        let hello = Hello { versions: VersionRange::CURRENT, features: 0, instance: 1, software: String::new(), site_name: String::new() };
        soon(send.write_all(&framed(&hello.encode()))).await.unwrap();
        let link = soon(site.transport.accept()).await.unwrap();
        soon(recv.read_to_end(10_000)).await.unwrap();
        (connection, link)
    }
}

fn framed(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_le_bytes(), content].concat()
}

#[tokio::test]
async fn a_streams_first_frame_has_the_documented_bytes() {
    check_limit(PROTOCOL, "MAX_FRAME_BYTES", MAX_FRAME_BYTES as u64);
    let site = Site::new();
    let forger = Forger::known_to(&site);
    let (connection, link) = forger.link(&site).await;
    let (mut send, _recv) = soon(link.open(REPLICATION, &[0x77; 16])).await.unwrap();
    send.finish();
    let (_send, mut recv) = soon(connection.accept_bi()).await.unwrap();
    assert_eq!(soon(recv.read_to_end(100)).await.unwrap(), example(PROTOCOL, "stream"));
}

#[tokio::test]
async fn garbage_instead_of_a_hello_is_refused_with_what_is_wrong() {
    let site = Site::new();
    let forger = Forger::known_to(&site);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"", b"\x04", &framed(b"not a hello"), &framed(&[0; 100]), &[0xff; 64]] {
        let closed = forger.reason_for(&site, garbage).await;
        assert!(matches!(closed.code(), Some(CloseCode::BadHello | CloseCode::BadFrame)), "{garbage:?}: {closed}");
    }
    let one = Site::new();
    one.known.add(site.id());
    site.known.add(one.id());
    linked(&one, &site).await;
}

#[tokio::test]
async fn a_frame_that_claims_too_much_closes_the_connection() {
    let site = Site::new();
    let forger = Forger::known_to(&site);
    let (connection, link) = forger.link(&site).await;
    let (mut send, _recv) = soon(connection.open_bi()).await.unwrap();
    soon(send.write_all(&framed(&[1, 0]))).await.unwrap();
    let (_, _, _back, mut got) = soon(link.accept()).await.unwrap();
    soon(send.write_all(&u32::MAX.to_le_bytes())).await.unwrap();
    assert!(matches!(soon(got.recv()).await, Err(StreamError::TooLong { .. })));
    let closed = Closed::from(soon(connection.closed()).await);
    assert_eq!(closed.code(), Some(CloseCode::BadFrame));
    assert!(closed.to_string().contains(&u32::MAX.to_string()), "{closed}");
}

#[tokio::test]
async fn a_stream_that_ends_in_a_frame_closes_the_connection() {
    let site = Site::new();
    let forger = Forger::known_to(&site);
    for cut in [&b"\x05\x00"[..], b"\x05\x00\x00\x00abc"] {
        let (connection, link) = forger.link(&site).await;
        let (mut send, _recv) = soon(connection.open_bi()).await.unwrap();
        soon(send.write_all(&[&framed(&[1, 0]), cut].concat())).await.unwrap();
        send.finish().unwrap();
        let (_, _, _back, mut got) = soon(link.accept()).await.unwrap();
        assert_eq!(soon(got.recv()).await, Err(StreamError::CutShort));
        assert_eq!(Closed::from(soon(connection.closed()).await).code(), Some(CloseCode::BadFrame));
    }
}

#[tokio::test]
async fn a_stream_without_a_kind_closes_the_connection() {
    let site = Site::new();
    let forger = Forger::known_to(&site);
    for first in [framed(b""), framed(b"\x01"), framed(&[0; MAX_HEADER_BYTES + 3])] {
        let (connection, link) = forger.link(&site).await;
        let (mut send, _recv) = soon(connection.open_bi()).await.unwrap();
        // The other side may refuse it before all of it is written.
        let _ = soon(send.write_all(&first)).await;
        assert!(soon(link.accept()).await.is_err());
        assert_eq!(Closed::from(soon(connection.closed()).await).code(), Some(CloseCode::BadFrame));
    }
}

/// Lesson: unbounded reassembly in a library (quinn-proto ≤ 0.11.14).
#[tokio::test]
async fn a_stranger_gets_no_more_than_a_small_window() {
    let site = Site::new();
    let forger = Forger { identity: Identity::ephemeral().unwrap(), endpoint: Endpoint::client(localhost()).unwrap() };
    let closed = forger.reason_for(&site, &framed(&[0; 1000])).await;
    assert_eq!(closed.code(), Some(CloseCode::UnknownKey));
}

#[tokio::test]
async fn datagrams_that_are_not_quic_disturb_nobody() {
    let (one, two) = pair();
    let noise = tokio::net::UdpSocket::bind(localhost()).await.unwrap();
    for len in [0, 1, 20, 1200, 1452] {
        for first in [0x00, 0x40, 0xc0, 0xff] {
            let mut datagram = vec![0x5a; len];
            if let Some(byte) = datagram.first_mut() {
                *byte = first;
            }
            noise.send_to(&datagram, two.address()).await.unwrap();
        }
    }
    let (dialled, accepted) = linked(&one, &two).await;
    assert!(dialled.is_live() && accepted.is_live());
}
