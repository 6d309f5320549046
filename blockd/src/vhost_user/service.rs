//! The vhost-user service as the daemon sees it.

use super::connection::Export;
use super::listener::Listener;
use crate::metrics::VolumeMetrics;
use crate::request::Access;
use crate::unix_socket::{SocketAccess, SocketError};
use crate::volume::Volume;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the service can be told.
#[derive(Clone, Debug)]
pub struct VhostUserOptions {
    /// Who may open the sockets. Whoever does hands over memory, and reads and writes the volume.
    pub access: SocketAccess,
    /// Threads for the queues of each client, 1 to 64.
    pub threads: usize,
    /// Processors that those threads are bound to, in turns; none: they go where the system puts them.
    pub cpus: Arc<[usize]>,
    /// Longest that those threads look for work before they sleep.
    pub poll: Duration,
}

/// Why a volume cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The socket cannot be made, or another export has the path.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The service was shut down.
    #[error("the vhost-user service is shutting down")]
    ShuttingDown,
}

/// See the module's documentation.
pub struct VhostUserService {
    options: VhostUserOptions,
    /// Until the service is shut down.
    exports: Mutex<Option<BTreeMap<PathBuf, Exported>>>,
}

struct Exported {
    name: String,
    listener: Listener,
}

impl VhostUserService {
    /// A service without exports.
    pub fn start(options: VhostUserOptions) -> Self {
        Self { options, exports: Mutex::new(Some(BTreeMap::new())) }
    }

    /// Serves a volume at the unix socket `path`, which is made; a socket that nobody serves is replaced.
    pub fn export(&self, volume: Arc<Volume>, metrics: Arc<VolumeMetrics>, path: &Path, access: Access) -> Result<(), ExportError> {
        let mut exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        let exports = exports.as_mut().ok_or(ExportError::ShuttingDown)?;
        let name = volume.name.clone();
        let export = Export { volume, metrics, access, options: self.options.clone() };
        let listener = Listener::bind(path, self.options.access, export)?;
        exports.insert(path.to_owned(), Exported { name, listener });
        Ok(())
    }

    /// Ends an export and hangs up on its clients. Returns when nothing of it is under way; `false` if there was no such export.
    pub async fn unexport(&self, name: &str, path: &Path) -> bool {
        let closing = self.take(|exported_path, exported| exported_path == path && exported.name == name);
        let found = !closing.is_empty();
        close(closing).await;
        found
    }

    /// Ends every export of the volume.
    pub async fn unexport_everywhere(&self, name: &str) {
        close(self.take(|_, exported| exported.name == name)).await;
    }

    /// Ends all exports, for ever. Returns when nothing is under way any more.
    pub async fn shutdown(&self) {
        let exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner).take();
        close(exports.into_iter().flatten().map(|(_, exported)| exported.listener).collect()).await;
    }

    fn take(&self, wanted: impl Fn(&Path, &Exported) -> bool) -> Vec<Listener> {
        let mut exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(exports) = exports.as_mut() else { return Vec::new() };
        exports.extract_if(.., |path, exported| wanted(path, exported)).map(|(_, exported)| exported.listener).collect()
    }
}

/// Closes listeners, which blocks, on another thread.
async fn close(listeners: Vec<Listener>) {
    // One farewell for all: each in turn would add up.
    listeners.iter().for_each(Listener::stop);
    let closed = tokio::task::spawn_blocking(|| listeners.into_iter().for_each(Listener::close)).await;
    if let Err(error) = closed {
        tracing::error!(%error, "vhost-user: an export could not be closed");
    }
}
