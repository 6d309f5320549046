//! The pure parts of blockd's NBD, by path: the daemon itself would bring a database along.

#[path = "../../../blockd/src/nbd/handshake/mod.rs"]
pub mod handshake;
#[path = "../../../blockd/src/nbd/transmission/mod.rs"]
pub mod transmission;
#[path = "../../../blockd/src/nbd/wire.rs"]
pub mod wire;
