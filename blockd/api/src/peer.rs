//! Sites that know each other.

use crate::{SiteName, Span, UtcTime};
use serde::{Deserialize, Serialize};

/// Asks for a one-time token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvitePeer {
    /// `HOST:PORT` that the other site reaches this one at; `None`: the address that the daemon listens at.
    #[serde(default)]
    pub address: Option<String>,
    /// How long the token is good; `None`: the daemon's default.
    #[serde(default)]
    pub ttl: Option<Span>,
}

/// A one-time token. It is a secret until it is used or expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// What to paste at the other site.
    pub token: String,
    /// When it ceases to be good.
    pub expires_at: UtcTime,
}

/// Pairs this site with the one that made the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinPeer {
    /// The token.
    pub token: String,
    /// `HOST:PORT` that the other site reaches this one at; `None`: the daemon's listening port at the address that the other site sees.
    #[serde(default)]
    pub address: Option<String>,
}

/// All peers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerList {
    /// By name.
    pub peers: Vec<Peer>,
}

/// A paired site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: SiteName,
    /// Its id, which its key proves.
    pub id: String,
    /// `HOST:PORT` that this site reaches it at; `null` if only it can connect.
    pub address: Option<String>,
    /// Whether there is a connection now.
    pub connected: bool,
    /// Round trip time; `null` while not connected.
    pub rtt_ms: Option<f64>,
}
