//! The life of a connection: the handshake here, in TLS if it is wanted, then transmission at a [worker](super::worker).

mod input;

use super::exports::{Offer, Served};
use super::handshake::{Agreement, Handshake, HandshakeError, Progress};
use super::rings::{Newcomer, Shared};
use super::transmission::Session;
use super::tunnel::Tunnel;
use super::worker::{Client, CutOff, sys};
use input::Input;
pub(super) use input::InputError;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_uring::net::UnixStream;

/// How long a tunnel may take to send what is due once the connection is over.
const FAREWELL: Duration = Duration::from_secs(10);

/// Why a connection was ended by us.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the client did not choose an export in time")]
    Deadline,
    #[error(transparent)]
    Input(#[from] InputError),
    /// CVE-2021-3716: it would be taken for something that came in TLS.
    #[error("the client sent something between STARTTLS and TLS")]
    Injected,
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    #[error("TLS cannot begin: {0}")]
    Tunnel(io::Error),
    #[error("no descriptor is left for it: {0}")]
    Descriptor(io::Error),
    #[error(transparent)]
    Transmission(#[from] CutOff),
}

/// Where a client is heard.
struct Line {
    stream: Rc<UnixStream>,
    input: Input,
    /// What secures it.
    tunnel: Option<Tunnel>,
}

/// Serves a client until the connection is over.
pub(super) async fn serve(newcomer: Newcomer, stream: OwnedFd, shared: Arc<Shared>) {
    let mut line = Line::new(stream);
    let choice = choose(&mut line, &newcomer, shared.handshake_timeout).await;
    shared.greeting.leave(newcomer.id);
    let Line { stream, input, tunnel } = line;
    let mut result = match choice {
        Ok(Some((agreement, offer))) => transmit(input, stream, &shared, offer, &agreement).await,
        // Closes the line, too.
        other => other.map(|_| drop((input, stream))),
    };
    if let Some(mut tunnel) = tunnel {
        let secured = within(FAREWELL, || hang_up(&newcomer), tunnel.ended()).await;
        result = result.and(secured.unwrap_or(Ok(())).map_err(Ended::Tls));
    }
    if let Err(reason) = result {
        report(&shared, &newcomer, &reason);
    }
}

/// The handshake, and what came of it; `None` if the client has left.
async fn choose(line: &mut Line, newcomer: &Newcomer, limit: Duration) -> Result<Option<(Agreement, Offer)>, Ended> {
    let greeted = within(limit, || hang_up(newcomer), line.greet(newcomer)).await;
    let Some(agreement) = greeted.unwrap_or(Err(Ended::Deadline))? else { return Ok(None) };
    // It may be gone since it was agreed on: then so is the client's reason to be here.
    let offer = newcomer.table.choose(newcomer.id, &agreement.export);
    Ok(offer.map(|offer| (agreement, offer)))
}

/// Ends whatever waits for the client, the tunnel too.
fn hang_up(newcomer: &Newcomer) {
    let _ = rustix::net::shutdown(&newcomer.socket, rustix::net::Shutdown::Both);
}

fn report(shared: &Shared, client: &Newcomer, reason: &Ended) {
    if let Some(suppressed) = shared.log_limit.admit(Instant::now()) {
        let address = &client.table.address;
        tracing::warn!(connection = client.id, %address, %reason, suppressed, "nbd: a client is cut off");
    }
}

/// Completes the operation; after `limit` the socket is shut down, so that it ends soon, and its result does not count.
async fn or_hang_up<T>(stream: &UnixStream, limit: Duration, operation: impl Future<Output = T>) -> Option<T> {
    within(limit, || drop(stream.shutdown(Shutdown::Both)), operation).await
}

/// Completes the operation; after `limit` it is made to end, and its result does not count.
async fn within<T>(limit: Duration, make_end: impl FnOnce(), operation: impl Future<Output = T>) -> Option<T> {
    let mut operation = pin!(operation);
    tokio::select! {
        biased;
        result = &mut operation => return Some(result),
        () = tokio::time::sleep(limit) => {}
    }
    make_end();
    operation.await;
    None
}

impl Line {
    fn new(socket: OwnedFd) -> Self {
        // The type of the socket makes no difference to what is done with it.
        let stream = Rc::new(UnixStream::from_std(socket.into()));
        Self { input: Input::new(stream.clone()), stream, tunnel: None }
    }

    /// The handshake; `None` if the client has left.
    async fn greet(&mut self, newcomer: &Newcomer) -> Result<Option<Agreement>, Ended> {
        let mut handshake = Handshake::with(newcomer.security());
        let mut progress = Ok(Progress::More);
        loop {
            let sent = self.stream.write_all(handshake.take_output()).await.0;
            match progress? {
                Progress::More => {}
                Progress::Agreed(agreement) => return Ok(sent.is_ok().then_some(agreement)),
                Progress::Left => return Ok(None),
                Progress::StartTls => {
                    self.secure(newcomer)?;
                    handshake = handshake.secured();
                }
            }
            if sent.is_err() || !self.input.fill(handshake.wanted_bytes()).await? {
                return Ok(None);
            }
            progress = handshake.handle_input(self.input.take(handshake.wanted_bytes()), &*newcomer.table);
        }
    }

    /// From now on the client is at the other end of a tunnel. Nothing that it has sent before is left.
    fn secure(&mut self, newcomer: &Newcomer) -> Result<(), Ended> {
        let Some((tls, runtime)) = &newcomer.tls else { return Err(Ended::Tunnel(io::ErrorKind::Unsupported.into())) };
        if self.input.has_more() {
            return Err(Ended::Injected);
        }
        let begin = || Tunnel::begin(tls, runtime, newcomer.socket.try_clone()?);
        let (tunnel, socket) = begin().map_err(Ended::Tunnel)?;
        *self = Self { tunnel: Some(tunnel), ..Self::new(socket) };
        Ok(())
    }
}

/// Counts a client as attached.
struct Attached(Arc<Served>);

impl Attached {
    fn new(served: Arc<Served>) -> Self {
        served.volume.clients.nbd.fetch_add(1, SeqCst);
        Self(served)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.volume.clients.nbd.fetch_sub(1, SeqCst);
    }
}

/// Hands the client over to a worker, until the connection is over.
async fn transmit(input: Input, stream: Rc<UnixStream>, shared: &Shared, offer: Offer, agreement: &Agreement) -> Result<(), Ended> {
    let Offer { served, access } = offer;
    let _attached = Attached::new(served.clone());
    let session = Session { replies: agreement.replies, contexts: agreement.contexts, access };
    let socket = sys::borrow(&*stream).try_clone_to_owned().map_err(Ended::Descriptor)?;
    let input = input.into_parts();
    // From now on the worker alone holds the line: it ends with the worker's descriptor.
    drop(stream);
    let (over, end) = oneshot::channel();
    let stall_timeout = shared.stall_timeout;
    shared.workers.serve(Client { socket, input, served, session, stall_timeout, runtime: Handle::current(), over });
    end.await.unwrap_or(Err(CutOff::Abandoned)).map_err(Ended::from)
}
