//! What can go wrong between us and the daemon, in words that help.

use blockd_api::{ApiError, ErrorCode};
use hyper::StatusCode;
use std::{io, path::Path, time::Duration};

/// Nobody answers on the socket.
pub fn unreachable(socket: &Path, error: &io::Error) -> ApiError {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        io::ErrorKind::ConnectionRefused => "nobody answers on it".to_owned(),
        io::ErrorKind::PermissionDenied => "it is not ours to open".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "nobody takes the connection".to_owned(),
        _ => error.to_string(),
    };
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "be root or a member of the socket's group",
        _ => "start blockd, or name its socket with --admin PATH or $TERN_ADMIN",
    };
    ApiError::new(ErrorCode::Unavailable, format!("cannot reach blockd at {}: {why}", socket.display())).with_hint(hint)
}

/// No answer in time.
pub fn late(socket: &Path, limit: Duration) -> ApiError {
    let message = format!("blockd at {} was silent for {} s", socket.display(), limit.as_secs());
    ApiError::new(ErrorCode::Timeout, message).with_hint("it may still be at it: look at its log and at `tern status`")
}

/// The connection ended before the answer did.
pub fn broken_off() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "blockd went away before the operation ended")
        .with_hint("look at its log, then at `tern status`, whether it was done")
}

/// The connection failed.
pub fn broken_up(error: &(dyn std::error::Error + 'static)) -> ApiError {
    let mut message = format!("the connection to blockd failed: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    ApiError::new(ErrorCode::Unavailable, message).with_hint("look at its log, then at `tern status`")
}

/// Whoever answered does not speak our language.
pub fn not_a_daemon(socket: &Path, status: StatusCode) -> ApiError {
    let message = format!("whoever answers on {} is no blockd that this tern knows (HTTP {status})", socket.display());
    ApiError::new(ErrorCode::Unavailable, message).with_hint("check --admin and both versions")
}
