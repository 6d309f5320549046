//! What the client sends during the handshake, through a buffer that transmission goes on with.

use super::or_hang_up;
use crate::nbd::STALL_TIMEOUT;
use std::ops::Range;
use std::rc::Rc;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::UnixStream;

/// The largest thing that is wanted at once is an option's data.
const BUFFER_BYTES: usize = 128 << 10;

/// Why there is no more input.
#[derive(Debug, thiserror::Error)]
pub(in crate::nbd) enum InputError {
    /// Half-sent.
    #[error("the client vanished in the middle of what it sent")]
    Vanished,
    /// Half-sent, too.
    #[error("the client stopped in the middle of what it sent")]
    Stalled,
}

/// See the module's documentation.
pub(super) struct Input {
    stream: Rc<UnixStream>,
    /// Of this, `filled` was received and not used yet.
    buffer: Vec<u8>,
    filled: Range<usize>,
}

/// Whether the client may say nothing.
#[derive(Clone, Copy)]
enum Silence {
    /// It has nothing to ask for.
    Allowed,
    /// It has begun to send something.
    Limited,
}

impl Input {
    pub(super) fn new(stream: Rc<UnixStream>) -> Self {
        Self { stream, buffer: vec![0; BUFFER_BYTES], filled: 0..0 }
    }

    /// Has at least `wanted_bytes` to take; `false` if the client has left before the first of them.
    pub(super) async fn fill(&mut self, wanted_bytes: usize) -> Result<bool, InputError> {
        assert!(wanted_bytes <= BUFFER_BYTES, "nothing that is wanted at once is larger than the buffer");
        if wanted_bytes > 0 && self.filled.is_empty() {
            match self.refill(wanted_bytes, Silence::Allowed).await {
                Err(InputError::Vanished) => return Ok(false),
                received => received?,
            }
        }
        self.need(wanted_bytes).await?;
        Ok(true)
    }

    /// Takes what [`Self::fill`] made sure of.
    pub(super) fn take(&mut self, len_bytes: usize) -> &[u8] {
        let start = self.filled.start;
        assert!(len_bytes <= self.filled.len(), "filled before");
        self.filled.start += len_bytes;
        &self.buffer[start..start + len_bytes]
    }

    /// Whether something was received that nobody asked for yet.
    pub(super) fn has_more(&self) -> bool {
        !self.filled.is_empty()
    }

    /// The buffer, and what of it was received and not taken.
    pub(super) fn into_parts(self) -> (Vec<u8>, Range<usize>) {
        (self.buffer, self.filled)
    }

    /// As [`Self::fill`], in the middle of something: an end is always too early.
    async fn need(&mut self, wanted_bytes: usize) -> Result<(), InputError> {
        while self.filled.len() < wanted_bytes {
            self.refill(wanted_bytes, Silence::Limited).await?;
        }
        Ok(())
    }

    /// Receives more into the buffer, which has room for `wanted_bytes` in all.
    async fn refill(&mut self, wanted_bytes: usize, silence: Silence) -> Result<(), InputError> {
        if self.filled.is_empty() {
            self.filled = 0..0;
        } else if self.filled.start + wanted_bytes > BUFFER_BYTES {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        let bytes = std::mem::take(&mut self.buffer);
        let received;
        (received, self.buffer) = self.receive_some(bytes, self.filled.end..BUFFER_BYTES, silence).await;
        self.filled.end += received?;
        Ok(())
    }

    /// One receive into a part of `bytes`, which come back.
    async fn receive_some(&self, bytes: Vec<u8>, part: Range<usize>, silence: Silence) -> (Result<usize, InputError>, Vec<u8>) {
        let mut back = Vec::new();
        let receive = async {
            let (result, slice) = self.stream.read(bytes.slice(part)).await;
            back = slice.into_inner();
            result
        };
        let result = match silence {
            Silence::Allowed => Some(receive.await),
            Silence::Limited => or_hang_up(&self.stream, STALL_TIMEOUT, receive).await,
        };
        let received = match result {
            None => Err(InputError::Stalled),
            Some(Ok(len)) if len > 0 => Ok(len),
            // The client is gone: an end of file, a reset, it makes no difference.
            Some(_) => Err(InputError::Vanished),
        };
        (received, back)
    }
}
