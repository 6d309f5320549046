//! One zstd stream over the messages of a connection: what was sent before is history for what follows.
//!
//! Each payload is a piece of the stream up to a flush: it decodes as it comes, in order. A stream may begin anew at any message.

use super::PayloadError;
use std::io;
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// How far back history goes, in powers of two: 2 MiB, which a stream costs the standby in memory, and the primary 7 MiB at level 7.
const WINDOW_LOG: u32 = 21;

/// The primary's side.
pub(super) struct Deflating {
    stream: Encoder<'static>,
    level: i32,
}

/// The standby's side.
pub(super) struct Inflating(Decoder<'static>);

impl Deflating {
    pub fn new(level: i32) -> io::Result<Self> {
        let mut stream = Encoder::new(level)?;
        stream.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
        Ok(Self { stream, level })
    }

    pub fn level(&self) -> i32 {
        self.level
    }

    /// The next piece.
    pub fn deflate(&mut self, content: &[u8]) -> io::Result<Vec<u8>> {
        let mut piece = Vec::with_capacity(zstd::zstd_safe::compress_bound(content.len()) + 64);
        let mut input = InBuffer::around(content);
        let mut out = OutBuffer::around(&mut piece);
        self.stream.run(&mut input, &mut out)?;
        let is_flushed = self.stream.flush(&mut out)? == 0;
        if input.pos() < content.len() || !is_flushed {
            return Err(io::Error::other("zstd needs more room than it says"));
        }
        Ok(piece)
    }
}

impl Inflating {
    pub fn new() -> io::Result<Self> {
        let mut stream = Decoder::new()?;
        stream.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Self(stream))
    }

    /// The content of the next piece, which fills `content`: no less, and no more.
    pub fn inflate(&mut self, piece: &[u8], content: &mut [u8]) -> Result<(), PayloadError> {
        let (mut input, len_bytes) = (InBuffer::around(piece), content.len());
        let filled = self.run(&mut input, content)?;
        // What is left may end the last block, and say nothing.
        let beyond = self.run(&mut input, &mut [0])?;
        if filled == len_bytes && beyond == 0 && input.pos() == piece.len() { Ok(()) } else { Err(PayloadError::Length) }
    }

    /// Decodes until `content` is full or all is read; how much came.
    fn run(&mut self, input: &mut InBuffer<'_>, content: &mut [u8]) -> Result<usize, PayloadError> {
        let mut out = OutBuffer::around(content);
        self.0.run(input, &mut out).map_err(|_| PayloadError::Length)?;
        Ok(out.pos())
    }
}
