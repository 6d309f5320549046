//! The life of a connection: handshake, transmission, and an end that leaves nothing under way.
//!
//! ```text
//!   reader: header ──► plan ──► room in the window ──► data ──► task: disk ──► output ──► room is free again
//! ```
//!
//! Requests run concurrently, each in a task, and are answered as they complete. Whatever ends the reader (DISC, a client that is gone, a
//! fault, the service), what has begun is completed before the connection is over; what still waits for its volume does not begin.

mod input;
mod output;
mod window;

use super::disk::{Disk, Undone};
use super::exports::Served;
use super::handshake::{Agreement, Handshake, HandshakeError, Progress};
use super::rings::{Newcomer, Ring, Shared};
use super::transmission::{self, Command, Failure, Fault, HEADER_BYTES, Order, Plan, Session};
use super::tunnel::Tunnel;
use crate::metrics::RequestOp;
use crate::request::{Access, Op, Request};
use crate::store::AlignedBuf;
use input::{Input, InputError};
use output::{Output, Reply};
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use tokio_uring::net::UnixStream;
use window::{Slot, Window};

/// How long the answers that are due may take to be sent once the client sends no more.
const FAREWELL: Duration = Duration::from_secs(10);

/// Why a connection was ended by us.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the client did not choose an export in time")]
    Deadline,
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error(transparent)]
    Input(#[from] InputError),
    /// CVE-2021-3716: it would be taken for something that came in TLS.
    #[error("the client sent something between STARTTLS and TLS")]
    Injected,
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    #[error("TLS cannot begin: {0}")]
    Tunnel(io::Error),
    #[error("the volume cannot be used: {0}")]
    Volume(io::Error),
}

/// A connection in transmission.
struct Connection {
    served: Arc<Served>,
    disk: Disk,
    session: Session,
    output: Output,
    window: Rc<Window>,
}

/// Data of a write, and where it lies in the buffer.
type Payload = (AlignedBuf, Range<usize>);

/// Where a client is heard.
struct Line {
    stream: Rc<UnixStream>,
    input: Input,
    /// What secures it.
    tunnel: Option<Tunnel>,
}

/// Serves a client until the connection is over.
pub(super) async fn serve(newcomer: Newcomer, stream: OwnedFd, ring: Rc<Ring>) {
    let shared = ring.shared.clone();
    let mut line = Line::new(stream);
    let mut result = converse(&mut line, &newcomer, ring).await;
    let tunnel = line.tunnel.take();
    drop(line);
    if let Some(mut tunnel) = tunnel {
        let secured = within(FAREWELL, || hang_up(&newcomer), tunnel.ended()).await;
        result = result.and(secured.unwrap_or(Ok(())).map_err(Ended::Tls));
    }
    if let Err(reason) = result {
        report(&shared, &newcomer, &reason);
    }
}

async fn converse(line: &mut Line, newcomer: &Newcomer, ring: Rc<Ring>) -> Result<(), Ended> {
    let limit = ring.shared.handshake_timeout;
    let greeted = within(limit, || hang_up(newcomer), line.greet(newcomer)).await;
    let Some(agreement) = greeted.unwrap_or(Err(Ended::Deadline))? else { return Ok(()) };
    // It may be gone since it was agreed on: then so is the client's reason to be here.
    let Some(served) = newcomer.table.choose(newcomer.id, &agreement.export) else { return Ok(()) };
    transmit(&mut line.input, newcomer, line.stream.clone(), ring, served, &agreement).await
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

async fn transmit(
    input: &mut Input,
    newcomer: &Newcomer,
    stream: Rc<UnixStream>,
    ring: Rc<Ring>,
    served: Arc<Served>,
    agreement: &Agreement,
) -> Result<(), Ended> {
    let _attached = Attached::new(served.clone());
    let session = Session { replies: agreement.replies, contexts: agreement.contexts, access: Access::ReadWrite };
    let window = Rc::new(Window::new(newcomer.socket.clone(), ring.shared.buffers.clone()));
    let disk = Disk::open(served.clone(), ring.clone()).map_err(Ended::Volume)?;
    let output = Output::new(stream.clone(), ring);
    let connection = Rc::new(Connection { served, disk, session, output, window });
    let result = connection.clone().read_requests(input).await;
    connection.disk.gone.set();
    // The window is empty when everything has been answered, or has failed to be.
    or_hang_up(&stream, FAREWELL, connection.window.drained()).await;
    result
}

impl Connection {
    async fn read_requests(self: Rc<Self>, input: &mut Input) -> Result<(), Ended> {
        loop {
            if !input.fill(HEADER_BYTES).await? {
                return Ok(());
            }
            let header = input.take(HEADER_BYTES).first_chunk().expect("as many bytes as asked for");
            let (command, begun) = (Command::decode(header)?, Instant::now());
            let plan = command.plan(self.session, self.served.volume.size_bytes())?;
            let Some(slot) = self.window.enter(data_bytes(&plan)).await else { return Ok(()) };
            match plan {
                Plan::Disconnect => return Ok(()),
                Plan::Refuse(refusal) => {
                    input.skip(refusal.skip_bytes).await?;
                    let reply = self.failure(&command, refusal.failure);
                    let connection = self.clone();
                    tokio_uring::spawn(async move { connection.output.send(reply, slot).await });
                }
                Plan::Serve(order) => {
                    let payload = match order.request.op {
                        Op::Write(_) => Some(input.receive(self.disk.buffer(order.request)).await?),
                        _ => None,
                    };
                    tokio_uring::spawn(self.clone().carry_out(command, order, payload, slot, begun));
                }
                Plan::Describe { request, max_extents } => {
                    tokio_uring::spawn(self.clone().describe(command, request, max_extents, slot));
                }
            }
        }
    }

    async fn carry_out(self: Rc<Self>, command: Command, order: Order, payload: Option<Payload>, slot: Slot, begun: Instant) {
        let result = match (order.request.op, payload) {
            (Op::Read, _) => self.read(&command, order.request).await,
            (_, Some((buf, _))) => self.disk.write(order, buf).await.map(|()| Reply::Header(transmission::done(command.cookie))),
            (_, None) => self.disk.change(order).await.map(|()| Reply::Header(transmission::done(command.cookie))),
        };
        if result.is_ok()
            && let Some(op) = observed(order.request.op)
        {
            self.served.metrics.observe_request(op, begun.elapsed());
        }
        self.answer(&command, result, slot).await;
    }

    async fn read(&self, command: &Command, request: Request) -> Result<Reply, Undone> {
        let (buf, data) = self.disk.buffer(request);
        let mut buf = self.disk.read(request, buf).await?;
        let header = transmission::read(command.cookie, request.offset, command.len_bytes, self.session.replies);
        buf.put_header(data.start, header.as_bytes());
        Ok(Reply::Data { buf, header_bytes: header.as_bytes().len(), data })
    }

    async fn describe(self: Rc<Self>, command: Command, request: Request, max_extents: usize, slot: Slot) {
        let result = self.disk.describe(request, max_extents).await;
        let reply = result.map(|extents| Reply::Bytes(transmission::block_status(command.cookie, &extents)));
        self.answer(&command, reply, slot).await;
    }

    async fn answer(&self, command: &Command, result: Result<Reply, Undone>, slot: Slot) {
        let reply = match result {
            Ok(reply) => reply,
            Err(Undone::Gone) => return,
            Err(Undone::Failed(error)) => {
                tracing::debug!(volume = self.served.volume.name, kind = command.kind, offset = command.offset, %error, "nbd: a request failed");
                self.failure(command, Failure::from(&error))
            }
        };
        self.output.send(reply, slot).await;
    }

    fn failure(&self, command: &Command, failure: Failure) -> Reply {
        let data_expected = command.wants_data().then_some(self.session.replies);
        Reply::Header(transmission::failure(command.cookie, failure, data_expected))
    }
}

/// Memory that the data of a request takes.
fn data_bytes(plan: &Plan) -> u64 {
    match plan {
        Plan::Serve(order) if order.request.op.moves_data() => order.request.len_bytes,
        _ => 0,
    }
}

fn observed(op: Op) -> Option<RequestOp> {
    match op {
        Op::Read => Some(RequestOp::Read),
        Op::Write(_) => Some(RequestOp::Write),
        Op::Flush => Some(RequestOp::Flush),
        Op::Discard => Some(RequestOp::Discard),
        Op::WriteZeroes(..) => Some(RequestOp::WriteZeroes),
        Op::Cache => None,
    }
}
