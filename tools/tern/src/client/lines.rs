//! The lines of a body as they come.

use super::error::broken_up;
use blockd_api::{ApiError, ErrorCode, MAX_EVENT_BYTES};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};

/// Splits a body at newlines. A last line without one counts, too: plain error documents have none.
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// The lines of a body.
    pub fn new(body: Incoming) -> Self {
        Self { body, buffer: Vec::new(), ended: false }
    }

    /// The next line that is not empty; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            if let Some(line) = self.take_line() {
                if !line.is_empty() {
                    return Ok(Some(line));
                }
            } else if self.ended {
                return Ok(None);
            } else if self.buffer.len() > MAX_EVENT_BYTES {
                return Err(ApiError::new(ErrorCode::Unavailable, "blockd sent a line without end"));
            } else {
                self.read_more().await?;
            }
        }
    }

    fn take_line(&mut self) -> Option<Bytes> {
        let end = match self.buffer.iter().position(|byte| *byte == b'\n') {
            Some(newline) => newline + 1,
            None if self.ended && !self.buffer.is_empty() => self.buffer.len(),
            None => return None,
        };
        let mut line: Vec<u8> = self.buffer.drain(..end).collect();
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        Some(line.into())
    }

    async fn read_more(&mut self) -> Result<(), ApiError> {
        match self.body.frame().await {
            None => self.ended = true,
            Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            Some(Err(error)) => return Err(broken_up(&error)),
        }
        Ok(())
    }
}
