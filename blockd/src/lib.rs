//! The Tern daemon: serves volumes to virtual machines and keeps their standbys one step behind.
//!
//! Follow one write: a front end ([`nbd`]) turns bytes or descriptors into a checked [`request`], asks the [`volume`] to
//! admit it, submits it to the [`store`], and completes it. What changed travels on through `replicator`.

pub mod admin;
pub mod bells;
pub mod catalogue;
pub mod config;
pub mod daemon;
mod debt;
pub mod events;
pub mod metrics;
pub mod nbd;
pub mod request;
pub mod sandbox;
pub mod store;
pub mod supervisor;
pub mod unix_socket;
pub mod vhost_user;
pub mod volume;
