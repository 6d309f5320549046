//! A WAN between two network namespaces, in user space: rate, delay, loss, a bounded queue and counters.
//!
//! Kernels without netem have nothing that delays a packet. `wanem` puts a TUN device into each of two
//! namespaces and carries the packets between them through a model of a long link.
//!
//! ```text
//!  namespace A                         wanem                          namespace B
//!  wan0 (TUN) --read--> [queue | serialiser | loss | delay] --write--> wan0 (TUN)
//!  wan0 (TUN) <-write-- [delay | loss | serialiser | queue] <--read--- wan0 (TUN)
//! ```
//!
//! - Pure, time passed in: [`link`] (one direction), [`wan`] (both, and what an operator may ask),
//!   [`command`], [`quantity`], [`counters`].
//! - Shell: [`relay`] (epoll, timer, TUN), [`namespace`] (devices and addresses), [`control`] (socket), `sys`.
//! - For programs that start the emulator: [`child`] and [`client`].
//!
//! TCP's buffer sysctls are left alone: QUIC runs over UDP, whose buffers its endpoint sets for itself.

pub mod child;
pub mod client;
pub mod command;
pub mod control;
pub mod counters;
pub mod error;
pub mod link;
pub mod namespace;
pub mod quantity;
pub mod relay;
mod sys;
pub mod wan;

pub use child::{Emulator, Options, Side};
pub use client::Client;
pub use command::Command;
pub use counters::{Counters, LinkReport, Report};
pub use error::{Error, Result};
pub use link::Link;
pub use quantity::{Loss, QueueLimit, Rate};
pub use wan::Wan;
