//! A front end's messages byte by byte, right or wrong, each with as many descriptors as it likes. The fuzz targets use it, too.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Messages, by the numbers of the vhost-user specification.
pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const ADD_MEM_REG: u32 = 37;

/// The version that every message carries in its flags.
pub const VERSION: u32 = 1;
/// Flag: say whether it was done.
pub const NEED_REPLY: u32 = 1 << 3;

/// Most descriptors that a test sends with one message; the kernel takes 253.
pub const MAX_DESCRIPTORS: usize = 64;
/// Longest answer that anybody should get.
const MAX_ANSWER_BYTES: usize = 4096;
/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A front end's end of a connection.
pub struct Wire(pub UnixStream);

impl Wire {
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Sends a message whose header says the truth about its body.
    pub fn send(&self, request: u32, flags: u32, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let len_bytes = u32::try_from(body.len()).map_err(io::Error::other)?;
        let header = [request, flags, len_bytes].map(u32::to_ne_bytes).concat();
        self.send_bytes(&[&header, body].concat(), descriptors)
    }

    /// Sends anything.
    pub fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut left = bytes;
        let mut sent = sendmsg(&self.0, &[IoSlice::new(left)], &mut control, SendFlags::NOSIGNAL)?;
        while sent < left.len() {
            left = &left[sent..];
            sent = sendmsg(&self.0, &[IoSlice::new(left)], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    /// The next answer: which message it belongs to, and its body. Descriptors that come with it are closed.
    pub fn receive(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let mut header = [0; 12];
        self.0.read_exact(&mut header)?;
        let field = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let len_bytes = field(8) as usize;
        assert!(len_bytes <= MAX_ANSWER_BYTES, "an answer of {len_bytes} bytes");
        let mut body = vec![0; len_bytes];
        self.0.read_exact(&mut body)?;
        Ok((field(0), body))
    }

    /// The number that a message is answered with.
    pub fn ask(&mut self, request: u32) -> io::Result<u64> {
        self.send(request, VERSION, &[], &[])?;
        let (answered, body) = self.receive()?;
        assert_eq!(answered, request);
        body.first_chunk().map(|number| u64::from_ne_bytes(*number)).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Sends a message and returns whether it was done: an error in the answer and the end of the connection both say no.
    pub fn is_done(&mut self, request: u32, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> bool {
        let answer = self.send(request, VERSION | NEED_REPLY, body, descriptors).and_then(|()| self.receive());
        match answer {
            Ok((_, body)) => body.iter().all(|byte| *byte == 0),
            Err(error) => {
                assert!(error.kind() != io::ErrorKind::WouldBlock, "an answer or the end, in time");
                false
            }
        }
    }

    /// Takes all features that are offered.
    pub fn negotiate(&mut self) -> io::Result<()> {
        self.send(SET_OWNER, VERSION, &[], &[])?;
        let features = self.ask(GET_FEATURES)?;
        self.send(SET_FEATURES, VERSION, &features.to_ne_bytes(), &[])?;
        let protocol = self.ask(GET_PROTOCOL_FEATURES)?;
        self.send(SET_PROTOCOL_FEATURES, VERSION, &protocol.to_ne_bytes(), &[])
    }
}

/// The body of most messages: numbers one after the other.
pub fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.map(u64::to_ne_bytes).concat()
}

/// The body of a message about one ring.
pub fn ring(index: u32, value: u32) -> Vec<u8> {
    [index, value].map(u32::to_ne_bytes).concat()
}
