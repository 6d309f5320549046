//! One client: its messages are read by a thread of its own, its queues are served by others, and when it has left, what it began is completed.

use super::device::Device;
use super::handler::Handler;
use super::notice::{Next, NoticeChannel};
use super::service::VhostUserOptions;
use super::workers::Workers;
use super::zeroing;
use crate::bells::Rope;
use crate::metrics::VolumeMetrics;
use crate::request::Access;
use crate::volume::Volume;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use vhost::vhost_user::{BackendReqHandler, Error};

/// What is served, to every client of an export.
#[derive(Clone)]
pub(super) struct Export {
    pub(super) volume: Arc<Volume>,
    pub(super) metrics: Arc<VolumeMetrics>,
    pub(super) access: Access,
    pub(super) options: VhostUserOptions,
}

/// See the module's documentation.
pub(super) struct Connection {
    stream: UnixStream,
    notices: Arc<NoticeChannel>,
    _resized: Rope,
    /// Until the end.
    messages: Option<BackendReqHandler<Mutex<Handler>>>,
    zeroing: Option<JoinHandle<()>>,
}

impl Connection {
    /// Serves the client at `stream`, whoever it is.
    pub(super) fn new(export: &Export, stream: UnixStream) -> io::Result<Self> {
        let device = Arc::new(Device::new(export.volume.clone(), export.metrics.clone(), export.access));
        let messages_from = stream.try_clone()?;
        let (sender, zeroing) = zeroing::start(export.volume.image.clone())?;
        let workers = Workers::new(stream.try_clone()?, device.clone(), sender, &export.options);
        let handler = Arc::new(Mutex::new(Handler::new(device, workers)));
        let notices = Arc::new(NoticeChannel::default());
        let _resized = {
            let notices = notices.clone();
            export.volume.image.resized().add(move || notices.config_changed())
        };
        let messages = Some(BackendReqHandler::from_stream(messages_from, handler));
        Ok(Self { stream, notices, _resized, messages, zeroing: Some(zeroing) })
    }

    /// Serves the client until it is gone; an error says that it did not leave by itself.
    pub(super) fn serve(mut self) -> Result<(), Error> {
        let Some(messages) = &mut self.messages else { return Ok(()) };
        loop {
            let handled = match NoticeChannel::peek(&self.stream) {
                Next::Channel => self.notices.receive(&self.stream).map_err(Error::ReqHandlerError),
                Next::Surplus => Err(Error::IncorrectFds),
                Next::Other => messages.handle_request(),
            };
            match handled {
                Ok(()) => {}
                Err(Error::Disconnected | Error::PartialMessage) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Completes what was begun, and ends the threads of the queues. The client hears of the end after that.
        self.messages = None;
        if self.zeroing.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("vhost-user: a thread that makes zeroes failed");
        }
    }
}
