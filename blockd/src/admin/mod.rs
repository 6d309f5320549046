//! The admin API: HTTP/1 with JSON over a unix socket.
//!
//! The daemon implements [`Control`]; [`serve`] brings it to the clients of a [`AdminSocket`]. Routes and documents are those of
//! `blockd_api`. Whoever may open the socket may do everything: its owner and mode are the access control.
//!
//! Invariants: a request is limited in size and time, connections are limited in number, and every refusal of a request that could be
//! read at all is an error document. An operation that changes something is not torn in the middle because its client hung up. What an
//! operation does, and whether it may, is left to [`Control`].

mod control;
mod extract;
mod http;
mod progress;
mod reply;
mod routes;
mod socket;
mod stream;
#[cfg(test)]
mod tests;

pub use control::{Control, Outcome};
pub use http::{Limits, serve_router};
pub use progress::ProgressSink;
pub use routes::router;
pub use socket::AdminSocket;

use std::sync::Arc;

/// Most clients at once: operators' shells, dashboards, and tools that wait.
pub const MAX_CONNECTIONS: usize = 256;

/// Serves the API until `shutdown` completes, then lets answers under way finish for a moment.
pub async fn serve<C: Control>(socket: AdminSocket, control: Arc<C>, shutdown: impl Future<Output = ()>) {
    let (listener, guard) = socket.into_listener();
    serve_router(listener, router(control), Limits::new(MAX_CONNECTIONS), shutdown).await;
    drop(guard);
}
