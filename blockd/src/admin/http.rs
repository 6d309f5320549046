//! HTTP/1 connections with limits, over any listener.
//!
//! One request a connection: clients are local or few, and an idle connection then costs its head's time limit at most.

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    sync::{Semaphore, watch},
    task::JoinSet,
};

/// Largest head of a request.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// What a client gets that comes when all places are taken.
const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 117\r\n\r\n\
{\"error\":{\"code\":\"unavailable\",\"message\":\"the daemon has too many clients\",\"hint\":\"end some of them, or try again\"}}\n";

/// What the clients of a listener may use up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Time from the connection to the end of a request's head.
    pub head: Duration,
    /// Time from the connection to the end of the answer; `None`: as long as the operation takes.
    pub whole: Option<Duration>,
    /// Time that answers under way get when the daemon stops.
    pub drain: Duration,
}

impl Limits {
    /// The usual times.
    pub const fn new(connections: usize) -> Self {
        Self { connections, head: Duration::from_secs(5), whole: None, drain: Duration::from_secs(2) }
    }
}

/// Serves a router until `shutdown` completes.
pub async fn serve_router<L: Listener>(mut listener: L, router: Router, limits: Limits, shutdown: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let mut io = tokio::select! {
            () = &mut shutdown => break,
            (io, _) = listener.accept() => io,
            Some(_) = connections.join_next() => continue,
        };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let served = serve_connection(io, router.clone(), limits, stopped.clone());
                connections.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Err(_) => {
                // The answer fits any socket's buffer; a client without room for it gets none.
                let _ = tokio::time::timeout(Duration::from_millis(50), io.write_all(BUSY)).await;
            }
        }
    }
    drop(listener);
    drop(stop);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(limits.drain, all).await;
}

async fn serve_connection<I>(io: I, router: Router, limits: Limits, mut stopped: watch::Receiver<()>)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head).keep_alive(false).max_buf_size(MAX_HEAD_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), TowerToHyperService::new(router)));
    let result = tokio::select! {
        result = &mut connection => result,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        // It takes no answer, or a byte now and then.
        () = over(limits.whole) => return,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection broke off");
    }
}

async fn over(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn a_client_that_takes_no_answer_holds_its_place_for_so_long_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { vec![b'x'; 64 << 20] }));
        let limits = Limits { whole: Some(Duration::from_millis(200)), ..Limits::new(1) };
        tokio::spawn(serve_router(listener, router, limits, std::future::pending()));
        let ask = async || {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nhost: tern\r\n\r\n").await.unwrap();
            client
        };
        let _silent = ask().await;
        let served = async {
            let mut status = [0; 12];
            while status != *b"HTTP/1.1 200" {
                ask().await.read_exact(&mut status).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), served).await.expect("the place is free again");
    }

    #[test]
    fn the_busy_answer_says_its_true_length() {
        let text = std::str::from_utf8(BUSY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
        serde_json::from_str::<blockd_api::ErrorDocument>(body).unwrap();
    }
}
