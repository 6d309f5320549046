//! vhost-user-blk: volumes as disks of virtual machines, without a copy.
//!
//! ```text
//!   listener ──► connection ──► handler ── messages: memory, queues, features, configuration space, record of what is in flight
//!   (a thread)   (a thread)        │
//!                                  └─► worker (a few threads per connection, several queues each)
//!                                        queue ──► chain ──► operation ──► admit ──► ring (io_uring on guest memory)
//!                                                                ▲           └─────► zeroing (a thread)
//!                                        queue ◄── status byte ──┴── complete ◄── mailbox ◄──┘
//! ```
//!
//! The guest is not trusted: whatever stands in its rings and descriptors ends in an error for the guest. What has been taken from a queue is
//! answered before the queue's stop is, and a mapping of guest memory stays until the last transfer that uses it is over.
//!
//! The process that runs the guest is trusted a little more, as vhost-user demands, and the socket's owner and mode say who that may be. Its
//! messages end in an error or in the end of its connection, but nothing keeps it from cutting off memory that it has handed over, which is a
//! SIGBUS for whoever touches it, or from handing over an eventfd that blocks, which holds up its own queues and their stop.
//!
//! # When this process ends
//!
//! In order, it completes what it has taken and hangs up after that. Killed, it leaves behind what it has taken and not given back, in memory
//! that the front end keeps (`inflight`). The next daemon takes these first, in the order in which they were taken, and the guest sees a
//! pause. Nothing is lost: a request is marked before anything is done about it. Nothing is done twice in effect: a request whose end the
//! guest can see is not marked, or known to be marked wrongly. One that is marked may have reached the disk, but the guest still waits for it,
//! so its buffers are as they were and nothing that depends on it has begun; reading, writing, discarding and flushing the same again changes
//! nothing. Nor can the first attempt come after the second: the kernel may still carry it out when the process is gone, but it holds the
//! image's lock until it has, and the next daemon waits for that.
//!
//! Memory that is written is not logged, so QEMU does not migrate such a VM by itself.

pub mod chain;
pub mod config_space;
mod connection;
pub mod descriptors;
mod device;
mod handler;
mod inflight;
mod listener;
mod mailbox;
mod memory;
mod notice;
mod operation;
mod queue;
mod service;
mod sys;
mod table;
mod worker;
mod workers;
mod zeroing;

pub use service::{ExportError, VhostUserOptions, VhostUserService};
