//! Replication of volumes between sites: everything around the pure engine that touches a disk or the network.
//!
//! - [`disk`], [`catalogue`]: what is asked of storage; [`clock`]: what time it is.
//! - [`codec`]: content to payload and back.
//! - [`journal`], [`standby`], [`undo`]: the other site's half, from a frame to the folded image, and what the image held before.
//! - [`intake`]: what a write must wait for before it touches the image.
//! - [`primary`]: one replica seen from the primary: from the intake to the frames.
//! - [`site_link`]: the streams between sites, and what they ask each other outside of replication.
//! - [`identity`], [`pairing`], [`transport`]: who the sites are and how bytes travel between them.

pub mod catalogue;
pub mod clock;
pub mod codec;
pub mod counters;
pub mod disk;
pub mod following;
pub mod identity;
pub mod intake;
pub mod journal;
pub mod ledger;
pub mod pairing;
pub mod primary;
pub mod site_link;
pub mod standby;
pub mod transport;
pub mod undo;

#[cfg(test)]
#[path = "../engine/src/wire/documented.rs"]
mod documented;
