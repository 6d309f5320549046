//! Who may connect.

use crate::identity::SiteId;

/// What a site's key entitles it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// A paired peer: links, and a repeated pairing whose answer was lost.
    Peer,
    /// Not a peer, but an invitation is open: it may try to pair.
    Pairing,
    /// Nothing.
    Unknown,
}

/// Decides about keys. It is asked once for each connection, after the other side proved that it has the key.
pub trait PeerPolicy: Send + Sync {
    /// What the site may do now. Must not block.
    fn admission(&self, site: &SiteId) -> Admission;
}
