//! The replication protocol as pure state machines.
//!
//! Nothing here does I/O, reads a clock, spawns a thread or draws randomness: time and random ids are parameters, effects are
//! returned as values. That is what lets the simulator crash two real engines again and again from one seed.
//!
//! ```text
//!   front end ──► tracker ──► sender ──► wire ═══► receiver ──► (journal, fold)
//!                 which       what to    frames    what may
//!                 blocks      ship next            become visible
//!                 changed
//! ```
//!
//! - [`block`]: block numbers and runs of blocks.
//! - [`tracker`]: the epoch word, writes in flight and the dirty maps that the request path touches.
//! - [`generation`]: who may be primary; lineage, staleness and split brain.
//! - [`forecast`]: how long a handover would take now.
//! - [`group`]: one cut for several volumes.
//! - [`history`]: what changed from epoch to epoch, for the other standbys of one that is promoted.
//! - [`wire`]: the messages between two sites and their encoding.
//! - [`sender`]: the primary's side of one replica.
//! - [`receiver`]: the standby's side.
//! - [`schedule`]: when a volume in mode `snapshot` is cut.
//! - [`acknowledgement`]: when a guest's request completes.
//! - [`lease`]: who may acknowledge while sites do not hear each other.

#![forbid(unsafe_code)]

pub mod acknowledgement;
pub mod block;
pub mod forecast;
pub mod generation;
pub mod group;
pub mod history;
pub mod lease;
pub mod receiver;
pub mod schedule;
pub mod sender;
pub mod tracker;
pub mod wire;
