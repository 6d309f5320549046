//! The channel on which a device tells its front end that the volume has grown.
//!
//! The message that hands it over is the one that we read ourselves: what the crate makes of it cannot send this notice.

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use vhost::vhost_user::message::{BackendReq, FrontendReq, MAX_ATTACHED_FD_ENTRIES};

/// A message's header: request, flags, size of what follows; each 32 bits in the host's order.
const HEADER_BYTES: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct NoticeChannel(Mutex<Option<OwnedFd>>);

/// What comes next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The channel.
    Channel,
    /// A message with more descriptors than any has. The crate would drop its header and take the rest for the next one.
    Surplus,
    /// Something else, or the end.
    Other,
}

impl NoticeChannel {
    /// Tells that the configuration has changed. A front end that has not read the last notices will read what is true then.
    pub(super) fn config_changed(&self) {
        let notice = header(BackendReq::CONFIG_CHANGE_MSG.into(), VERSION, 0);
        if let Some(channel) = &*self.lock() {
            let _ = send(channel, &notice, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }

    /// Looks at the next message, and waits for it.
    pub(super) fn peek(connection: &UnixStream) -> Next {
        let mut code = [0; 4];
        // To look at a message copies its descriptors. Counted, they are closed again.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES + 1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::WAITALL | RecvFlags::CMSG_CLOEXEC;
        let peeked = recvmsg(connection, &mut [IoSliceMut::new(&mut code)], &mut ancillary, flags);
        let is_channel =
            peeked.is_ok_and(|peeked| peeked.bytes == 4) && u32::from_ne_bytes(code) == u32::from(FrontendReq::SET_BACKEND_REQ_FD);
        match files(&mut ancillary).count() {
            count if count > MAX_ATTACHED_FD_ENTRIES => Next::Surplus,
            _ if is_channel => Next::Channel,
            _ => Next::Other,
        }
    }

    /// Receives the message that is [`Next::Channel`] and answers it.
    pub(super) fn receive(&self, connection: &UnixStream) -> io::Result<()> {
        let mut bytes = [0; HEADER_BYTES];
        // One more than there should be: it is closed, like any other.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        let received = recvmsg(connection, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
        let mut files = files(&mut ancillary);
        let (file, surplus) = (files.next(), files.next());
        let [_, flags, size] = words(bytes);
        let well_formed = received.bytes == HEADER_BYTES && size == 0 && surplus.is_none() && flags & !NEED_REPLY == VERSION;
        let Some(file) = file.filter(|_| well_formed) else { return Err(io::ErrorKind::InvalidData.into()) };
        *self.lock() = Some(file);
        if flags & NEED_REPLY != 0 {
            let answer = [&header(FrontendReq::SET_BACKEND_REQ_FD.into(), VERSION | REPLY, 8)[..], &0_u64.to_ne_bytes()].concat();
            send(connection, &answer, SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn files(ancillary: &mut RecvAncillaryBuffer<'_>) -> impl Iterator<Item = OwnedFd> {
    ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => files.collect::<Vec<_>>(),
        _ => Vec::new(),
    })
}

fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip([request, flags, size]) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn words(bytes: [u8; HEADER_BYTES]) -> [u32; 3] {
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [word(0), word(4), word(8)]
}
