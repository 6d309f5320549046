//! How two sites become peers: a token, made at one and pasted at the other, good once and for a time.
//!
//! - [`Token`]: the text that a person carries.
//! - [`PairingDesk`]: makes tokens, answers sites that bring one ([`PairingDesk::serve`]), brings one elsewhere ([`PairingDesk::join`]);
//!   it is the transport's [`crate::transport::PeerPolicy`].
//! - [`PeerBook`]: who is a peer, in the catalogue.
//!
//! Invariants: an invitation lets one key in; that it was used and whom it let in is durable before the joiner hears of it. Both sides pin
//! the other's key. A secret is never logged.

mod answering;
mod desk;
mod invites;
mod joining;
mod messages;
mod name;
mod peer_book;
#[cfg(test)]
pub(crate) mod tests;
mod token;

pub use desk::{Invitation, InviteError, PairingDesk};
pub use invites::{MAX_OPEN_INVITES, MAX_TTL};
pub use joining::JoinError;
pub use messages::Refusal;
pub use peer_book::{MAX_PEERS, Peer, PeerBook, Peers, RecordError};
pub use token::{Secret, Token, TokenError};
