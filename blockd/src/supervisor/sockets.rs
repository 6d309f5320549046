//! Sockets that were bound before the daemon was started, by their names: `admin` (unix) and `metrics` (TCP). They take the place of the
//! configured ones, live through restarts, and have the owner and mode that the service manager gave them.

use super::sys;
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{AddressFamily, getsockname};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For the admin API.
    pub admin: Option<UnixListener>,
    /// For `/metrics`.
    pub metrics: Option<TcpListener>,
}

/// Why the daemon does not start with what it was given.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// A socket that is for nothing.
    #[error("socket activation: nothing here is called {0:?}: set FileDescriptorName= to admin or metrics in the socket unit")]
    Unknown(String),
    /// Not what its name says.
    #[error("socket activation: {name} must be {expected}: mend ListenStream= in the socket unit")]
    Kind {
        /// Its name.
        name: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The environment is not what it should be.
    #[error("socket activation: {0}")]
    Io(#[from] io::Error),
}

impl Inherited {
    /// Takes what was handed over. Once, and before anything else opens files.
    pub fn take() -> Result<Self, InheritedError> {
        let mut inherited = Self::default();
        for (socket, name) in sys::inherited()? {
            let family = getsockname(socket.as_fd()).map_err(io::Error::from)?.address_family();
            let listens = socket_acceptconn(socket.as_fd()).map_err(io::Error::from)?;
            match (name.as_str(), family) {
                ("admin" | "metrics", _) if !listens => return Err(InheritedError::Kind { name, expected: "a stream that listens" }),
                ("admin", AddressFamily::UNIX) => inherited.admin = Some(unblocked(socket)?.into()),
                ("metrics", AddressFamily::INET | AddressFamily::INET6) => inherited.metrics = Some(unblocked(socket)?.into()),
                ("admin", _) => return Err(InheritedError::Kind { name, expected: "a unix socket" }),
                ("metrics", _) => return Err(InheritedError::Kind { name, expected: "a TCP socket" }),
                _ => return Err(InheritedError::Unknown(name)),
            }
        }
        Ok(inherited)
    }
}

/// The runtime waits by itself.
fn unblocked(socket: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}
