//! The two halves of a stream, as frames: a little-endian `u32` length and that many bytes.
//!
//! A stream that ends between two frames has ended properly. A frame that is too long or cut short is an error of the protocol and closes
//! the connection; a half that is given up in the middle of a frame resets its stream instead, which the other side sees as
//! [`StreamError::GivenUp`].

use super::close::{CloseCode, Closed};
use bytes::{Bytes, BytesMut};
use quinn::{Connection, ReadError, RecvStream, SendStream, VarInt, WriteError};
use std::fmt;

/// Longest frame: four MiB of content and what describes it.
pub const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024 + 64 * 1024;

/// What one read takes at most.
const READ_BYTES: usize = 256 * 1024;

/// Why a stream was reset or stopped. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetCode {
    /// The side that did it has no further use for the stream.
    GivenUp = 0,
    /// It does not know the stream's kind.
    UnknownKind = 1,
    /// It has too much to do: worth trying again.
    Busy = 2,
}

/// Why a stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The connection ended.
    #[error("connection lost: {0}")]
    Closed(#[source] Closed),
    /// The other side gave the stream up with this [`ResetCode`]'s number.
    #[error("given up by the peer (code {0})")]
    GivenUp(u64),
    /// A frame is longer than it may be.
    #[error("a frame of {len_bytes} bytes is longer than {limit_bytes}")]
    TooLong {
        /// What the frame says it has.
        len_bytes: usize,
        /// What it may have.
        limit_bytes: usize,
    },
    /// The stream ended in the middle of a frame.
    #[error("the stream ended in the middle of a frame")]
    CutShort,
    /// The stream was finished or reset on this side before.
    #[error("the stream has ended on this side")]
    Ended,
}

/// The sending half. Dropped between two frames, it finishes the stream.
pub struct SendHalf {
    stream: SendStream,
    in_frame: bool,
}

impl SendHalf {
    pub(super) fn new(stream: SendStream) -> Self {
        Self { stream, in_frame: false }
    }

    /// Sends one frame; waits while the send window is full. Written is not delivered: the application acknowledges.
    ///
    /// Not safe to cancel: a frame that was begun and not ended resets the stream at the next use or at the drop.
    pub async fn send(&mut self, frame: Bytes) -> Result<(), StreamError> {
        if frame.len() > MAX_FRAME_BYTES {
            return Err(StreamError::TooLong { len_bytes: frame.len(), limit_bytes: MAX_FRAME_BYTES });
        }
        if self.in_frame {
            self.reset(ResetCode::GivenUp);
            return Err(StreamError::Ended);
        }
        self.in_frame = true;
        let len = Bytes::copy_from_slice(&(frame.len() as u32).to_le_bytes());
        self.stream.write_all_chunks(&mut [len, frame]).await?;
        self.in_frame = false;
        Ok(())
    }

    /// No more frames: the other side gets `None` after the last one.
    pub fn finish(&mut self) {
        // Fails only on a stream that has ended already.
        let _ = self.stream.finish();
    }

    /// Gives the stream up; what is not delivered yet never will be.
    pub fn reset(&mut self, code: ResetCode) {
        self.in_frame = false;
        let _ = self.stream.reset(VarInt::from_u32(code as u32));
    }

    /// Streams of higher priority are sent first; 0 is what a stream begins with.
    pub fn set_priority(&self, priority: i32) {
        let _ = self.stream.set_priority(priority);
    }

    /// Returns when the other side stopped reading, or has everything of a finished stream.
    pub async fn stopped(&self) -> Result<(), StreamError> {
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(StreamError::GivenUp(code.into_inner())),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(StreamError::Closed(error.into())),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(StreamError::Ended),
        }
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if self.in_frame {
            self.reset(ResetCode::GivenUp);
        }
    }
}

/// The receiving half. Dropped before the end, it tells the other side to stop.
pub struct RecvHalf {
    stream: RecvStream,
    connection: Connection,
    limit_bytes: usize,
    len_field: BytesMut,
    frame: Option<PartialFrame>,
}

struct PartialFrame {
    len_bytes: usize,
    content: BytesMut,
}

impl RecvHalf {
    pub(super) fn new(stream: RecvStream, connection: Connection) -> Self {
        Self { stream, connection, limit_bytes: MAX_FRAME_BYTES, len_field: BytesMut::new(), frame: None }
    }

    /// Frames longer than this are refused from now on.
    pub fn set_limit(&mut self, limit_bytes: usize) {
        self.limit_bytes = limit_bytes.min(MAX_FRAME_BYTES);
    }

    /// The next frame, or `None` once the other side finished. Safe to cancel: the next call goes on where this one was.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, StreamError> {
        while self.frame.is_none() {
            match self.stream.read_chunk(size_of::<u32>() - self.len_field.len(), true).await? {
                Some(chunk) => self.len_field.extend_from_slice(&chunk.bytes),
                None if self.len_field.is_empty() => return Ok(None),
                None => return Err(self.broken(StreamError::CutShort)),
            }
            if let Ok(len) = <[u8; 4]>::try_from(&self.len_field[..]) {
                self.begin_frame(u32::from_le_bytes(len) as usize)?;
            }
        }
        while let Some(frame) = &mut self.frame {
            let missing = frame.len_bytes - frame.content.len();
            if missing == 0 {
                break;
            }
            match self.stream.read_chunk(missing.min(READ_BYTES), true).await? {
                Some(chunk) => frame.content.extend_from_slice(&chunk.bytes),
                None => return Err(self.broken(StreamError::CutShort)),
            }
        }
        self.len_field.clear();
        Ok(self.frame.take().map(|frame| frame.content.freeze()))
    }

    /// Tells the other side that nobody reads on.
    pub fn stop(&mut self, code: ResetCode) {
        // Fails only on a stream that has ended already.
        let _ = self.stream.stop(VarInt::from_u32(code as u32));
    }

    fn begin_frame(&mut self, len_bytes: usize) -> Result<(), StreamError> {
        if len_bytes > self.limit_bytes {
            return Err(self.broken(StreamError::TooLong { len_bytes, limit_bytes: self.limit_bytes }));
        }
        self.frame = Some(PartialFrame { len_bytes, content: BytesMut::with_capacity(len_bytes) });
        Ok(())
    }

    fn broken(&self, error: StreamError) -> StreamError {
        self.connection.close(CloseCode::BadFrame.number(), error.to_string().as_bytes());
        error
    }
}

impl fmt::Debug for SendHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendHalf({})", self.stream.id())
    }
}

impl fmt::Debug for RecvHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvHalf({})", self.stream.id())
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::GivenUp(code.into_inner()),
            WriteError::ConnectionLost(error) => Self::Closed(error.into()),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Ended,
        }
    }
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::GivenUp(code.into_inner()),
            ReadError::ConnectionLost(error) => Self::Closed(error.into()),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => Self::Ended,
        }
    }
}
