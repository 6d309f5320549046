//! Replication of volumes between sites: everything around the pure engine that touches a disk or the network.
//!
//! - [`disk`], [`catalogue`]: what is asked of storage.
//! - [`codec`]: content to payload and back.
//! - [`journal`], [`standby`]: the other site's half, from a frame to the folded image.
//! - [`intake`]: what a write must wait for before it touches the image.
//! - [`identity`], [`pairing`], [`transport`]: who the sites are and how bytes travel between them.

pub mod catalogue;
pub mod codec;
pub mod disk;
pub mod identity;
pub mod intake;
pub mod journal;
pub mod pairing;
pub mod standby;
pub mod transport;
