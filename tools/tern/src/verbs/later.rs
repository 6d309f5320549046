//! What the command line knows and this version does not have.

use blockd_api::{ApiError, ErrorCode};

/// The refusal.
pub fn not_yet(what: &str) -> ApiError {
    ApiError::new(ErrorCode::NotSupported, format!("{what} is not in version {} yet", env!("CARGO_PKG_VERSION")))
        .with_hint("see the changelog of newer versions")
}
