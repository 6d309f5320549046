//! The socket of the admin API.

use crate::unix_socket::{self, SocketAccess, SocketError, SocketFile};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// See the module's documentation.
#[derive(Debug)]
pub struct AdminSocket {
    listener: tokio::net::UnixListener,
    /// Removed in the end; `None`: it belongs to the service manager.
    file: Option<SocketFile>,
}

impl AdminSocket {
    /// Binds it; must be called within a tokio runtime.
    pub fn bind(path: &Path, access: SocketAccess) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), action: "watch it", source };
        let (listener, file) = unix_socket::bind(path, access)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
        Ok(Self { listener, file: Some(file) })
    }

    /// One that the service manager has bound; must be called within a tokio runtime.
    pub fn inherited(listener: UnixListener) -> std::io::Result<Self> {
        Ok(Self { listener: tokio::net::UnixListener::from_std(listener)?, file: None })
    }

    pub(super) fn into_listener(self) -> (tokio::net::UnixListener, Option<SocketFile>) {
        (self.listener, self.file)
    }
}
