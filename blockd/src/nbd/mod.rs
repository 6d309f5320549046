//! NBD: volumes for anything that speaks it, over unix sockets and TCP.
//!
//! ```text
//!   listener (tokio) ──► one of a few threads, each a tokio-uring runtime ──► connection: a reader, and a task per request
//!                                                                             │ handshake, transmission: pure
//!                                                                             └ disk: admission, io_uring, completion
//!   a client that wants TLS: a tunnel (tokio) between its socket and the connection
//! ```
//!
//! [`handshake`] and [`transmission`] hold every decision about the protocol and do no I/O; the rest only moves bytes. No operation on a ring
//! is ever dropped before it is complete: its runtime would free the buffer under the kernel's hands.

mod connection;
mod disk;
mod exports;
pub mod handshake;
mod listener;
mod log_limit;
mod rings;
mod service;
mod tls;
pub mod transmission;
mod tunnel;
pub mod wire;

pub use listener::ExportError;
pub use service::{NbdOptions, NbdService, Reach};
pub use tls::{Tls, TlsError, TlsFiles, TlsPolicy};
