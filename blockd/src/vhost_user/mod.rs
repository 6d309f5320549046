//! vhost-user-blk: volumes as disks of virtual machines, without a copy.
//!
//! ```text
//!   listener ──► connection ──► backend ── messages: memory, rings, features, configuration space
//!   (a thread)   (a thread)        │
//!                                  └─► worker (a few threads per connection, several queues each)
//!                                        virtqueue ──► chain ──► operation ──► admit ──► ring (io_uring on guest memory)
//!                                                                    ▲           └─────► zeroing (a thread)
//!                                        virtqueue ◄── status byte ──┴── complete ◄── mailbox ◄──┘
//! ```
//!
//! The guest is not trusted, and the process that runs it is trusted only with its own memory: whatever stands in rings, descriptors and
//! messages ends in an error for the guest or the end of its connection. What has been taken from a queue is answered before the queue's
//! stop is, and a mapping of guest memory stays until the last transfer that uses it is over.
//!
//! Requests in flight are not tracked in shared memory: a VM whose daemon is started anew has to be started anew, too.

mod backend;
pub mod chain;
pub mod config_space;
mod connection;
mod device;
mod listener;
mod mailbox;
mod operation;
mod service;
mod sys;
mod table;
mod virtqueue;
mod worker;
mod zeroing;

pub use service::{ExportError, VhostUserOptions, VhostUserService};
