//! Errors as documents: a code for programs, one line for people, and the cure.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What kind of failure it is: enough for a script to decide what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request itself is wrong: a value out of range, a field unknown.
    InvalidRequest,
    /// No such volume, site, export or route.
    NotFound,
    /// The name, path or address is taken.
    AlreadyExists,
    /// The volume's role or state does not allow it now.
    WrongState,
    /// Another operation on the same volume is under way.
    Busy,
    /// It would lose data; the hint names the flag that accepts it.
    WouldLoseData,
    /// A client is active at the primary; the message names it.
    ClientActive,
    /// A token is malformed, expired or used, or a key is not the pinned one.
    NotTrusted,
    /// The other site does not answer.
    PeerUnreachable,
    /// It did not happen in time.
    Timeout,
    /// A file system, journal or spill is full.
    NoSpace,
    /// A file, a device or a socket failed.
    Io,
    /// This version does not have it.
    NotSupported,
    /// The daemon does not answer, is stopping or has too many clients.
    Unavailable,
    /// Somebody stopped the operation.
    Interrupted,
    /// A fault of the daemon's own; also what a client makes of a code that it does not know.
    #[serde(other)]
    Internal,
}

/// How `tern` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Done = 0,
    /// The operation failed.
    Failed = 1,
    /// The command line was wrong.
    Usage = 2,
    /// It did not happen in time.
    TimedOut = 3,
    /// Refused because it would lose data.
    Refused = 4,
}

impl ErrorCode {
    /// The exit code of a program that ends with this error.
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::InvalidRequest => ExitCode::Usage,
            Self::Timeout => ExitCode::TimedOut,
            Self::WouldLoseData | Self::ClientActive => ExitCode::Refused,
            _ => ExitCode::Failed,
        }
    }

    /// The HTTP status that carries this error.
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::NotTrusted => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::WrongState | Self::Busy | Self::WouldLoseData | Self::ClientActive => 409,
            Self::Io | Self::Interrupted | Self::Internal => 500,
            Self::NotSupported => 501,
            Self::PeerUnreachable => 502,
            Self::Unavailable => 503,
            Self::Timeout => 504,
            Self::NoSpace => 507,
        }
    }
}

/// An error as it travels. Displayed, it is one line: what and why, then what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct ApiError {
    /// The kind.
    pub code: ErrorCode,
    /// What failed and why.
    pub message: String,
    /// What to do about it.
    #[serde(default)]
    pub hint: Option<String>,
}

impl ApiError {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same error with what to do about it.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_one_line(f, &self.message)?;
        if let Some(hint) = &self.hint {
            f.write_str("; ")?;
            write_one_line(f, hint)?;
        }
        Ok(())
    }
}

/// Writes `text` with every control character as a space: messages quote what others sent, and a terminal must not obey it.
fn write_one_line(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    use fmt::Write;
    text.trim().chars().try_for_each(|c| f.write_char(if c.is_control() { ' ' } else { c }))
}

/// `{"error":{…}}`: the whole document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDocument {
    /// The error.
    pub error: ApiError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_document_has_the_fields_of_the_contract() {
        let error = ApiError::new(ErrorCode::WouldLoseData, "vm1 has 3 blocks unsent").with_hint("--force accepts that");
        let json = serde_json::to_value(ErrorDocument { error }).unwrap();
        let expected =
            serde_json::json!({"error": {"code": "would-lose-data", "message": "vm1 has 3 blocks unsent", "hint": "--force accepts that"}});
        assert_eq!(json, expected);
    }

    #[test]
    fn a_code_from_a_newer_daemon_is_an_internal_error() {
        let error: ApiError = serde_json::from_str(r#"{"code":"moon-phase","message":"x"}"#).unwrap();
        assert_eq!(error, ApiError::new(ErrorCode::Internal, "x"));
    }

    #[test]
    fn an_error_is_one_line_whatever_it_quotes() {
        let error = ApiError::new(ErrorCode::Io, "a\nb\u{1b}[2J").with_hint("c\r\nd");
        assert_eq!(error.to_string(), "a b [2J; c  d");
    }

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let of = |code: ErrorCode| code.exit_code() as u8;
        assert_eq!([of(ErrorCode::NotFound), of(ErrorCode::InvalidRequest), of(ErrorCode::Timeout)], [1, 2, 3]);
        assert_eq!([of(ErrorCode::WouldLoseData), of(ErrorCode::ClientActive)], [4, 4]);
    }
}
