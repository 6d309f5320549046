//! How bytes travel between sites: QUIC with the sites' keys pinned at both ends.
//!
//! ```text
//!   Transport ── one UDP socket ──► Link (one connection, one peer) ──► SendHalf / RecvHalf (frames)
//!       │                             ▲
//!       └─ acceptor: known key?       └─ Links: keeps one live link for each peer
//! ```
//!
//! Invariants: a [`Link`] exists only between sites whose keys each other has pinned and that agreed on a protocol version. Everything a
//! peer can make us hold is bounded: windows, frames, streams, handshakes, waiting links. Every connection ends with a code and a reason
//! ([`CloseCode`]). What the frames say is left to the users of the streams.

mod acceptor;
mod backoff;
mod close;
mod congestion;
mod endpoint;
pub(crate) mod fields;
mod handshake;
mod hello;
mod link;
mod links;
mod log_limit;
mod meter;
mod pairing_connection;
mod policy;
mod send_window;
mod settings;
mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

pub use close::{CloseCode, Closed};
pub use congestion::Congestion;
pub use endpoint::{BindError, DialError, Transport};
pub use fields::FieldError;
pub use hello::{Hello, Version, VersionRange};
pub use link::{Direction, Link, LinkStats, MAX_HEADER_BYTES, StreamKind};
pub use links::{IncomingStream, Links, LiveLinks};
pub use meter::WireMeter;
pub use policy::{Admission, PeerPolicy};
pub use settings::{PathPlan, Settings};
pub use stream::{MAX_FRAME_BYTES, RecvHalf, ResetCode, SendHalf, StreamError};

pub(crate) use log_limit::LogLimit;
pub(crate) use pairing_connection::PairingConnection;
