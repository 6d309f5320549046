//! `/metrics` and `/healthz` over TCP, for whoever can reach the address: numbers only, nothing to change.

use super::Metrics;
use crate::admin::{Control, Limits, serve_router};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use blockd_api::{ApiError, ErrorCode, PeerList, Status};
use std::{sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// Most scrapers at once.
pub const MAX_CONNECTIONS: usize = 32;

/// How long the daemon may take to tell its state. Longer is not healthy.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a scraper may take for a page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

struct Source<C> {
    metrics: Arc<Metrics>,
    control: Arc<C>,
}

/// Serves both pages until `shutdown` completes.
pub async fn serve<C: Control>(listener: TcpListener, metrics: Arc<Metrics>, control: Arc<C>, shutdown: impl Future<Output = ()>) {
    let source = Arc::new(Source { metrics, control });
    let router = Router::new().route("/metrics", get(page::<C>)).route("/healthz", get(health::<C>)).with_state(source);
    let limits = Limits { whole: Some(PAGE_TIMEOUT), ..Limits::new(MAX_CONNECTIONS) };
    serve_router(listener, router, limits, shutdown).await;
}

async fn ask<C: Control>(control: &C) -> Result<(Status, PeerList), ApiError> {
    let both = async { Ok((control.status(None).await?, control.list_peers().await?)) };
    let late = || ApiError::new(ErrorCode::Timeout, format!("the daemon did not tell its state within {STATUS_TIMEOUT:?}"));
    tokio::time::timeout(STATUS_TIMEOUT, both).await.unwrap_or_else(|_| Err(late()))
}

async fn page<C: Control>(State(source): State<Arc<Source<C>>>) -> Response {
    match ask(&*source.control).await.map(|(status, peers)| source.metrics.encode(status, peers)) {
        Ok(Ok(page)) => ([(CONTENT_TYPE, TEXT_FORMAT)], page).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// Whether the daemon lives and can tell its state; a volume in trouble does not make the daemon unhealthy.
async fn health<C: Control>(State(source): State<Arc<Source<C>>>) -> Response {
    match ask(&*source.control).await {
        Ok(_) => "ok\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}
