//! Transfers between guest memory and an image by io_uring.
//!
//! A [`Ring`] owns everything that the kernel works on, from submission to completion: the vectors, the bounce buffer or the mapping of guest
//! memory, and the image's descriptor. It is not dropped before the kernel is done. All unsafe code of the front end is here.

use super::chain::Segment;
use crate::store::{AlignedBuf, Image};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use vhost::vhost_user::Listener;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

/// Submissions that a ring collects before it tells the kernel.
const SUBMISSIONS: u32 = 256;
/// Most pieces of memory in one transfer: the kernel's `UIO_MAXIOV`.
const MAX_VECTORS: usize = 1024;

/// What a transfer reads into or writes from.
enum Memory {
    /// The guest's own. The vectors point into this mapping, which stays as long as anybody holds it, whatever the front end maps anew.
    Guest { _mapping: Arc<GuestMemoryMmap> },
    /// A buffer whose data is copied.
    Bounce(AlignedBuf),
}

/// Memory and a place on the disk.
pub(super) struct Transfer {
    memory: Memory,
    vectors: Vec<libc::iovec>,
    /// Those before it are done.
    first: usize,
    offset: u64,
    left_bytes: u64,
}

// SAFETY: the pointers in `vectors` lead into `memory`, which may be used from any thread and is owned by the same value.
unsafe impl Send for Transfer {}

/// What a ring is asked to do.
pub(super) enum Work {
    /// Read from the image.
    Read(Transfer),
    /// Write to it.
    Write(Transfer),
    /// Make it durable.
    Sync,
}

/// The address or length of a segment is not the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutsideMemory;

impl Transfer {
    /// A transfer without a copy; `Ok(None)` if direct I/O could not take the segments as they are.
    pub(super) fn direct(
        mapping: &Arc<GuestMemoryMmap>,
        segments: &[Segment],
        offset: u64,
        align_bytes: u64,
    ) -> Result<Option<Self>, OutsideMemory> {
        let mut vectors = Vec::with_capacity(segments.len());
        let (mut aligned, mut left_bytes) = (true, 0);
        for segment in segments {
            for slice in mapping.get_slices(segment.address, segment.len_bytes as usize) {
                let slice = slice.map_err(|_| OutsideMemory)?;
                let base = slice.ptr_guard_mut().as_ptr();
                aligned &= (base as u64 | slice.len() as u64).is_multiple_of(align_bytes);
                left_bytes += slice.len() as u64;
                vectors.push(libc::iovec { iov_base: base.cast(), iov_len: slice.len() });
            }
        }
        if !aligned || vectors.len() > MAX_VECTORS {
            return Ok(None);
        }
        let memory = Memory::Guest { _mapping: mapping.clone() };
        Ok(Some(Self { memory, vectors, first: 0, offset, left_bytes }))
    }

    /// A transfer of a whole buffer.
    pub(super) fn bounce(mut buf: AlignedBuf, offset: u64) -> Self {
        let left_bytes = buf.len() as u64;
        let vectors = vec![libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() }];
        Self { memory: Memory::Bounce(buf), vectors, first: 0, offset, left_bytes }
    }

    /// The buffer of [`Self::bounce`].
    pub(super) fn into_buf(self) -> Option<AlignedBuf> {
        match self.memory {
            Memory::Guest { .. } => None,
            Memory::Bounce(buf) => Some(buf),
        }
    }

    /// The kernel moved `bytes` of what was left.
    fn advance(&mut self, mut bytes: u64) {
        self.offset += bytes;
        self.left_bytes = self.left_bytes.saturating_sub(bytes);
        while let Some(vector) = self.vectors.get_mut(self.first)
            && bytes > 0
        {
            let part = bytes.min(vector.iov_len as u64);
            vector.iov_base = vector.iov_base.wrapping_byte_add(part as usize);
            vector.iov_len -= part as usize;
            bytes -= part;
            self.first += usize::from(vector.iov_len == 0);
        }
    }
}

impl Work {
    fn transfer(&mut self) -> Option<&mut Transfer> {
        match self {
            Self::Read(transfer) | Self::Write(transfer) => Some(transfer),
            Self::Sync => None,
        }
    }

    /// Looks at what the kernel returned. `None`: it is not all done yet.
    fn judge(&mut self, result: i32) -> Option<io::Result<()>> {
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            let again = matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock);
            return (!again).then_some(Err(error));
        }
        let Some(transfer) = self.transfer() else { return Some(Ok(())) };
        transfer.advance(result as u64);
        match (transfer.left_bytes, result) {
            (0, _) => Some(Ok(())),
            (_, 0) => Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image has shrunk behind our back"))),
            _ => None,
        }
    }
}

struct Slot {
    tag: usize,
    work: Work,
}

/// A finished [`Work`], under the tag that it was started with.
pub(super) struct Finished {
    pub(super) tag: usize,
    pub(super) work: Work,
    pub(super) result: io::Result<()>,
}

/// See the module's documentation.
pub(super) struct Ring {
    ring: IoUring,
    /// By the submission's user data. A slot is free again when its completion was seen.
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Keeps the registered descriptor's lock and size.
    _image: Image,
}

impl Ring {
    /// A ring with room for `max_in_flight` works.
    pub(super) fn new(image: Image, max_in_flight: usize) -> io::Result<Self> {
        let completions = u32::try_from(max_in_flight).map_err(io::Error::other)?.max(2 * SUBMISSIONS);
        let ring: IoUring = IoUring::builder().dontfork().setup_cqsize(completions).build(SUBMISSIONS)?;
        ring.submitter().register_files(&[image.as_raw_fd()])?;
        Ok(Self { ring, slots: Vec::new(), free: Vec::new(), _image: image })
    }

    /// Works that were started and have not been reaped.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a work to the batch. [`Self::submit`] starts it, if it did not start before.
    pub(super) fn start(&mut self, tag: usize, work: Work) -> io::Result<()> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(Slot { tag, work });
        self.push(slot).inspect_err(|_| {
            self.slots[slot] = None;
            self.free.push(slot);
        })
    }

    /// Tells the kernel of all that was started.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        loop {
            match self.ring.submit() {
                Ok(_) if self.ring.submission().is_empty() => return Ok(()),
                Ok(0) => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next finished work. What the kernel did in part is started anew, for [`Self::submit`].
    pub(super) fn reap(&mut self) -> Option<Finished> {
        loop {
            let completion = self.ring.completion().next()?;
            let Some((index, result)) = self.judge(&completion) else { continue };
            let slot = self.slots[index].take()?;
            self.free.push(index);
            return Some(Finished { tag: slot.tag, work: slot.work, result });
        }
    }

    fn judge(&mut self, completion: &cqueue::Entry) -> Option<(usize, io::Result<()>)> {
        let index = completion.user_data() as usize;
        match self.slots.get_mut(index)?.as_mut()?.work.judge(completion.result()) {
            Some(result) => Some((index, result)),
            None => self.push(index).err().map(|error| (index, Err(error))),
        }
    }

    fn push(&mut self, index: usize) -> io::Result<()> {
        let Some(slot) = &mut self.slots[index] else { return Err(io::ErrorKind::NotFound.into()) };
        let image = types::Fixed(0);
        let entry = match &mut slot.work {
            Work::Read(transfer) => {
                let (vectors, offset) = (&transfer.vectors[transfer.first..], transfer.offset);
                opcode::Readv::new(image, vectors.as_ptr(), vectors.len() as u32).offset(offset).build()
            }
            Work::Write(transfer) => {
                let (vectors, offset) = (&transfer.vectors[transfer.first..], transfer.offset);
                opcode::Writev::new(image, vectors.as_ptr(), vectors.len() as u32).offset(offset).build()
            }
            Work::Sync => opcode::Fsync::new(image).flags(types::FsyncFlags::DATASYNC).build(),
        };
        let entry = entry.user_data(index as u64);
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        self.queue(&entry)
    }

    fn queue(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the entry's vectors and what they point to belong to the slot that its user data names. The slot is emptied only when
        // the completion was seen, or right away if the entry did not get into the queue; `drop` waits for the rest. Moving the slot
        // moves neither: vectors, buffers and mappings live on the heap or in mappings of their own.
        let queued = unsafe { self.ring.submission().push(entry) };
        queued.map_err(|_| io::ErrorKind::WouldBlock.into())
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open as long as the ring is, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl AsRawFd for Ring {
    /// Is readable while there is something to reap.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "vhost-user: a ring cannot be drained: its buffers are leaked");
                    std::mem::forget(std::mem::take(&mut self.slots));
                    return;
                }
            }
            let done: Vec<_> = self.ring.completion().map(|completion| completion.user_data() as usize).collect();
            for index in done {
                if self.slots.get_mut(index).and_then(Option::take).is_some() {
                    self.free.push(index);
                }
            }
        }
    }
}

/// The descriptors that end the crate's threads.
///
/// The crate turns each consumer into a bare descriptor and never closes it: a client that comes and goes would use up all that there are.
#[derive(Default)]
pub(super) struct ExitEvents(Mutex<Vec<RawFd>>);

impl ExitEvents {
    /// A pair for one thread.
    pub(super) fn make(&self) -> io::Result<(EventConsumer, EventNotifier)> {
        let pair = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(pair.0.as_raw_fd());
        Ok(pair)
    }

    /// Closes the consumers. The threads are gone.
    pub(super) fn close(&self) {
        for fd in std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)) {
            // SAFETY: the descriptor came from a consumer that was handed to the crate, which released it from its owner
            // (`VringEpollHandler::new` of vhost-user-backend 0.24) and has no other use for it than its thread's epoll.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

/// The descriptor of something that lends only its number.
pub(super) fn borrow(owner: &Listener) -> BorrowedFd<'_> {
    // SAFETY: the listener owns its descriptor and is borrowed as long as the result.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}
