//! The endpoint: one UDP socket for all connections, dialled and accepted.

use super::acceptor::{Acceptor, Arrivals};
use super::close::{CloseCode, Closed};
use super::fields::FieldError;
use super::handshake::{self, GreetingError};
use super::hello::{Hello, VersionRange};
use super::link::Link;
use super::policy::PeerPolicy;
use super::settings::{Reach, Settings, Trust};
use super::tls::{self, Purpose};
use super::{PairingConnection, socket};
use crate::identity::{Identity, SiteId};
use quinn::{ClientConfig, ConnectError, Connection, Endpoint, EndpointConfig, TokioRuntime};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};

/// How long a stopping endpoint waits for its peers to hear of it.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// TLS wants a server name; nobody looks at it.
const SERVER_NAME: &str = "tern";

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket could not be made.
    #[error("cannot listen on {address}")]
    Socket {
        /// The address that was asked for.
        address: SocketAddr,
        /// Why it failed.
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The system gave no random number.
    #[error("no randomness from the system: {0}")]
    Random(getrandom::Error),
}

/// Why a peer could not be reached, or did not become a link.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Not an address that this endpoint can dial.
    #[error("cannot dial {address}: {source}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: ConnectError,
    },
    /// TLS could not be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// Nobody answered, or not in time.
    #[error("no answer from {address}")]
    NoAnswer {
        /// The address.
        address: SocketAddr,
    },
    /// Another site answered.
    #[error("the site at {address} has key {}, not the pinned {}: its state directory was replaced, or it is another site", found.short(), expected.short())]
    WrongKey {
        /// The address.
        address: SocketAddr,
        /// The pinned key.
        expected: SiteId,
        /// The key that was shown.
        found: SiteId,
    },
    /// The site answered and ended the connection.
    #[error("{address}: {closed}")]
    Closed {
        /// The address.
        address: SocketAddr,
        /// What it said.
        closed: Closed,
    },
    /// No protocol version in common.
    #[error("{address} speaks protocol {theirs}, this site {ours}: upgrade the older one")]
    NoCommonVersion {
        /// The address.
        address: SocketAddr,
        /// This site's versions.
        ours: VersionRange,
        /// The peer's.
        theirs: VersionRange,
    },
    /// The answer was no hello.
    #[error("{address} sent a bad hello: {source}")]
    BadHello {
        /// The address.
        address: SocketAddr,
        /// What is wrong with it.
        source: FieldError,
    },
}

impl DialError {
    /// The peer's close code, if it refused with one.
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Closed { closed, .. } => closed.code(),
            _ => None,
        }
    }
}

/// See the module's documentation. Clones are the same endpoint; when the last one is dropped, all its connections end.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    identity: Identity,
    settings: Arc<Settings>,
    hello: Hello,
    links: Mutex<mpsc::Receiver<Link>>,
    /// Not behind the lock of the links, which whoever accepts them holds while there are none.
    pairings: Mutex<Option<mpsc::Receiver<PairingConnection>>>,
}

impl Transport {
    /// Binds the socket and begins to accept. Must be called within tokio.
    pub fn bind(listen: SocketAddr, identity: Identity, policy: Arc<dyn PeerPolicy>, settings: Settings) -> Result<Self, BindError> {
        let failed = |source| BindError::Socket { address: listen, source };
        let socket = socket::bind(listen).map_err(failed)?;
        let mut config = EndpointConfig::default();
        if let Err(error) = config.max_udp_payload_size(settings.max_received_datagram_bytes()) {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, error)));
        }
        let hello = Hello {
            versions: settings.versions,
            features: settings.features,
            instance: getrandom::u64().map_err(BindError::Random)?,
            software: settings.software.clone(),
            site_name: settings.site_name.clone(),
        };
        let settings = Arc::new(settings);
        let acceptor = Acceptor::new(&identity, policy, settings.clone(), hello.clone())?;
        let endpoint = Endpoint::new(config, Some(acceptor.server_config()), socket, Arc::new(TokioRuntime)).map_err(failed)?;
        let Arrivals { links, pairings } = acceptor.start(endpoint.clone());
        Ok(Self {
            inner: Arc::new(Inner { endpoint, identity, settings, hello, links: Mutex::new(links), pairings: Mutex::new(Some(pairings)) }),
        })
    }

    /// This site.
    pub fn site(&self) -> SiteId {
        self.inner.identity.id()
    }

    /// The address that the socket has.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.inner.endpoint.local_addr()
    }

    /// Makes a link to the site with key `expected` at `address`.
    pub async fn dial(&self, address: SocketAddr, expected: SiteId) -> Result<Link, DialError> {
        let inner = &self.inner;
        let linking = async {
            let connection = self.connect(address, expected, Purpose::Link).await?;
            match handshake::greet(&connection, &inner.hello).await {
                Ok(agreement) => Ok(handshake::dialled(connection, expected, agreement, inner.settings.clone())),
                Err(error) => Err(greeting_failed(address, &connection, error, inner.hello.versions)),
            }
        };
        tokio::time::timeout(inner.settings.dial_deadline, linking).await.unwrap_or(Err(DialError::NoAnswer { address }))
    }

    /// The next link that a peer made; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Link> {
        self.inner.links.lock().await.recv().await
    }

    /// Connects to a site that is to become a peer.
    pub(crate) async fn dial_pairing(&self, address: SocketAddr, expected: SiteId) -> Result<PairingConnection, DialError> {
        let connecting = self.connect(address, expected, Purpose::Pairing);
        let connection =
            tokio::time::timeout(self.inner.settings.dial_deadline, connecting).await.unwrap_or(Err(DialError::NoAnswer { address }))?;
        Ok(PairingConnection::new(connection, expected))
    }

    /// What takes the connections of sites that want to pair; there is one taker.
    pub(crate) async fn pairings(&self) -> Option<mpsc::Receiver<PairingConnection>> {
        self.inner.pairings.lock().await.take()
    }

    /// Ends all connections, telling the peers, and accepts no more.
    pub async fn stop(&self) {
        self.inner.endpoint.close(CloseCode::Stopping.number(), b"");
        // A peer that is gone need not hear of it.
        let _ = tokio::time::timeout(STOP_DEADLINE, self.inner.endpoint.wait_idle()).await;
    }

    async fn connect(&self, address: SocketAddr, expected: SiteId, purpose: Purpose) -> Result<Connection, DialError> {
        let found = Arc::new(OnceLock::new());
        let tls = tls::client(&self.inner.identity, purpose, expected, found.clone())?;
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(self.inner.settings.quic(Trust::Checked, reach(address)));
        let connecting =
            self.inner.endpoint.connect_with(config, address, SERVER_NAME).map_err(|source| DialError::Address { address, source })?;
        connecting.await.map_err(|error| match found.get() {
            Some(found) if *found != expected => DialError::WrongKey { address, expected, found: *found },
            _ => dial_failed(address, error.into()),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.endpoint.close(CloseCode::Stopping.number(), b"");
    }
}

/// Where `address` is.
pub(super) fn reach(address: SocketAddr) -> Reach {
    if address.ip().to_canonical().is_loopback() { Reach::Loopback } else { Reach::Network }
}

fn dial_failed(address: SocketAddr, closed: Closed) -> DialError {
    if closed == Closed::Silent { DialError::NoAnswer { address } } else { DialError::Closed { address, closed } }
}

fn greeting_failed(address: SocketAddr, connection: &Connection, error: GreetingError, ours: VersionRange) -> DialError {
    error.close(connection, ours);
    match error {
        GreetingError::NoCommonVersion { theirs } => DialError::NoCommonVersion { address, ours, theirs },
        GreetingError::BadHello(source) => DialError::BadHello { address, source },
        GreetingError::Lost(closed) => dial_failed(address, closed),
    }
}
