//! What a worker has under way in the kernel.
//!
//! A [`Ring`] owns everything that the kernel works on, from the start to the completion: buffers, vectors and messages. It is not dropped
//! before the kernel is done. All unsafe code of the NBD front end is here.

use super::batch::Batch;
use crate::store::AlignedBuf;
use io_uring::types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// Room for submissions.
const SUBMISSIONS: u32 = 256;
/// Works that are collected before the kernel is told: few, so that the disk begins while the others are prepared.
const BATCH: usize = 4;
/// Completions that wait in a ring; more of them wait in the kernel.
const COMPLETIONS: u32 = 4096;
/// `IORING_RECVSEND_POLL_FIRST`: there is nothing to receive now, as far as is known.
const POLL_FIRST: u16 = 1;

/// A file that the ring knows: its number in the table of registered files, or its descriptor if the kernel takes no table.
#[derive(Clone, Copy, Debug)]
pub(super) struct File {
    number: i32,
    flags: squeue::Flags,
}

/// Whether a receive may try at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// There may be something.
    Something,
    /// The last receive took all that there was.
    Nothing,
}

/// A transfer of a part of a buffer.
pub(super) struct Transfer {
    pub(super) buf: AlignedBuf,
    /// What has not been moved yet.
    pub(super) part: Range<usize>,
    /// Where that lies in the file.
    pub(super) offset: u64,
}

/// What the kernel is asked to do.
pub(super) enum Work {
    /// Receive something into a part of a vector.
    Receive(Vec<u8>, Range<usize>, Expect),
    /// Receive some data into its place.
    Fill(Transfer),
    /// Send it all.
    Send(Box<Batch>),
    /// Read from the image, all of it.
    Read(Transfer),
    /// Write to the image, all of it.
    Write(Transfer),
    /// Make the image durable.
    Sync,
    /// Wait for the mailbox's bell, and silence it.
    Listen(Box<[u8; 8]>),
}

/// A [`Work`] that is done, under the tag that it was started with.
pub(super) struct Finished {
    pub(super) tag: usize,
    pub(super) work: Work,
    /// Bytes of the last step; of a receive, all that came.
    pub(super) result: io::Result<usize>,
    /// Of a receive: whether there is more.
    pub(super) expect: Expect,
}

struct Job {
    file: File,
    tag: usize,
    work: Work,
}

/// See the module's documentation.
pub(super) struct Ring {
    ring: IoUring,
    /// By the submission's user data.
    jobs: Slab<Job>,
    /// Jobs that found no room among the submissions.
    backlog: VecDeque<usize>,
    /// Size of the table of registered files.
    table_len: usize,
}

impl Ring {
    /// A ring that knows up to `files` files by number. Only this thread may use it.
    pub(super) fn new(files: usize) -> io::Result<Self> {
        let ring = build()?;
        // Limited by RLIMIT_NOFILE, and no more than a matter of speed.
        let table_len = match u32::try_from(files).map(|len| ring.submitter().register_files_sparse(len)) {
            Ok(Ok(())) => files,
            _ => 0,
        };
        Ok(Self { ring, jobs: Slab::new(), backlog: VecDeque::new(), table_len })
    }

    /// Makes a file known under a number. It stays open until [`Self::forget`].
    pub(super) fn learn(&mut self, number: usize, file: &impl AsRawFd) -> File {
        let fd = file.as_raw_fd();
        if number < self.table_len && self.update(number, fd).is_ok() {
            return File { number: number as i32, flags: squeue::Flags::FIXED_FILE };
        }
        File { number: fd, flags: squeue::Flags::empty() }
    }

    /// The number is free again. Nothing may be under way with the file.
    pub(super) fn forget(&mut self, number: usize) {
        if number < self.table_len
            && let Err(error) = self.update(number, -1)
        {
            tracing::warn!(%error, "nbd: a registered file cannot be let go");
        }
    }

    fn update(&self, number: usize, fd: RawFd) -> io::Result<()> {
        let number = u32::try_from(number).map_err(io::Error::other)?;
        self.ring.submitter().register_files_update(number, &[fd]).map(drop)
    }

    /// Adds a work to a batch. [`Self::enter`] submits it at the latest.
    pub(super) fn start(&mut self, file: File, tag: usize, work: Work) {
        let key = self.jobs.insert(Job { file, tag, work });
        self.push(key);
        if self.ring.submission().len() >= BATCH {
            self.submit();
        }
    }

    /// Tells the kernel of what was started; what it does not take now goes with the next ones.
    pub(super) fn submit(&mut self) {
        if !self.ring.submission().is_empty() {
            let _ = self.ring.submit();
        }
    }

    /// Submits what was started, and waits until something is done, for `patience` at most.
    pub(super) fn enter(&mut self, patience: Option<Duration>) -> io::Result<()> {
        while !self.backlog.is_empty() {
            self.ring.submit()?;
            for _ in 0..self.backlog.len() {
                let key = self.backlog.pop_front().expect("as many as there were");
                self.push(key);
            }
            if !self.ring.completion().is_empty() {
                return Ok(());
            }
        }
        let submitter = self.ring.submitter();
        let entered = match patience {
            None => submitter.submit_and_wait(1),
            Some(patience) => submitter.submit_with_args(1, &SubmitArgs::new().timespec(&Timespec::from(patience))),
        };
        match entered {
            Ok(_) => Ok(()),
            // The time is over, a signal came, or completions have to be reaped first.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The next finished work. What the kernel did in part is started anew.
    pub(super) fn reap(&mut self) -> Option<Finished> {
        loop {
            let completion = self.ring.completion().next()?;
            let key = completion.user_data() as usize;
            let Some(job) = self.jobs.get_mut(key) else { continue };
            if let Some(result) = job.work.judge(completion.result()) {
                let Job { tag, work, .. } = self.jobs.remove(key);
                let expect = if cqueue::sock_nonempty(completion.flags()) { Expect::Something } else { Expect::Nothing };
                return Some(Finished { tag, work, result, expect });
            }
            self.push(key);
        }
    }

    fn push(&mut self, key: usize) {
        let Job { file, work, .. } = &mut self.jobs[key];
        let entry = work.entry(Fd(file.number)).flags(file.flags).user_data(key as u64);
        // SAFETY: what the entry points to belongs to the job, which stays in the slab until its completion was seen; `drop` waits for the
        // rest. Moving the job moves none of it: buffers, vectors and messages lie on the heap.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(key);
        }
    }
}

/// Writes to an image, or makes it durable, on this thread.
pub(super) fn run(image: &impl AsRawFd, tag: usize, mut work: Work) -> Finished {
    loop {
        let done = work.attempt(image.as_raw_fd());
        if let Some(result) = work.judge(done) {
            return Finished { tag, work, result, expect: Expect::Nothing };
        }
    }
}

/// With the ways of a ring that belongs to one thread, where the kernel knows them (6.1).
fn build() -> io::Result<IoUring> {
    let modern = IoUring::builder().dontfork().setup_cqsize(COMPLETIONS).setup_single_issuer().setup_defer_taskrun().build(SUBMISSIONS);
    match modern {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().dontfork().setup_cqsize(COMPLETIONS).build(SUBMISSIONS)
        }
        built => built,
    }
}

impl Transfer {
    /// All of a buffer.
    pub(super) fn whole(buf: AlignedBuf, offset: u64) -> Self {
        Self { part: 0..buf.len(), buf, offset }
    }

    fn target(&mut self) -> (*mut u8, u32) {
        let part = &mut self.buf[self.part.clone()];
        // A transfer has a limit far below 4 GiB.
        (part.as_mut_ptr(), part.len() as u32)
    }

    /// `len_bytes` were moved; whether that was all.
    fn advance(&mut self, len_bytes: usize) -> bool {
        self.part.start += len_bytes;
        self.offset += len_bytes as u64;
        self.part.is_empty()
    }
}

impl Work {
    fn entry(&mut self, fd: Fd) -> squeue::Entry {
        match self {
            Self::Receive(bytes, part, expect) => {
                let part = &mut bytes[part.clone()];
                let ioprio = if *expect == Expect::Nothing { POLL_FIRST } else { 0 };
                opcode::Recv::new(fd, part.as_mut_ptr(), part.len() as u32).ioprio(ioprio).build()
            }
            Self::Fill(transfer) => {
                let (data, len) = transfer.target();
                opcode::Recv::new(fd, data, len).build()
            }
            Self::Send(batch) => match batch.only() {
                Some((bytes, len)) => opcode::Send::new(fd, bytes, len as u32).flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL).build(),
                None => opcode::SendMsg::new(fd, batch.message()).flags((libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32).build(),
            },
            Self::Read(transfer) => {
                let (data, len) = transfer.target();
                opcode::Read::new(fd, data, len).offset(transfer.offset).build()
            }
            Self::Write(transfer) => {
                let (data, len) = transfer.target();
                opcode::Write::new(fd, data, len).offset(transfer.offset).build()
            }
            Self::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Self::Listen(count) => opcode::Read::new(fd, count.as_mut_ptr(), 8).build(),
        }
    }

    /// Asks the kernel to write or sync now; returns what a ring would report.
    fn attempt(&mut self, image: RawFd) -> i32 {
        let done = match self {
            Self::Write(transfer) => {
                let offset = transfer.offset as i64;
                let (data, len) = transfer.target();
                // SAFETY: the transfer's buffer is as long, and borrowed until the kernel is done with it.
                unsafe { libc::pwrite(image, data.cast(), len as usize, offset) }
            }
            // SAFETY: it takes a descriptor and touches no memory.
            Self::Sync => unsafe { libc::fdatasync(image) as isize },
            _ => return -libc::ENOTSUP,
        };
        if done < 0 { -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { done as i32 }
    }

    /// Looks at what the kernel returned. `None`: it is not all done yet.
    fn judge(&mut self, result: i32) -> Option<io::Result<usize>> {
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            let again = matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock);
            return (!again).then_some(Err(error));
        }
        let len_bytes = result as usize;
        let done = match self {
            Self::Read(transfer) | Self::Write(transfer) if len_bytes > 0 => transfer.advance(len_bytes),
            Self::Read(_) | Self::Write(_) => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Self::Fill(transfer) => {
                transfer.advance(len_bytes);
                true
            }
            Self::Send(batch) => batch.advance(len_bytes),
            Self::Receive(..) | Self::Sync | Self::Listen(_) => true,
        };
        done.then_some(Ok(len_bytes))
    }
}

impl Drop for Ring {
    /// Cancels what is left: at an ordinary end no more than the wait for the bell.
    fn drop(&mut self) {
        self.backlog.drain(..).for_each(|key| drop(self.jobs.try_remove(key)));
        while !self.jobs.is_empty() {
            let submitted = self.ring.submit();
            // What is not found is complete already.
            let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
            if let Err(error) = submitted.and_then(|_| self.ring.submit_and_wait(1))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "nbd: a ring cannot be drained: its buffers are leaked");
                std::mem::forget(std::mem::take(&mut self.jobs));
                return;
            }
            for completion in self.ring.completion() {
                drop(self.jobs.try_remove(completion.user_data() as usize));
            }
        }
    }
}

/// The descriptor of something that lends only its number.
pub(in crate::nbd) fn borrow(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the owner keeps its descriptor open and is borrowed as long as the result.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}
