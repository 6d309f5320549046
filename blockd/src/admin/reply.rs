//! Answers: a document, or an error document with its HTTP status.

use super::Outcome;
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use blockd_api::{ApiError, ErrorCode, ErrorDocument};
use serde::Serialize;
use tokio::task::JoinSet;

/// An error on its way to the client.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    error: ApiError,
}

impl Refusal {
    /// An error with a status of its own.
    pub fn with_status(status: StatusCode, error: ApiError) -> Self {
        Self { status, error }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self { status: status_of(error.code), error }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorDocument { error: self.error })).into_response()
    }
}

/// The HTTP status of an error.
pub fn status_of(code: ErrorCode) -> StatusCode {
    StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// What a handler returns.
pub type Reply<T> = Result<Json<T>, Refusal>;

/// Runs a reading operation; it is dropped when the client hangs up.
pub async fn read<T, F>(operation: F) -> Reply<T>
where
    T: Serialize + Send + 'static,
    F: Future<Output = Outcome<T>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    tasks.spawn(operation);
    let ended = tasks.join_next().await.expect("one task was spawned");
    Ok(Json(ended.unwrap_or_else(|failure| Err(task_failed(&failure)))?))
}

/// Runs an operation that changes something to its end, client or no client.
pub async fn change<T, F>(name: &'static str, operation: F) -> Reply<T>
where
    T: Serialize + Send + 'static,
    F: Future<Output = Outcome<T>> + Send + 'static,
{
    Ok(Json(tokio::spawn(logged(name, operation)).await.unwrap_or_else(|failure| Err(task_failed(&failure)))?))
}

/// Logs how an operation ended.
pub async fn logged<T>(name: &'static str, operation: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let outcome = operation.await;
    match &outcome {
        Ok(_) => tracing::info!(operation = name, "done"),
        Err(error) => tracing::warn!(operation = name, code = ?error.code, error = %error, "failed"),
    }
    outcome
}

/// A panic of the operation, or the end of the daemon.
pub fn task_failed(failure: &tokio::task::JoinError) -> ApiError {
    if failure.is_cancelled() {
        return ApiError::new(ErrorCode::Unavailable, "the daemon is stopping").with_hint("start it again, then look at `tern status`");
    }
    tracing::error!(%failure, "operation panicked");
    ApiError::new(ErrorCode::Internal, "the operation met a fault of the daemon")
        .with_hint("look at the daemon's log, then at `tern status`")
}
