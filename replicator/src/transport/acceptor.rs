//! Takes connections from the socket: a bounded number of handshakes at once, each with a deadline, then the question who it is.
//!
//! ```text
//!   datagram ─► busy? ─► prove your address ─► TLS ─► known key? ─► hello ─► link
//!                refuse   (when several wait)   drop   close+reason   close+reason
//! ```
//!
//! Until its key is known, a connection gets one stream and a window of a few KiB.

use super::PairingConnection;
use super::close::{CloseCode, Closed};
use super::endpoint::reach;
use super::handshake;
use super::hello::Hello;
use super::link::{Direction, Link, canonical};
use super::log_limit::LogLimit;
use super::policy::{Admission, PeerPolicy};
use super::settings::{MAX_STREAMS, Reach, Settings, Trust};
use super::tls::{self, Purpose};
use crate::identity::{Identity, SiteId};
use quinn::{Connection, Endpoint, Incoming, ServerConfig, VarInt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tracing::warn;

/// Connections between the first datagram and the hello, at once.
const MAX_HANDSHAKES: usize = 64;

/// From so many on, a newcomer must prove first that it receives at its address.
const HANDSHAKES_BEFORE_RETRY: usize = 8;

/// From the first datagram to the hello.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(8);

/// Links that nobody has taken yet.
const MAX_WAITING_LINKS: usize = 64;

/// Sites that want to pair and wait.
const MAX_WAITING_PAIRINGS: usize = 4;

/// Datagrams that are kept for a connection while it waits to be accepted.
const INCOMING_BYTES: u64 = 16 * 1024;

/// What the acceptor hands on.
pub(super) struct Arrivals {
    /// Links of known peers.
    pub(super) links: mpsc::Receiver<Link>,
    /// Sites that want to pair.
    pub(super) pairings: mpsc::Receiver<PairingConnection>,
}

/// See the module's documentation.
pub(super) struct Acceptor {
    policy: Arc<dyn PeerPolicy>,
    settings: Arc<Settings>,
    hello: Hello,
    network: Arc<ServerConfig>,
    loopback: Arc<ServerConfig>,
    log_limit: LogLimit,
}

impl Acceptor {
    pub(super) fn new(
        identity: &Identity,
        policy: Arc<dyn PeerPolicy>,
        settings: Arc<Settings>,
        hello: Hello,
    ) -> Result<Self, rustls::Error> {
        let tls = Arc::new(tls::server(identity)?);
        let server = |reach| {
            let mut config = ServerConfig::with_crypto(tls.clone());
            config
                .transport_config(settings.quic(Trust::Stranger, reach))
                .max_incoming(MAX_HANDSHAKES)
                .incoming_buffer_size(INCOMING_BYTES)
                .incoming_buffer_size_total(INCOMING_BYTES * MAX_HANDSHAKES as u64);
            Arc::new(config)
        };
        let (network, loopback) = (server(Reach::Network), server(Reach::Loopback));
        Ok(Self { policy, settings, hello, network, loopback, log_limit: LogLimit::new() })
    }

    /// What the endpoint is made with.
    pub(super) fn server_config(&self) -> ServerConfig {
        ServerConfig::clone(&self.network)
    }

    /// Accepts until the endpoint closes.
    pub(super) fn start(self, endpoint: Endpoint) -> Arrivals {
        let (links, link_arrivals) = mpsc::channel(MAX_WAITING_LINKS);
        let (pairings, pairing_arrivals) = mpsc::channel(MAX_WAITING_PAIRINGS);
        let acceptor = Arc::new(self);
        tokio::spawn(async move {
            let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
            while let Some(incoming) = endpoint.accept().await {
                let Ok(slot) = slots.clone().try_acquire_owned() else {
                    incoming.refuse();
                    continue;
                };
                let busy = MAX_HANDSHAKES - slots.available_permits() > HANDSHAKES_BEFORE_RETRY;
                if busy && incoming.may_retry() {
                    // Fails only where no retry is possible, which was asked just now.
                    let _ = incoming.retry();
                    continue;
                }
                let (acceptor, links, pairings) = (acceptor.clone(), links.clone(), pairings.clone());
                tokio::spawn(async move {
                    acceptor.welcome(incoming, &links, &pairings).await;
                    drop(slot);
                });
            }
        });
        Arrivals { links: link_arrivals, pairings: pairing_arrivals }
    }

    async fn welcome(&self, incoming: Incoming, links: &mpsc::Sender<Link>, pairings: &mpsc::Sender<PairingConnection>) {
        let address = canonical(incoming.remote_address());
        let deadline = tokio::time::Instant::now() + HANDSHAKE_DEADLINE;
        let Some(connection) = self.shake_hands(incoming, address, deadline).await else { return };
        let (Some(purpose), Some(site)) = (Purpose::of(&connection), tls::peer_of(&connection)) else {
            connection.close(CloseCode::Internal.number(), b"no key or purpose");
            return;
        };
        match (purpose, self.policy.admission(&site)) {
            (Purpose::Link, Admission::Peer) => {
                if tokio::time::timeout_at(deadline, self.link(connection.clone(), site, links)).await.is_err() {
                    self.log(address, "no hello in time");
                    connection.close(CloseCode::Deadline.number(), b"no hello in time");
                }
            }
            (Purpose::Pairing, Admission::Peer | Admission::Pairing) => {
                if pairings.try_send(PairingConnection::new(connection.clone(), site)).is_err() {
                    connection.close(CloseCode::Busy.number(), b"others are pairing: try again");
                }
            }
            (Purpose::Pairing, Admission::Unknown) => {
                self.log_refusal(address, site, "no invitation is open");
                connection.close(CloseCode::NotInvited.number(), b"make one with tern peer invite");
            }
            (Purpose::Link, Admission::Pairing | Admission::Unknown) => {
                self.log_refusal(address, site, "unknown key");
                let reason = format!("key {} is no peer of this site", site.short());
                connection.close(CloseCode::UnknownKey.number(), reason.as_bytes());
            }
        }
    }

    async fn shake_hands(&self, incoming: Incoming, address: SocketAddr, deadline: tokio::time::Instant) -> Option<Connection> {
        let config = match reach(address) {
            Reach::Loopback => self.loopback.clone(),
            Reach::Network => self.network.clone(),
        };
        let connecting = incoming.accept_with(config).inspect_err(|error| self.log(address, error)).ok()?;
        match tokio::time::timeout_at(deadline, connecting).await {
            Ok(Ok(connection)) => Some(connection),
            Ok(Err(error)) => {
                self.log(address, Closed::from(error));
                None
            }
            Err(_) => {
                self.log(address, "no handshake in time");
                None
            }
        }
    }

    async fn link(&self, connection: Connection, peer: SiteId, links: &mpsc::Sender<Link>) {
        match handshake::answer(&connection, &self.hello).await {
            Ok(agreement) => {
                connection.set_receive_window(self.settings.receive_window());
                connection.set_max_concurrent_bi_streams(VarInt::from_u32(MAX_STREAMS));
                let link = Link::new(connection, peer, Direction::Accepted, agreement, self.settings.clone());
                if let Err(refused) = links.try_send(link) {
                    refused.into_inner().close(CloseCode::Busy, "too many links at once");
                }
            }
            Err(error) => {
                self.log_refusal(canonical(connection.remote_address()), peer, &error.to_string());
                error.close(&connection, self.hello.versions);
            }
        }
    }

    fn log_refusal(&self, address: SocketAddr, site: SiteId, check: &str) {
        if let Some(left_out) = self.log_limit.admit(Instant::now()) {
            warn!(%address, site = %site, check, left_out, "connection refused");
        }
    }

    fn log(&self, address: SocketAddr, check: impl std::fmt::Display) {
        if let Some(left_out) = self.log_limit.admit(Instant::now()) {
            warn!(%address, %check, left_out, "handshake failed");
        }
    }
}
