//! One client: its threads are started before it is accepted, and end after it has left and what it began is complete.

use super::backend::{Backend, QUEUES};
use super::device::Device;
use super::zeroing;
use crate::metrics::VolumeMetrics;
use crate::request::Access;
use crate::volume::Volume;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use vhost::vhost_user::{Error as MessageError, Listener};
use vhost_user_backend::{Error, ShutdownHandle, VhostUserDaemon};
use vmm_sys_util::epoll::EventSet;

type Daemon = VhostUserDaemon<Arc<Backend>>;

/// What is served, to every client of an export.
#[derive(Clone)]
pub(super) struct Export {
    pub(super) volume: Arc<Volume>,
    pub(super) metrics: Arc<VolumeMetrics>,
    pub(super) access: Access,
    /// Threads for the queues of each client.
    pub(super) threads: usize,
}

/// See the module's documentation.
pub(super) struct Connection {
    backend: Arc<Backend>,
    /// Until the end.
    daemon: Option<Daemon>,
    zeroing: Option<JoinHandle<()>>,
}

impl Connection {
    /// Accepts the client that waits at the listener.
    pub(super) fn accept(export: &Export, listener: &mut Listener) -> io::Result<(Self, ShutdownHandle)> {
        let device = Arc::new(Device::new(export.volume.clone(), export.metrics.clone(), export.access));
        let (sender, zeroing) = zeroing::start(export.volume.image.clone())?;
        let backend = Arc::new(Backend::new(device.clone(), export.threads, sender)?);
        let mut connection = Self { backend: backend.clone(), daemon: None, zeroing: Some(zeroing) };
        let name = format!("vhost-{}", export.volume.name);
        let daemon = connection.daemon.insert(Daemon::new(name, backend.clone(), device.memory.clone()).map_err(failed)?);
        // Numbers up to that of queues belong to the crate.
        let numbers = QUEUES as u64 + 1..;
        for (handler, fds) in daemon.get_epoll_handlers().iter().zip(backend.listeners()) {
            for (fd, number) in fds.into_iter().zip(numbers.clone()) {
                handler.register_listener(fd, EventSet::IN, number)?;
            }
        }
        daemon.start(listener).map_err(failed)?;
        let handle = daemon.shutdown_handle().ok_or(io::ErrorKind::NotConnected)?;
        Ok((connection, handle))
    }

    /// Serves the client until it is gone; an error says that it did not leave by itself.
    pub(super) fn serve(mut self) -> Result<(), Error> {
        match self.daemon.as_mut().map(Daemon::wait) {
            None | Some(Ok(()) | Err(Error::HandleRequest(MessageError::Disconnected | MessageError::PartialMessage))) => Ok(()),
            Some(result) => result,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.backend.close();
        // Ends the threads of the queues.
        self.daemon = None;
        self.backend.exits.close();
        if self.zeroing.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("vhost-user: a thread that makes zeroes failed");
        }
    }
}

fn failed(error: Error) -> io::Error {
    io::Error::other(error.to_string())
}
