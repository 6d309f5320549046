//! NBD.
pub mod handshake;
pub mod transmission;
pub mod wire;
