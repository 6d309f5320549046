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
//! The guest is not trusted: whatever stands in its rings and descriptors ends in an error for the guest. What has been taken from a queue is
//! answered before the queue's stop is, and a mapping of guest memory stays until the last transfer that uses it is over.
//!
//! The process that runs the guest is trusted a little more, as vhost-user demands, and the socket's owner and mode say who that may be. Its
//! messages end in an error or in the end of its connection, but nothing keeps it from cutting off memory that it has handed over, which is a
//! SIGBUS for whoever touches it, or from handing over an eventfd that blocks, which holds up its own queues and their stop.
//!
//! Requests in flight are not tracked in shared memory. An export that ends in order completes them, and a VM that connects again goes on; a
//! VM whose daemon was killed has to be started anew, as has one that is to see a new size. Memory that is written is not logged, so QEMU does
//! not migrate such a VM by itself.

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
