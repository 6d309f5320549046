//! An export's listening socket, and the thread that owns it and its clients.

use super::connection::{Connection, Export};
use super::service::ExportError;
use crate::unix_socket::{self, SocketAccess, SocketError, SocketFile};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Clients of an export at once: a VM, the one that it migrates to on the same host, and some that have not noticed that they are dead.
/// Further ones wait in the socket's backlog.
const MAX_CLIENTS: usize = 4;
/// How long nobody is accepted when the system has no more descriptors or threads, or when a client had to be hung up on: one that tries
/// again and again fills neither the log nor the processor.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How long a client may take to read its answers when it is hung up on.
const FAREWELL: Duration = Duration::from_secs(5);

/// See the module's documentation.
pub(super) struct Listener {
    control: Arc<Control>,
    thread: JoinHandle<()>,
}

/// Wakes the thread.
struct Control {
    stopping: AtomicBool,
    bell: OwnedFd,
}

struct Client {
    stream: UnixStream,
    done: Arc<AtomicBool>,
    thread: JoinHandle<Parting>,
}

/// How a client left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parting {
    InPeace,
    HungUpOn,
}

impl Listener {
    /// Binds, and accepts clients from now on.
    pub(super) fn bind(path: &Path, access: SocketAccess, export: Export) -> Result<Self, ExportError> {
        let failed = |action| move |source| SocketError::Io { path: path.to_owned(), action, source };
        let (socket, file) = unix_socket::bind(path, access)?;
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(|error| failed("make a bell")(error.into()))?;
        let control = Arc::new(Control { stopping: AtomicBool::new(false), bell });
        let serving = Serving { export, control: control.clone(), clients: Vec::new() };
        let serve = move || serving.run(socket, file);
        let thread = std::thread::Builder::new().name("vhost-accept".into()).spawn(serve).map_err(failed("start a thread"))?;
        Ok(Self { control, thread })
    }

    /// Begins to hang up on the clients.
    pub(super) fn stop(&self) {
        self.control.stopping.store(true, SeqCst);
        self.control.ring();
    }

    /// Hangs up on the clients, and frees the path. Blocks until what they began is complete.
    pub(super) fn close(self) {
        self.stop();
        if self.thread.join().is_err() {
            tracing::error!("vhost-user: a listener failed");
        }
    }
}

impl Control {
    fn ring(&self) {
        // It fails only if it is ringing already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

/// What the thread has.
struct Serving {
    export: Export,
    control: Arc<Control>,
    clients: Vec<Client>,
}

impl Serving {
    fn run(mut self, socket: UnixListener, file: SocketFile) {
        let mut pause = false;
        while !self.control.stopping.load(SeqCst) {
            let full = self.clients.len() >= MAX_CLIENTS;
            let waiting = self.wait((!full && !pause).then_some(&socket), pause.then_some(&ACCEPT_PAUSE));
            pause = self.forget_the_gone().contains(&Parting::HungUpOn);
            if waiting
                && !pause
                && !self.control.stopping.load(SeqCst)
                && let Err(error) = self.accept(&socket)
            {
                tracing::warn!(volume = self.export.volume.name, %error, "vhost-user: a client could not be accepted");
                pause = true;
            }
        }
        drop(socket);
        drop(file);
        self.clients.iter().for_each(Client::hang_up);
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline && !self.clients.iter().all(Client::is_done) {
            self.wait(None, Some(&ACCEPT_PAUSE));
        }
        self.clients.iter().filter(|client| client.takes_no_answers()).for_each(Client::cut_off);
        let _: Vec<Parting> = self.clients.drain(..).map(Client::join).collect();
    }

    /// Whether a client waits at the socket.
    fn wait(&self, socket: Option<&UnixListener>, timeout: Option<&Timespec>) -> bool {
        let mut fds = vec![PollFd::new(&self.control.bell, PollFlags::IN)];
        fds.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
        // Interrupted or not, the caller looks.
        let polled = poll(&mut fds, timeout);
        let waiting = polled.is_ok() && fds.get(1).is_some_and(|fd| fd.revents().contains(PollFlags::IN));
        let _ = rustix::io::read(self.control.bell.as_fd(), &mut [0_u8; 8]);
        waiting
    }

    fn accept(&mut self, socket: &UnixListener) -> io::Result<()> {
        let (stream, _) = socket.accept()?;
        let connection = Connection::new(&self.export, stream.try_clone()?)?;
        let done = Arc::new(AtomicBool::new(false));
        let serve = {
            let (done, control, name) = (done.clone(), self.control.clone(), self.export.volume.name.clone());
            move || {
                tracing::info!(volume = name, "vhost-user: a client has come");
                let parting = match connection.serve() {
                    Ok(()) => {
                        tracing::info!(volume = name, "vhost-user: a client has left");
                        Parting::InPeace
                    }
                    Err(error) => {
                        tracing::warn!(volume = name, %error, "vhost-user: a client was hung up on");
                        Parting::HungUpOn
                    }
                };
                done.store(true, SeqCst);
                control.ring();
                parting
            }
        };
        let thread = std::thread::Builder::new().name("vhost-client".into()).spawn(serve)?;
        self.clients.push(Client { stream, done, thread });
        Ok(())
    }

    fn forget_the_gone(&mut self) -> Vec<Parting> {
        let (gone, here) = std::mem::take(&mut self.clients).into_iter().partition(Client::is_done);
        self.clients = here;
        let gone: Vec<Client> = gone;
        gone.into_iter().map(Client::join).collect()
    }
}

impl Client {
    /// Listens to it no more. It hears of that when what it began is complete: from the end on, it may look at its rings.
    fn hang_up(&self) {
        // It fails if the client has hung up.
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    fn is_done(&self) -> bool {
        self.done.load(SeqCst)
    }

    /// Whether whoever answers it may have to wait for it, for ever.
    fn takes_no_answers(&self) -> bool {
        let mut socket = [PollFd::new(&self.stream, PollFlags::OUT)];
        poll(&mut socket, Some(&Timespec::default())) == Ok(0)
    }

    /// Answers it no more, either.
    fn cut_off(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn join(self) -> Parting {
        self.thread.join().unwrap_or_else(|_| {
            tracing::error!("vhost-user: a client's thread failed");
            Parting::HungUpOn
        })
    }
}
