//! HTTP over the daemon's unix socket: one connection for each request.
//!
//! Every wait has a limit: [`CONNECT_TIMEOUT`], [`ANSWER_TIMEOUT`] for a short operation, and [`SILENCE_TIMEOUT`] between two events of
//! a long one. What the daemon sends is limited in size. Documents are returned as they came, so that fields and words that this
//! version does not know reach whoever asked.

mod error;
mod lines;

use blockd_api::{ApiError, ErrorCode, Event, HEARTBEAT, Progress};
use error::{broken_off, broken_up, late, not_a_daemon, unreachable};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use lines::Lines;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{path::PathBuf, time::Duration};
use tokio::{net::UnixStream, time::timeout};

/// How long to try to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a short operation may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest silence of a long operation: a few missed heartbeats.
const SILENCE_TIMEOUT: Duration = HEARTBEAT.saturating_mul(6);
/// Largest document: the status of thousands of volumes.
const MAX_DOCUMENT_BYTES: usize = 64 << 20;

/// The daemon behind a socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A daemon; nothing is connected yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Reads a document.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.short(Method::GET, path, Bytes::new()).await
    }

    /// Deletes something.
    pub async fn delete(&self, path: &str) -> Result<Value, ApiError> {
        self.short(Method::DELETE, path, Bytes::new()).await
    }

    /// Runs a short operation.
    pub async fn post(&self, path: &str, request: &impl Serialize) -> Result<Value, ApiError> {
        self.short(Method::POST, path, encode(request)?).await
    }

    /// Runs a long operation and tells how it goes.
    pub async fn follow(&self, path: &str, request: &impl Serialize, mut tell: impl FnMut(Progress)) -> Result<Value, ApiError> {
        let send = self.send(Method::POST, path, encode(request)?);
        let response = timeout(SILENCE_TIMEOUT, send).await.map_err(|_| late(&self.socket, SILENCE_TIMEOUT))??;
        let status = response.status();
        let mut lines = Lines::new(response.into_body());
        loop {
            let line = timeout(SILENCE_TIMEOUT, lines.next()).await.map_err(|_| late(&self.socket, SILENCE_TIMEOUT))??;
            let Some(line) = line else { return Err(broken_off()) };
            match serde_json::from_slice::<Event<Value>>(&line).map_err(|_| not_a_daemon(&self.socket, status))? {
                Event::Progress(progress) => tell(progress),
                Event::Result(result) => return Ok(result),
                Event::Error(error) => return Err(error),
            }
        }
    }

    async fn short(&self, method: Method, path: &str, body: Bytes) -> Result<Value, ApiError> {
        let exchange = async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_DOCUMENT_BYTES).collect().await;
            let body = body.map_err(|error| broken_up(&*error))?.to_bytes();
            let document: Value = serde_json::from_slice(&body).map_err(|_| not_a_daemon(&self.socket, status))?;
            if status.is_success() {
                return Ok(document);
            }
            let error = document.get("error").cloned().map(serde_json::from_value::<ApiError>);
            Err(error.and_then(Result::ok).unwrap_or_else(|| not_a_daemon(&self.socket, status)))
        };
        timeout(ANSWER_TIMEOUT, exchange).await.map_err(|_| late(&self.socket, ANSWER_TIMEOUT))?
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ApiError> {
        let connecting = UnixStream::connect(&self.socket);
        let connected = timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let stream = connected.map_err(|error| unreachable(&self.socket, &error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken_up(&error))?;
        // Ends by itself when the answer was read or the sender is gone; its error reaches whoever reads the answer.
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "tern").header("content-type", "application/json");
        let request = request.body(Full::new(body)).map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))?;
        sender.send_request(request).await.map_err(|error| broken_up(&error))
    }
}

fn encode(request: &impl Serialize) -> Result<Bytes, ApiError> {
    let text =
        serde_json::to_vec(request).map_err(|error| ApiError::new(ErrorCode::Internal, format!("cannot write the request: {error}")))?;
    Ok(text.into())
}

/// A document as a type, for showing it to people.
pub fn decode<T: DeserializeOwned>(document: Value) -> Result<T, ApiError> {
    serde_json::from_value(document).map_err(|error| {
        let message = format!("the daemon's answer means nothing to this version of tern: {error}");
        ApiError::new(ErrorCode::Internal, message).with_hint("use the tern of the daemon's version, or --json")
    })
}
