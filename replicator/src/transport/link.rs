//! A link: one connection between two peers that know each other's key and have agreed on a protocol version.

use super::close::{CloseCode, Closed};
use super::hello::{Hello, Version};
use super::meter::Metered;
use super::send_window::{self, SendWindow};
use super::settings::Settings;
use super::stream::{RecvHalf, SendHalf, StreamError};
use crate::identity::SiteId;
use bytes::{BufMut, Bytes, BytesMut};
use quinn::Connection;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// Longest header of a stream, in bytes.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// A stream's header must be there in this time once its first byte is.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// IP's and UDP's headers, which QUIC does not count.
const V4_HEADER_BYTES: u64 = 28;
const V6_HEADER_BYTES: u64 = 48;

/// What a stream is for. The numbers belong to the protocol's users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKind(pub u16);

/// Which side began a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// This one.
    Dialled,
    /// The peer.
    Accepted,
}

/// Counters of one link. Wire bytes include QUIC's, UDP's and IP's headers and everything that was sent twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// There and back, smoothed.
    pub round_trip: Duration,
    /// Sent so far.
    pub wire_bytes_sent: u64,
    /// Received so far.
    pub wire_bytes_received: u64,
    /// Packets sent so far.
    pub sent_packets: u64,
    /// Packets of these that got lost.
    pub lost_packets: u64,
    /// What may be in flight now.
    pub congestion_window_bytes: u64,
    /// The largest datagram that the path is known to carry.
    pub datagram_bytes: u16,
}

/// See the module's documentation. Clones are the same link; when the last one is dropped, it closes, and its streams end with it.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    connection: Connection,
    peer: SiteId,
    hello: Hello,
    version: Version,
    features: u64,
    direction: Direction,
    metered: Metered,
    /// Whether this side ended it because it keeps another.
    superseded: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.connection.close(CloseCode::Done.number(), b"");
    }
}

/// What both hellos led to.
pub(super) struct Agreement {
    pub(super) hello: Hello,
    pub(super) version: Version,
    pub(super) features: u64,
}

impl Link {
    /// A link over a connection whose hellos were exchanged. Must be called within tokio.
    pub(super) fn new(connection: Connection, peer: SiteId, direction: Direction, agreement: Agreement, settings: Arc<Settings>) -> Self {
        tokio::spawn(follow_congestion_window(connection.clone(), settings));
        let Agreement { hello, version, features } = agreement;
        let (metered, superseded) = (Metered::default(), AtomicBool::new(false));
        Self { inner: Arc::new(Inner { connection, peer, hello, version, features, direction, metered, superseded }) }
    }

    /// The site at the other end.
    pub fn peer(&self) -> SiteId {
        self.inner.peer
    }

    /// What the peer said of itself.
    pub fn hello(&self) -> &Hello {
        &self.inner.hello
    }

    /// The protocol version to speak.
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// The optional abilities that both sides have.
    pub fn features(&self) -> u64 {
        self.inner.features
    }

    /// Which side began it.
    pub fn direction(&self) -> Direction {
        self.inner.direction
    }

    /// Where the peer's packets come from now.
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.inner.connection.remote_address())
    }

    /// Opens a stream; the peer learns of it with its kind and header. Waits while too many are open.
    pub async fn open(&self, kind: StreamKind, header: &[u8]) -> Result<(SendHalf, RecvHalf), StreamError> {
        if header.len() > MAX_HEADER_BYTES {
            return Err(StreamError::TooLong { len_bytes: header.len(), limit_bytes: MAX_HEADER_BYTES });
        }
        let (mut send, recv) = open_stream(&self.inner.connection).await?;
        let mut first = BytesMut::with_capacity(size_of::<u16>() + header.len());
        first.put_u16_le(kind.0);
        first.extend_from_slice(header);
        send.send(first.freeze()).await?;
        Ok((send, recv))
    }

    /// The next stream that the peer opened.
    pub async fn accept(&self) -> Result<(StreamKind, Bytes, SendHalf, RecvHalf), StreamError> {
        let (send, mut recv) = accept_stream(&self.inner.connection).await?;
        recv.set_limit(size_of::<u16>() + MAX_HEADER_BYTES);
        let first = match tokio::time::timeout(HEADER_DEADLINE, recv.recv()).await {
            Ok(first) => first?,
            Err(_) => {
                self.close(CloseCode::Deadline, "the header of a stream did not come");
                return Err(StreamError::Closed(Closed::Here));
            }
        };
        recv.set_limit(usize::MAX);
        let Some((kind, header)) = first.and_then(split_header) else {
            self.close(CloseCode::BadFrame, "a stream without a kind");
            return Err(StreamError::CutShort);
        };
        Ok((kind, header, send, recv))
    }

    /// Counters until now.
    pub fn stats(&self) -> LinkStats {
        let stats = self.inner.connection.stats();
        let header_bytes = if self.remote_address().is_ipv4() { V4_HEADER_BYTES } else { V6_HEADER_BYTES };
        LinkStats {
            round_trip: stats.path.rtt,
            wire_bytes_sent: stats.udp_tx.bytes + stats.udp_tx.datagrams * header_bytes,
            wire_bytes_received: stats.udp_rx.bytes + stats.udp_rx.datagrams * header_bytes,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            congestion_window_bytes: stats.path.cwnd,
            datagram_bytes: stats.path.current_mtu,
        }
    }

    /// What all meters of this link counted.
    pub(super) fn metered(&self) -> &Metered {
        &self.inner.metered
    }

    /// Whether it has not ended yet, as far as this side knows.
    pub fn is_live(&self) -> bool {
        self.inner.connection.close_reason().is_none()
    }

    /// Returns when the link has ended.
    pub async fn closed(&self) -> Closed {
        self.inner.connection.closed().await.into()
    }

    /// Whether it ended because one of the sides keeps another link to the other.
    pub fn gave_way(&self) -> bool {
        match self.inner.connection.close_reason().map(Closed::from) {
            Some(Closed::Here) => self.inner.superseded.load(SeqCst),
            Some(closed) => closed.code() == Some(CloseCode::Superseded),
            None => false,
        }
    }

    /// Ends the link; the peer is told why.
    pub fn close(&self, code: CloseCode, reason: &str) {
        if code == CloseCode::Superseded {
            self.inner.superseded.store(true, SeqCst);
        }
        self.inner.connection.close(code.number(), reason.as_bytes());
    }

    /// Whether both are the same connection.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("peer", &self.inner.peer)
            .field("direction", &self.inner.direction)
            .field("remote", &self.remote_address())
            .finish_non_exhaustive()
    }
}

pub(super) async fn open_stream(connection: &Connection) -> Result<(SendHalf, RecvHalf), StreamError> {
    let (send, recv) = connection.open_bi().await.map_err(|error| StreamError::Closed(error.into()))?;
    Ok((SendHalf::new(send), RecvHalf::new(recv, connection.clone())))
}

pub(super) async fn accept_stream(connection: &Connection) -> Result<(SendHalf, RecvHalf), StreamError> {
    let (send, recv) = connection.accept_bi().await.map_err(|error| StreamError::Closed(error.into()))?;
    Ok((SendHalf::new(send), RecvHalf::new(recv, connection.clone())))
}

/// An IPv4 address as such, also where the socket speaks both.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn split_header(mut first: Bytes) -> Option<(StreamKind, Bytes)> {
    let kind = <[u8; 2]>::try_from(first.get(..2)?).ok()?;
    Some((StreamKind(u16::from_le_bytes(kind)), first.split_off(2)))
}

/// Keeps the send window in step with the path, see [`Settings::send_window`].
async fn follow_congestion_window(connection: Connection, settings: Arc<Settings>) {
    let mut interval = tokio::time::interval(send_window::INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut window = SendWindow::default();
    while connection.close_reason().is_none() {
        interval.tick().await;
        if let Some(wanted) = window.follow(&settings, &connection.stats().path) {
            connection.set_send_window(wanted);
        }
    }
}
