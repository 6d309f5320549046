//! The UDP socket that all connections share.

use rustix::net::sockopt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use tracing::warn;

/// What the kernel may hold for us in each direction: a burst at some hundred Mbit/s while all threads are busy.
const BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Binds the socket and gives it large buffers; says so once if the kernel does not allow them.
pub(super) fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen)?;
    // "Force" passes the system's limit where we are allowed to.
    if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES)?;
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
        sockopt::set_socket_send_buffer_size(&socket, BUFFER_BYTES)?;
    }
    let (receive_bytes, send_bytes) = (sockopt::socket_recv_buffer_size(&socket)?, sockopt::socket_send_buffer_size(&socket)?);
    if receive_bytes < BUFFER_BYTES || send_bytes < BUFFER_BYTES {
        warn!(
            receive_bytes,
            send_bytes,
            wanted_bytes = BUFFER_BYTES,
            "small UDP buffers lose packets at high rates: raise net.core.rmem_max and net.core.wmem_max"
        );
    }
    Ok(socket)
}
