//! The admin API: HTTP/1 over a unix socket.
mod control;
mod progress;

pub use control::{Control, Outcome};
pub use progress::ProgressSink;
