//! Long operations answer with a stream of events, one JSON document a line:
//!
//! ```text
//! {"progress":{"phase":"compare","done":4096,"total":1048576,"unit":"bytes"}}     any number, done never falls within a phase
//! {"result":{…}}  or  {"error":{…}}                                               exactly one, the last line
//! ```
//!
//! The last progress is repeated every [`HEARTBEAT`], so that a client can tell a slow operation from a dead daemon. A stream that
//! ends without its last line broke off: the operation may or may not have been done.

use crate::ApiError;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Longest silence of a stream.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// Longest line that a client needs to accept.
pub const MAX_EVENT_BYTES: usize = 1 << 20;

/// A line of the stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event<T> {
    /// The operation goes on.
    Progress(Progress),
    /// It is done.
    Result(T),
    /// It failed.
    Error(ApiError),
}

/// How far an operation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it does now, as a word or two: `compare`, `final cut`.
    pub phase: String,
    /// How much of the phase is done.
    pub done: u64,
    /// How much the phase is; `null` where it cannot be known.
    pub total: Option<u64>,
    /// What is counted.
    pub unit: Unit,
}

/// What a progress counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Blocks of 4 KiB.
    Blocks,
    /// Steps of the phase.
    #[serde(other)]
    Steps,
}

impl Progress {
    /// A progress in bytes.
    pub fn bytes(phase: &str, done: u64, total: Option<u64>) -> Self {
        Self { phase: phase.to_owned(), done, total, unit: Unit::Bytes }
    }

    /// A progress in blocks.
    pub fn blocks(phase: &str, done: u64, total: Option<u64>) -> Self {
        Self { phase: phase.to_owned(), done, total, unit: Unit::Blocks }
    }

    /// A phase of unknown length.
    pub fn phase(phase: &str) -> Self {
        Self { phase: phase.to_owned(), done: 0, total: None, unit: Unit::Steps }
    }
}

impl<T: Serialize> Event<T> {
    /// The event as a line, newline included.
    pub fn to_line(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;

    #[test]
    fn events_have_the_shape_of_the_contract() {
        let progress = Event::<()>::Progress(Progress::bytes("compare", 1, Some(2)));
        assert_eq!(progress.to_line().unwrap(), b"{\"progress\":{\"phase\":\"compare\",\"done\":1,\"total\":2,\"unit\":\"bytes\"}}\n");
        assert_eq!(Event::Result(7).to_line().unwrap(), b"{\"result\":7}\n");
        let error = Event::<()>::Error(ApiError::new(ErrorCode::Timeout, "late"));
        assert_eq!(error.to_line().unwrap(), b"{\"error\":{\"code\":\"timeout\",\"message\":\"late\",\"hint\":null}}\n");
    }

    #[test]
    fn text_with_newlines_stays_one_line() {
        let line = Event::<()>::Error(ApiError::new(ErrorCode::Io, "a\nb")).to_line().unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
