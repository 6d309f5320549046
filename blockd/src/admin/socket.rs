//! The socket of the admin API.

use crate::unix_socket::{self, SocketAccess, SocketError, SocketFile};
use std::path::Path;

/// See the module's documentation.
#[derive(Debug)]
pub struct AdminSocket {
    listener: tokio::net::UnixListener,
    file: SocketFile,
}

impl AdminSocket {
    /// Binds it; must be called within a tokio runtime.
    pub fn bind(path: &Path, access: SocketAccess) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), action: "watch it", source };
        let (listener, file) = unix_socket::bind(path, access)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
        Ok(Self { listener, file })
    }

    pub(super) fn into_listener(self) -> (tokio::net::UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}
