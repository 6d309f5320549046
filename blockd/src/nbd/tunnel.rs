//! TLS between a client and its connection.
//!
//! ```text
//!   client ══ TLS ══ socket │ tunnel (tokio) │ socket pair ── connection (io_uring)
//! ```
//!
//! The connection goes on as if its client were at the other end of the pair, so a client without TLS pays nothing for it. What either side
//! closes is closed on the other; at most [`BUFFER_BYTES`] are on their way in each direction, besides what the sockets hold.

use super::tls::Tls;
use rustls::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Pair;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Room for four records.
const BUFFER_BYTES: usize = 64 << 10;
/// How long a client whose handshake failed may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// A tunnel under way.
#[derive(Debug)]
pub(super) struct Tunnel(JoinHandle<io::Result<()>>);

impl Tunnel {
    /// Begins with the TLS handshake on `socket`. Returns the connection's end, too, which waits for what the client says in the tunnel.
    pub(super) fn begin(tls: &Tls, runtime: &Handle, socket: OwnedFd) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = Pair::pair()?;
        let acceptor = TlsAcceptor::from(tls.config.clone());
        let _within = runtime.enter();
        // The type of the socket makes no difference to what is done with it.
        let (client, inner) = (Pair::from(socket), ours);
        for end in [&client, &inner] {
            end.set_nonblocking(true)?;
        }
        let (client, inner) = (UnixStream::from_std(client)?, UnixStream::from_std(inner)?);
        Ok((Self(runtime.spawn(run(acceptor, client, inner))), theirs.into()))
    }

    /// Returns when the client's socket is of no use to the tunnel any more; the error says what was wrong with the client's TLS.
    pub(super) async fn ended(&mut self) -> Result<(), Error> {
        match (&mut self.0).await {
            Ok(Ok(())) => Ok(()),
            // Everything else is a client that is gone: an end of file, a reset.
            Ok(Err(error)) => error.into_inner().and_then(|error| error.downcast().ok()).map_or(Ok(()), |error| Err(*error)),
            Err(failed) => Err(Error::General(failed.to_string())),
        }
    }
}

async fn run(acceptor: TlsAcceptor, client: UnixStream, inner: UnixStream) -> io::Result<()> {
    let client = match acceptor.accept(client).into_fallible().await {
        Ok(client) => client,
        Err((error, client)) => {
            let _ = tokio::time::timeout(LINGER, linger(client)).await;
            return Err(error);
        }
    };
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = inner.into_split();
    let inbound = async move { copy(&mut from_client, &mut to_server).await };
    let mut outbound = std::pin::pin!(async {
        copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    });
    tokio::select! {
        biased;
        over = &mut outbound => over,
        // The client sends no more; its answers are still due.
        last = inbound => last.and(outbound.await),
    }
}

/// Lets the client read the alert: to close while it still sends would take it back.
async fn linger(mut client: UnixStream) -> io::Result<()> {
    client.shutdown().await?;
    let mut ignored = [0; 1024];
    while client.read(&mut ignored).await? > 0 {}
    Ok(())
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..len]).await?;
        to.flush().await?;
    }
}
