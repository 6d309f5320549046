//! NBD: volumes for anything that speaks it, over unix sockets and TCP.
//!
//! ```text
//!   listener (tokio) ──► handshake (tokio-uring, one thread) ──► transmission: a worker, one of a few threads with an io_uring each
//!                          └ pure: `handshake`                      └ pure: `transmission`
//!   a client that wants TLS: a tunnel (tokio) between its socket and the connection
//! ```
//!
//! [`handshake`] and [`transmission`] hold every decision about the protocol and do no I/O; the rest only moves bytes. No operation on a ring
//! is ever dropped before it is complete: its runtime would free the buffer under the kernel's hands.

mod connection;
mod edges;
mod exports;
mod greeting;
pub mod handshake;
mod listener;
mod log_limit;
mod rings;
mod service;
mod statuses;
mod tls;
pub mod transmission;
mod tunnel;
pub mod wire;
mod worker;

pub use listener::ExportError;
pub use service::{NbdOptions, NbdService, Reach, STALL_TIMEOUT};
pub use tls::{Tls, TlsError, TlsFiles, TlsPolicy};
pub use worker::{MAX_REQUESTS, MAX_WINDOW_BYTES};
