//! Why a connection ended. Every close carries a code and a text, so that both sides can tell their operators which check failed.

use quinn::{ConnectionError, VarInt};
use std::fmt;

/// Longest reason that is shown, in bytes; a peer can send more.
const MAX_REASON_BYTES: usize = 256;

/// The application's close codes. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// The side that closed has no further use for the connection.
    Done = 0,
    /// The daemon is stopping.
    Stopping = 1,
    /// The key that was presented belongs to no known peer.
    UnknownKey = 2,
    /// No protocol version is common to both.
    NoCommonVersion = 3,
    /// The first message was not a hello.
    BadHello = 4,
    /// A stream carried a frame that is too long, cut short or not understood.
    BadFrame = 5,
    /// The operator removed the peer.
    PeerRemoved = 6,
    /// A newer connection to the same peer takes over.
    Superseded = 7,
    /// No invitation is open.
    NotInvited = 8,
    /// Too many connections or attempts at once: worth trying again.
    Busy = 9,
    /// The other side did not do the next step in time.
    Deadline = 10,
    /// Something failed at the side that closed; its log says what.
    Internal = 11,
}

impl CloseCode {
    const ALL: [Self; 12] = [
        Self::Done,
        Self::Stopping,
        Self::UnknownKey,
        Self::NoCommonVersion,
        Self::BadHello,
        Self::BadFrame,
        Self::PeerRemoved,
        Self::Superseded,
        Self::NotInvited,
        Self::Busy,
        Self::Deadline,
        Self::Internal,
    ];

    /// The code that the number stands for, if this version knows it.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u64 == number)
    }

    pub(crate) fn number(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "closed",
            Self::Stopping => "the site is stopping",
            Self::UnknownKey => "unknown key",
            Self::NoCommonVersion => "no common protocol version",
            Self::BadHello => "bad hello",
            Self::BadFrame => "bad frame",
            Self::PeerRemoved => "the peer was removed",
            Self::Superseded => "a newer connection takes over",
            Self::NotInvited => "no invitation is open",
            Self::Busy => "busy",
            Self::Deadline => "too slow",
            Self::Internal => "internal failure",
        })
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// This side closed it.
    #[error("closed by this site")]
    Here,
    /// The other side closed it.
    #[error("closed by the peer: {}", described(*code, reason))]
    ByPeer {
        /// Why, as far as this version knows the number.
        code: Option<CloseCode>,
        /// What the peer said about it.
        reason: String,
    },
    /// Nothing was heard of the other side for the idle timeout.
    #[error("nothing heard from the peer for too long")]
    Silent,
    /// The other side restarted and does not know the connection.
    #[error("the peer restarted")]
    Reset,
    /// TLS or QUIC failed, with what was said about it.
    #[error("{0}")]
    Broken(String),
}

impl Closed {
    /// The peer's close code, if it closed with one that this version knows.
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::ByPeer { code, .. } => *code,
            _ => None,
        }
    }
}

impl From<ConnectionError> for Closed {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::LocallyClosed => Self::Here,
            ConnectionError::TimedOut => Self::Silent,
            ConnectionError::Reset => Self::Reset,
            ConnectionError::ApplicationClosed(close) => {
                Self::ByPeer { code: CloseCode::from_number(close.error_code.into_inner()), reason: printable(&close.reason) }
            }
            // What TLS refused at the other side comes as a transport close whose reason says which check failed.
            ConnectionError::ConnectionClosed(close) if !close.reason.is_empty() => {
                Self::Broken(format!("the peer refused the connection: {}", printable(&close.reason)))
            }
            ConnectionError::ConnectionClosed(close) => Self::Broken(format!("the peer refused the connection: {}", close.error_code)),
            ConnectionError::TransportError(error) if !error.reason.is_empty() => Self::Broken(error.reason),
            other => Self::Broken(other.to_string()),
        }
    }
}

fn described(code: Option<CloseCode>, reason: &str) -> String {
    match (code, reason.is_empty()) {
        (Some(code), true) => code.to_string(),
        (Some(code), false) => format!("{code}: {reason}"),
        (None, true) => "for a reason that this version does not know".to_owned(),
        (None, false) => reason.to_owned(),
    }
}

/// What a peer wrote, fit for a log line.
fn printable(reason: &[u8]) -> String {
    let text = String::from_utf8_lossy(&reason[..reason.len().min(MAX_REASON_BYTES)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_codes_match() {
        for (number, code) in CloseCode::ALL.into_iter().enumerate() {
            assert_eq!(CloseCode::from_number(number as u64), Some(code));
        }
        assert_eq!(CloseCode::from_number(CloseCode::ALL.len() as u64), None);
    }

    #[test]
    fn a_peers_words_cannot_forge_log_lines() {
        assert_eq!(printable(b"a\nb\x1b[0m"), "a b [0m");
        assert!(printable(&[b'x'; 10_000]).len() <= MAX_REASON_BYTES);
    }
}
