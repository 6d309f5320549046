//! A listening socket: made, accepted from, and taken away.

use super::exports::ExportTable;
use super::rings::{Newcomer, Rings};
use super::service::Reach;
use super::tls::Tls;
use crate::unix_socket::{self, SocketAccess, SocketError, SocketFile};
use blockd_api::NbdAddress;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long to wait when the system has no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// An idle TCP connection is probed after this time, and given up after three probes.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why a volume cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Other hosts could reach the address.
    #[error(
        "tcp:{0} can be reached from other hosts, and NBD by itself is neither encrypted nor authenticated: set nbd.tls_certificate, \
         nbd.tls_key and nbd.tls_client_ca, or use a unix socket or 127.0.0.1"
    )]
    Exposed(SocketAddr),
    /// There is one of that name.
    #[error("an export named {name:?} exists at {address} already")]
    Exists {
        /// Name of the export.
        name: String,
        /// Where.
        address: NbdAddress,
    },
    /// The unix socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The TCP socket cannot be made.
    #[error("tcp:{address}: {source}")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The service was shut down.
    #[error("the NBD service is shutting down")]
    ShuttingDown,
}

/// See the module's documentation.
pub(super) struct Listener {
    pub(super) table: Arc<ExportTable>,
    stop: watch::Sender<()>,
    accepting: JoinHandle<()>,
    file: Option<SocketFile>,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Binds, and accepts clients from now on. Returns the address that it has: the port may have been left open.
    pub(super) fn bind(
        address: &NbdAddress,
        access: SocketAccess,
        reach: Reach,
        tls: Option<&Tls>,
        rings: Arc<Rings>,
    ) -> Result<(NbdAddress, Self), ExportError> {
        let (socket, address, file) = match address {
            NbdAddress::Unix(path) => {
                let path = path.as_path();
                let failed = |source| SocketError::Io { path: path.to_owned(), action: "listen", source };
                let (socket, file) = unix_socket::bind(path, access)?;
                (Socket::Unix(UnixListener::from_std(socket).map_err(failed)?), address.clone(), Some(file))
            }
            NbdAddress::Tcp(address) => {
                let checked = reach == Reach::Anywhere || tls.is_some_and(Tls::authenticates);
                if !checked && !address.ip().is_loopback() {
                    return Err(ExportError::Exposed(*address));
                }
                let failed = |source| ExportError::Tcp { address: *address, source };
                let socket = std::net::TcpListener::bind(address).map_err(failed)?;
                socket.set_nonblocking(true).map_err(failed)?;
                let bound = socket.local_addr().map_err(failed)?;
                (Socket::Tcp(TcpListener::from_std(socket).map_err(failed)?), NbdAddress::Tcp(bound), None)
            }
        };
        let table = Arc::new(ExportTable::new(address.clone()));
        let (stop, stopped) = watch::channel(());
        // Whoever can open a unix socket is on this host, and let in by its mode.
        let tls = tls.filter(|_| matches!(address, NbdAddress::Tcp(_))).map(|tls| (tls.clone(), Handle::current()));
        let accepting = tokio::spawn(accept(socket, table.clone(), tls, rings, stopped));
        Ok((address, Self { table, stop, accepting, file }))
    }

    /// Accepts nobody any more, and frees the address. Connections go on.
    pub(super) async fn close(self) -> Arc<ExportTable> {
        drop(self.file);
        drop(self.stop);
        if let Err(error) = self.accepting.await {
            tracing::error!(%error, "nbd: a listener failed");
        }
        self.table
    }
}

async fn accept(socket: Socket, table: Arc<ExportTable>, tls: Option<(Tls, Handle)>, rings: Arc<Rings>, mut stopped: watch::Receiver<()>) {
    loop {
        let accepted = tokio::select! {
            _ = stopped.changed() => return,
            accepted = socket.accept() => accepted,
        };
        let result = accepted.and_then(|stream| {
            // A ring waits by itself; with a socket that does not block it would only be told so.
            rustix::io::ioctl_fionbio(&stream, false)?;
            rings.welcome(Newcomer::new(stream, table.clone(), tls.clone()));
            Ok(())
        });
        if let Err(error) = result {
            if let Some(suppressed) = rings.log_limit().admit(std::time::Instant::now()) {
                tracing::warn!(address = %table.address, %error, suppressed, "nbd: a client could not be accepted");
            }
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

impl Socket {
    async fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(socket) => Ok(socket.accept().await?.0.into_std()?.into()),
            Self::Tcp(socket) => {
                let (stream, _) = socket.accept().await?;
                stream.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                rustix::net::sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
                rustix::net::sockopt::set_tcp_keepintvl(&stream, KEEPALIVE)?;
                rustix::net::sockopt::set_tcp_keepcnt(&stream, 3)?;
                Ok(stream.into_std()?.into())
            }
        }
    }
}
