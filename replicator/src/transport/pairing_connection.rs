//! A connection of two sites that meet for the first time: TLS has proved both keys, but not yet that they are wanted.

use super::close::{CloseCode, Closed};
use super::link::{accept_stream, canonical, open_stream};
use super::stream::{RecvHalf, SendHalf, StreamError};
use crate::identity::SiteId;
use quinn::Connection;
use std::net::SocketAddr;

/// Length of a [`PairingConnection::binding`].
pub(crate) const BINDING_BYTES: usize = 32;

/// See the module's documentation.
pub(crate) struct PairingConnection {
    connection: Connection,
    peer: SiteId,
}

impl PairingConnection {
    pub(super) fn new(connection: Connection, peer: SiteId) -> Self {
        Self { connection, peer }
    }

    /// The site at the other end, as its key says.
    pub(crate) fn peer(&self) -> SiteId {
        self.peer
    }

    /// Where it is.
    pub(crate) fn remote_address(&self) -> SocketAddr {
        canonical(self.connection.remote_address())
    }

    /// A value that only the two ends of this one connection know (TLS exporter): a proof made with it is worth nothing elsewhere.
    pub(crate) fn binding(&self) -> Result<[u8; BINDING_BYTES], Closed> {
        let mut binding = [0; BINDING_BYTES];
        match self.connection.export_keying_material(&mut binding, b"EXPORTER-tern-pair", b"") {
            Ok(()) => Ok(binding),
            Err(_) => Err(Closed::Broken("TLS exports no key".to_owned())),
        }
    }

    /// The stream, as the joiner opens it.
    pub(crate) async fn open(&self) -> Result<(SendHalf, RecvHalf), StreamError> {
        open_stream(&self.connection).await
    }

    /// The stream, as the inviter accepts it.
    pub(crate) async fn accept(&self) -> Result<(SendHalf, RecvHalf), StreamError> {
        accept_stream(&self.connection).await
    }

    /// Ends the connection; the other side is told why.
    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        self.connection.close(code.number(), reason.as_bytes());
    }

    /// Returns when it has ended.
    pub(crate) async fn closed(&self) -> Closed {
        self.connection.closed().await.into()
    }
}
