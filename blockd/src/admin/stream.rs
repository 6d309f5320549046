//! Answers of long operations: a stream of events.
//!
//! ```text
//!   operation (own task) ── ProgressSink ──▶ pump (own task) ── a few lines ──▶ body ──▶ client
//!           └───────────── outcome ────────────▲                  client gone ◀──┘
//! ```
//!
//! An operation that ends within [`FIRST_EVENT`] without progress answers with its true HTTP status; after that the status is 200 and
//! the last line tells.

use super::{
    Outcome, ProgressSink,
    reply::{logged, status_of, task_failed},
};
use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use blockd_api::{ApiError, ErrorCode, Event, HEARTBEAT, Progress};
use hyper::body::Frame;
use serde::Serialize;
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

/// How long an operation may take before its answer begins.
const FIRST_EVENT: Duration = Duration::from_millis(200);

/// Shortest time between two lines of progress.
const PROGRESS_GAP: Duration = Duration::from_millis(100);

/// How long a client may leave its lines unread.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Lines between the pump and the connection.
const QUEUED_LINES: usize = 4;

/// What a client's hanging up means for the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHangup {
    /// It goes on: it changes something.
    Finish,
    /// It ends: it only looks.
    Cancel,
}

/// Runs an operation and answers with its events.
pub async fn stream<T, F>(name: &'static str, on_hangup: OnHangup, operation: impl FnOnce(ProgressSink) -> F) -> Response
where
    T: Serialize + Send + 'static,
    F: Future<Output = Outcome<T>> + Send + 'static,
{
    let (sink, progress) = ProgressSink::new();
    let task = tokio::spawn(logged(name, operation(sink)));
    let mut running = Running { task, progress, on_hangup };
    match tokio::time::timeout(FIRST_EVENT, running.first_event()).await {
        Ok(Some(outcome)) => finished(outcome),
        Ok(None) | Err(_) => {
            let (sender, receiver) = mpsc::channel(QUEUED_LINES);
            tokio::spawn(pump(running, sender));
            ndjson(StatusCode::OK, Body::new(EventBody(receiver)))
        }
    }
}

fn finished<T: Serialize>(outcome: Outcome<T>) -> Response {
    let status = outcome.as_ref().err().map_or(StatusCode::OK, |error| status_of(error.code));
    ndjson(status, Body::from(last_line(outcome)))
}

fn ndjson(status: StatusCode, body: Body) -> Response {
    (status, [(CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

fn last_line<T: Serialize>(outcome: Outcome<T>) -> Bytes {
    let event = match outcome {
        Ok(result) => Event::Result(result),
        Err(error) => Event::Error(error),
    };
    event.to_line().map(Bytes::from).unwrap_or_else(|error| {
        let error = ApiError::new(ErrorCode::Internal, format!("the result is no document: {error}"));
        Bytes::from(Event::<()>::Error(error).to_line().unwrap_or_default())
    })
}

struct Running<T> {
    task: JoinHandle<Outcome<T>>,
    progress: watch::Receiver<Option<Progress>>,
    on_hangup: OnHangup,
}

impl<T> Running<T> {
    /// The outcome, or `None` at the first progress.
    async fn first_event(&mut self) -> Option<Outcome<T>> {
        let mut outcome = None;
        // The outcome first: an operation that reported and ended is over.
        tokio::select! {
            biased;
            ended = &mut self.task => outcome = Some(ended),
            changed = self.progress.changed() => match changed {
                // Told again by the pump, which has seen nothing yet.
                Ok(()) => self.progress.mark_changed(),
                Err(_) => outcome = Some((&mut self.task).await),
            },
        }
        outcome.map(|ended| ended.unwrap_or_else(|failure| Err(task_failed(&failure))))
    }
}

/// A hang-up before the stream begins drops the handler, and this with it.
impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if self.on_hangup == OnHangup::Cancel {
            self.task.abort();
        }
    }
}

async fn pump<T: Serialize>(mut running: Running<T>, lines: mpsc::Sender<Bytes>) {
    let mut next_progress = Instant::now();
    let mut sink_alive = true;
    loop {
        let Running { task, progress, .. } = &mut running;
        let changed = async {
            tokio::time::sleep_until(next_progress).await;
            progress.changed().await
        };
        let line = tokio::select! {
            biased;
            ended = task => {
                let outcome = ended.unwrap_or_else(|failure| Err(task_failed(&failure)));
                let _ = lines.send_timeout(last_line(outcome), UNREAD_TIMEOUT).await;
                return;
            }
            () = lines.closed() => return,
            changed = changed, if sink_alive => {
                sink_alive = changed.is_ok();
                if !sink_alive {
                    continue;
                }
                progress_line(progress)
            }
            () = tokio::time::sleep(HEARTBEAT) => progress_line(progress),
        };
        next_progress = Instant::now() + PROGRESS_GAP;
        if lines.send_timeout(line, UNREAD_TIMEOUT).await.is_err() {
            return;
        }
    }
}

fn progress_line(progress: &mut watch::Receiver<Option<Progress>>) -> Bytes {
    let latest = progress.borrow_and_update().clone().unwrap_or_else(|| Progress::phase("working"));
    Bytes::from(Event::<()>::Progress(latest).to_line().unwrap_or_default())
}

/// The lines as a body.
struct EventBody(mpsc::Receiver<Bytes>);

impl axum::body::HttpBody for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
