//! Transfers between guest memory and an image by io_uring, and everything else that a worker waits for.
//!
//! A [`Ring`] owns everything that the kernel works on, from submission to completion: the vectors, the bounce buffer or the mapping of guest
//! memory, and the image's descriptor. It is not dropped before the kernel is done. One thread makes it, uses it and drops it, so the kernel
//! needs no lock for it and does its part of a completion when that thread asks. All unsafe code of the front end is here.

use super::chain::Segment;
use crate::store::{AlignedBuf, Image};
use io_uring::{Builder, EnterFlags, IoUring, cqueue, opcode, squeue, types};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

/// Room for submissions.
const SUBMISSIONS: u32 = 256;
/// Works that are collected before the kernel is told: few, so that the disk begins while the others are prepared.
const BATCH: usize = 4;
/// Most pieces of memory in one transfer: the kernel's `UIO_MAXIOV`.
const MAX_VECTORS: usize = 1024;
/// Lists of vectors that are kept for later, and their length at most.
const MAX_SPARE: usize = 256;
/// In the user data of what is not a transfer: a descriptor is watched.
const WATCH: u64 = 1 << 63;
/// The user data of what nobody waits for.
const NOBODY: u64 = u64::MAX;

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
    vectors: Vectors,
    /// Those before it are done.
    first: usize,
    offset: u64,
    left_bytes: u64,
}

/// What a ring is asked to do.
pub(super) enum Work {
    /// Read from the image.
    Read(Transfer),
    /// Write to it.
    Write(Transfer),
    /// Make it durable.
    Sync,
}

/// Room for the places of a transfer, used again and again.
#[derive(Default)]
pub(super) struct Vectors(Vec<libc::iovec>);

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
        mut vectors: Vectors,
    ) -> Result<Option<Self>, OutsideMemory> {
        let (mut aligned, mut left_bytes) = (true, 0);
        for segment in segments {
            for slice in mapping.get_slices(segment.address, segment.len_bytes as usize) {
                let slice = slice.map_err(|_| OutsideMemory)?;
                let base = slice.ptr_guard_mut().as_ptr();
                aligned &= (base as u64 | slice.len() as u64).is_multiple_of(align_bytes);
                left_bytes += slice.len() as u64;
                vectors.0.push(libc::iovec { iov_base: base.cast(), iov_len: slice.len() });
            }
        }
        if !aligned || vectors.0.len() > MAX_VECTORS {
            return Ok(None);
        }
        let memory = Memory::Guest { _mapping: mapping.clone() };
        Ok(Some(Self { memory, vectors, first: 0, offset, left_bytes }))
    }

    /// A transfer of a whole buffer.
    pub(super) fn bounce(mut buf: AlignedBuf, offset: u64) -> Self {
        let left_bytes = buf.len() as u64;
        let vectors = Vectors(vec![libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() }]);
        Self { memory: Memory::Bounce(buf), vectors, first: 0, offset, left_bytes }
    }

    /// Takes it apart: room for another one, and the buffer of [`Self::bounce`].
    pub(super) fn into_parts(self) -> (Vectors, Option<AlignedBuf>) {
        match self.memory {
            Memory::Guest { .. } => (self.vectors, None),
            Memory::Bounce(buf) => (self.vectors, Some(buf)),
        }
    }

    /// What is left to do.
    fn rest(&self) -> &[libc::iovec] {
        &self.vectors.0[self.first..]
    }

    /// The kernel moved `bytes` of what was left.
    fn advance(&mut self, mut bytes: u64) {
        self.offset += bytes;
        self.left_bytes = self.left_bytes.saturating_sub(bytes);
        while let Some(vector) = self.vectors.0.get_mut(self.first)
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

    /// Asks the kernel to do all of it now; returns what a ring would report.
    fn attempt(&mut self, image: RawFd) -> i32 {
        let vectors = |transfer: &Transfer| (transfer.rest().as_ptr(), transfer.rest().len() as i32, transfer.offset as i64);
        // SAFETY: the transfer owns its vectors and holds what they point to, and the kernel is done with them when it returns. Whoever else
        // has the guest's memory mapped may write to it meanwhile, as for any device: nobody here holds a reference into it.
        let done = unsafe {
            match self {
                Self::Read(transfer) => {
                    let (first, count, offset) = vectors(transfer);
                    libc::preadv(image, first, count, offset)
                }
                Self::Write(transfer) => {
                    let (first, count, offset) = vectors(transfer);
                    libc::pwritev(image, first, count, offset)
                }
                Self::Sync => libc::fdatasync(image) as isize,
            }
        };
        if done < 0 { -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { done as i32 }
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

/// What a ring reports.
pub(super) enum Completion {
    /// A work is done.
    Finished(Finished),
    /// The descriptor that is watched under this token was made readable.
    Readable(u64),
    /// The descriptor under this token is not watched any more.
    Unwatched(u64),
}

/// See the module's documentation.
pub(super) struct Ring {
    ring: IoUring,
    /// By the submission's user data. A slot is free again when its completion was seen.
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    spare: Vec<Vectors>,
    image: Image,
}

impl Ring {
    /// A ring with room for `max_in_flight` works, for this thread only.
    pub(super) fn new(image: Image, max_in_flight: usize) -> io::Result<Self> {
        let completions = u32::try_from(max_in_flight).map_err(io::Error::other)?.max(2 * SUBMISSIONS);
        let builder = || -> Builder {
            let mut builder = IoUring::builder();
            builder.dontfork().setup_cqsize(completions);
            builder
        };
        // Kernels before 6.1 do not know them.
        let single = builder().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().build(SUBMISSIONS);
        let ring = match single {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => builder().build(SUBMISSIONS)?,
            single => single?,
        };
        ring.submitter().register_files(&[image.as_raw_fd()])?;
        Ok(Self { ring, slots: Vec::new(), free: Vec::new(), spare: Vec::new(), image })
    }

    /// Works that were started and have not been reaped.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Room for a transfer.
    pub(super) fn vectors(&mut self) -> Vectors {
        self.spare.pop().unwrap_or_default()
    }

    /// Gives it back.
    pub(super) fn give(&mut self, mut vectors: Vectors) {
        vectors.0.clear();
        if self.spare.len() < MAX_SPARE && vectors.0.capacity() <= MAX_SPARE {
            self.spare.push(vectors);
        }
    }

    /// Adds a work to a batch. [`Self::wait`] or [`Self::submit`] starts it at the latest.
    pub(super) fn start(&mut self, tag: usize, work: Work) -> io::Result<()> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(Slot { tag, work });
        self.push(slot).inspect_err(|_| {
            self.slots[slot] = None;
            self.free.push(slot);
        })?;
        if self.ring.submission().len() >= BATCH {
            // What the kernel does not take now goes with the next ones.
            let _ = self.submit();
        }
        Ok(())
    }

    /// Carries a work out on this thread. Nothing that was started is waited for.
    pub(super) fn run(&self, tag: usize, mut work: Work) -> Finished {
        loop {
            let done = work.attempt(self.image.as_raw_fd());
            if let Some(result) = work.judge(done) {
                return Finished { tag, work, result };
            }
        }
    }

    /// Reports, until [`Self::unwatch`], when the descriptor is made readable: at once if it is, and then at each change.
    pub(super) fn watch(&mut self, token: u64, fd: BorrowedFd<'_>) -> io::Result<()> {
        let readable = libc::POLLIN as u32;
        self.queue(&opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), readable).multi(true).build().user_data(WATCH | token))?;
        // The kernel takes a hold of the descriptor now, while it is open.
        self.submit()
    }

    /// Ends [`Self::watch`]. Reports that are under way may still come.
    pub(super) fn unwatch(&mut self, token: u64) -> io::Result<()> {
        self.queue(&opcode::PollRemove::new(WATCH | token).build().user_data(NOBODY))
    }

    /// Tells the kernel of all that was started.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(0) if !self.ring.submission().is_empty() => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Tells the kernel of all that was started, and returns when there is something to reap.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ResourceBusy) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits until the kernel is done with everything, and forgets it.
    pub(super) fn drain(&mut self) {
        while self.in_flight() > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "vhost-user: a ring cannot be drained: its buffers are leaked");
                    std::mem::forget(std::mem::take(&mut self.slots));
                    self.free.clear();
                }
            }
            while let Some(completion) = self.ring.completion().next() {
                let index = completion.user_data() as usize;
                if self.slots.get_mut(index).and_then(Option::take).is_some() {
                    self.free.push(index);
                }
            }
        }
    }

    /// Whether there may be something to reap; costs no system call unless there is.
    pub(super) fn look(&mut self) -> bool {
        if !self.ring.completion().is_empty() {
            return true;
        }
        if !self.ring.submission().taskrun() {
            return false;
        }
        // SAFETY: nothing is submitted and nothing waited for, and there is no argument: the kernel only does what it has put off.
        let _ = unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, EnterFlags::GETEVENTS.bits(), None) };
        !self.ring.completion().is_empty()
    }

    /// The next report. What the kernel did in part is started anew.
    pub(super) fn reap(&mut self) -> Option<Completion> {
        loop {
            let completion = self.ring.completion().next()?;
            let data = completion.user_data();
            if data == NOBODY {
                continue;
            }
            if data & WATCH != 0 {
                let token = data & !WATCH;
                let goes_on = cqueue::more(completion.flags());
                return Some(if goes_on { Completion::Readable(token) } else { Completion::Unwatched(token) });
            }
            let Some((index, result)) = self.judge(&completion) else { continue };
            let slot = self.slots[index].take()?;
            self.free.push(index);
            return Some(Completion::Finished(Finished { tag: slot.tag, work: slot.work, result }));
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
            Work::Read(transfer) => match transfer.rest() {
                [one] => opcode::Read::new(image, one.iov_base.cast(), one.iov_len as u32).offset(transfer.offset).build(),
                all => opcode::Readv::new(image, all.as_ptr(), all.len() as u32).offset(transfer.offset).build(),
            },
            Work::Write(transfer) => match transfer.rest() {
                [one] => opcode::Write::new(image, one.iov_base.cast(), one.iov_len as u32).offset(transfer.offset).build(),
                all => opcode::Writev::new(image, all.as_ptr(), all.len() as u32).offset(transfer.offset).build(),
            },
            Work::Sync => opcode::Fsync::new(image).flags(types::FsyncFlags::DATASYNC).build(),
        };
        let entry = entry.user_data(index as u64);
        self.queue(&entry)
    }

    fn queue(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: a transfer's vectors and what they point to belong to the slot that the entry's user data names. The slot is emptied only
        // when the completion was seen, or right away if the entry did not get into the queue; `drop` waits for the rest. Moving the slot
        // moves neither: vectors, buffers and mappings live on the heap or in mappings of their own. Other entries point nowhere.
        let queued = unsafe { self.ring.submission().push(entry) };
        queued.map_err(|_| io::ErrorKind::WouldBlock.into())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
    }
}
