//! An open image: what it is, and blocking reads and writes.

use super::{AlignedBuf, Extents, PAGE_BYTES, StoreError, zero};
use crate::bells::Bells;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Most bytes that a bounce buffer moves at once.
const BOUNCE_BYTES: usize = 1 << 20;

/// How long an image's errors are not logged again.
const QUIET: Duration = Duration::from_secs(60);

/// What lies under an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Device,
    /// A file without a name, whose holes are content that is not there yet.
    Scratch,
}

/// A volume's content. Clones share the descriptor, the lock and the size.
#[derive(Clone, Debug)]
pub struct Image(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    /// What offsets, lengths and addresses of transfers must be multiples of; 1 where direct I/O was refused.
    pub(super) align_bytes: u64,
    /// Never shrinks while the image is open.
    pub(super) size_bytes: AtomicU64,
    pub(super) zeroing: zero::Methods,
    /// Set once and for all: see [`Image::note_sync`].
    pub(super) sync_failed: AtomicBool,
    /// When an error was logged last.
    pub(super) error_logged: Mutex<Option<Instant>>,
    /// The last error, until a write succeeds.
    pub(super) failure: Mutex<Option<String>>,
    /// Whether there is one.
    pub(super) failing: AtomicBool,
    /// Held while the size changes.
    pub(super) growing: Mutex<()>,
    pub(super) resized: Bells,
}

impl Inner {
    /// Whether a file has become smaller than the volume behind our back.
    pub(super) fn is_cut_off(&self) -> io::Result<bool> {
        Ok(self.kind != Kind::Device && (rustix::fs::fstat(&self.file)?.st_size as u64) < self.size_bytes.load(Ordering::SeqCst))
    }
}

impl Image {
    pub(super) fn from_inner(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Size in bytes, a multiple of [`PAGE_BYTES`].
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes.load(Ordering::SeqCst)
    }

    /// What offsets, lengths and addresses have to be multiples of when a transfer is submitted to the descriptor: a power of two, 512 in
    /// most cases and never more than [`PAGE_BYTES`]; 1 if the file system refused direct I/O.
    pub fn align_bytes(&self) -> u64 {
        self.0.align_bytes
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.0.kind == Kind::Device
    }

    /// Another owner of the same open file, for a runtime that wants one.
    pub fn try_clone_file(&self) -> io::Result<File> {
        self.0.file.try_clone()
    }

    /// Reads exactly `content.len()` bytes. Offset and length are multiples of [`Self::align_bytes`]; an unaligned buffer costs a copy.
    pub fn read_at(&self, content: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(offset, content.len())?;
        if self.takes(content) {
            return self.0.file.read_exact_at(content, offset).map_err(|error| self.note_error(error));
        }
        let mut bounce = AlignedBuf::new(content.len().min(BOUNCE_BYTES));
        for (part, offset) in content.chunks_mut(BOUNCE_BYTES).zip((offset..).step_by(BOUNCE_BYTES)) {
            bounce.set_len(part.len());
            self.0.file.read_exact_at(&mut bounce, offset).map_err(|error| self.note_error(error))?;
            part.copy_from_slice(&bounce);
        }
        Ok(())
    }

    /// Writes all of `content`, under the conditions of [`Self::read_at`].
    pub fn write_at(&self, content: &[u8], offset: u64) -> io::Result<()> {
        self.check(offset, content.len())?;
        if self.takes(content) {
            return self.0.file.write_all_at(content, offset);
        }
        let mut bounce = AlignedBuf::new(content.len().min(BOUNCE_BYTES));
        for (part, offset) in content.chunks(BOUNCE_BYTES).zip((offset..).step_by(BOUNCE_BYTES)) {
            bounce.set_len(part.len());
            bounce.copy_from_slice(part);
            self.0.file.write_all_at(&bounce, offset)?;
        }
        Ok(())
    }

    /// Makes the range read as zeroes, and frees its space where that is possible. Offset and length are multiples of
    /// [`Self::align_bytes`].
    pub fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.check_range(offset, len_bytes)?;
        zero::punch(&self.0, offset, len_bytes, zero::Fallback::Write)
    }

    /// Makes the range read as zeroes, and keeps its space allocated, under the conditions of [`Self::punch`].
    pub fn zero(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.check_range(offset, len_bytes)?;
        zero::zero(&self.0, offset, len_bytes, zero::Fallback::Write)
    }

    /// As [`Self::punch`], but fails with `EOPNOTSUPP` and changes nothing where zeroes would have to be written.
    pub fn punch_fast(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.check_range(offset, len_bytes)?;
        zero::punch(&self.0, offset, len_bytes, zero::Fallback::Refuse)
    }

    /// As [`Self::zero`], under the condition of [`Self::punch_fast`].
    pub fn zero_fast(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.check_range(offset, len_bytes)?;
        zero::zero(&self.0, offset, len_bytes, zero::Fallback::Refuse)
    }

    /// Makes every write that has completed durable.
    pub fn sync_data(&self) -> io::Result<()> {
        self.note_sync(self.0.file.sync_data())
    }

    /// Passes on the result of a sync that was submitted to the descriptor. After one has failed, the kernel has forgotten what it could not
    /// write and the next one would succeed: that would be a lie, so all fail from then on, until the image is opened again. The same
    /// goes for a file that somebody has cut off: writes make it grow again, with zeroes where content was.
    pub fn note_sync(&self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result {
            self.note_damage(error);
        } else if self.0.is_cut_off()? {
            self.note_damage(&shrunk());
        }
        result?;
        if self.0.sync_failed.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    /// Passes on why a transfer failed, and logs it unless that was done lately.
    pub fn note_error(&self, error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            let error = shrunk();
            self.note_damage(&error);
            return error;
        }
        // That zeroes cannot be had fast is an answer, and no failure.
        if self.0.sync_failed.load(Ordering::SeqCst) || error.kind() == io::ErrorKind::Unsupported {
            return error;
        }
        // What the daemon itself breaks off is nothing that the disk does.
        if error.raw_os_error().is_some() {
            *self.0.failure.lock().expect("no panic under this lock") = Some(error.to_string());
            self.0.failing.store(true, Ordering::SeqCst);
        }
        let mut logged = self.0.error_logged.lock().expect("no panic under this lock");
        if logged.is_none_or(|at| at.elapsed() >= QUIET) {
            *logged = Some(Instant::now());
            tracing::error!(path = %self.0.path.display(), %error, "the image failed a request; others like it are not logged for a while");
        }
        error
    }

    /// A write succeeded.
    pub fn note_written(&self) {
        if self.0.failing.load(Ordering::Relaxed) && self.0.failing.swap(false, Ordering::SeqCst) {
            *self.0.failure.lock().expect("no panic under this lock") = None;
        }
    }

    /// Why the last request failed, if no write has succeeded since.
    pub fn failure(&self) -> Option<String> {
        self.0.failure.lock().expect("no panic under this lock").clone()
    }

    fn note_damage(&self, error: &io::Error) {
        if !self.0.sync_failed.swap(true, Ordering::SeqCst) {
            tracing::error!(path = %self.0.path.display(), %error, "the image is damaged: flushes fail until it is opened again");
        }
    }

    /// The parts of the range that may hold something other than zeroes, ascending; their ends are wherever the file system puts them.
    /// A block device is one extent.
    pub fn allocated(&self, range: Range<u64>) -> Extents<'_> {
        Extents::new(&self.0, range.start..range.end.min(self.size_bytes()))
    }

    /// Space that it takes on its file system; a device takes its size.
    pub fn disk_usage_bytes(&self) -> io::Result<u64> {
        match self.0.kind {
            Kind::File | Kind::Scratch => Ok(rustix::fs::fstat(&self.0.file)?.st_blocks as u64 * 512),
            Kind::Device => Ok(self.size_bytes()),
        }
    }

    /// Grows to `size_bytes`, durably; the new part reads as zeroes in a file. A block device must have been grown before.
    pub fn grow(&self, size_bytes: u64) -> Result<(), StoreError> {
        self.grow_once(size_bytes, || Ok(()))
    }

    /// The same for a size that has to be recorded: nobody sees it before `record` has returned. A crash in between leaves a file that is
    /// longer than its volume, and nothing in the surplus.
    pub fn grow_once<E: From<StoreError>>(&self, size_bytes: u64, record: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        super::open::check_size(size_bytes)?;
        let _growing = self.0.growing.lock().expect("no panic under this lock");
        self.extend(size_bytes)?;
        record()?;
        self.0.size_bytes.store(size_bytes, Ordering::SeqCst);
        self.0.resized.ring();
        Ok(())
    }

    fn extend(&self, size_bytes: u64) -> Result<(), StoreError> {
        let refused =
            |why| StoreError::CannotGrow { path: self.0.path.clone(), size_bytes: self.size_bytes(), wanted_bytes: size_bytes, why };
        if size_bytes < self.size_bytes() {
            return Err(refused("that would be smaller"));
        }
        let failed = || StoreError::io("growing", &self.0.path);
        match self.0.kind {
            // A file may be longer than the volume, after a growth that was not completed: never cut anything off.
            Kind::File | Kind::Scratch if self.0.file.metadata().map_err(failed())?.len() < size_bytes => {
                self.0.file.set_len(size_bytes).map_err(failed())?;
                self.0.file.sync_all().map_err(failed())?;
            }
            Kind::File | Kind::Scratch => {}
            Kind::Device => {
                let device_bytes = rustix::fs::seek(&self.0.file, rustix::fs::SeekFrom::End(0)).map_err(|error| failed()(error.into()))?;
                if device_bytes < size_bytes {
                    return Err(refused("the device is smaller: grow the device first"));
                }
            }
        }
        Ok(())
    }

    /// What rings after the size has changed.
    pub fn resized(&self) -> &Bells {
        &self.0.resized
    }

    /// Goes back to `size_bytes`, at which the volume stood at a recovery point: what lies behind it reads as zeroes if it grows again.
    pub fn go_back_to(&self, size_bytes: u64) -> io::Result<()> {
        let _growing = self.0.growing.lock().expect("no panic under this lock");
        let surplus_bytes = self.size_bytes().saturating_sub(size_bytes);
        if surplus_bytes > 0 {
            self.punch(size_bytes, surplus_bytes)?;
            self.sync_data()?;
            self.0.size_bytes.store(size_bytes, Ordering::SeqCst);
            self.0.resized.ring();
        }
        Ok(())
    }

    fn takes(&self, content: &[u8]) -> bool {
        (content.as_ptr() as u64).is_multiple_of(self.0.align_bytes)
    }

    fn check(&self, offset: u64, len_bytes: usize) -> io::Result<()> {
        self.check_range(offset, len_bytes as u64)
    }

    fn check_range(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        let inside = offset.checked_add(len_bytes).is_some_and(|end| end <= self.size_bytes());
        if inside && (offset | len_bytes).is_multiple_of(self.0.align_bytes) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len_bytes} bytes at {offset} are unaligned or beyond the end of the image"),
        ))
    }
}

const _: () = assert!((BOUNCE_BYTES as u64).is_multiple_of(PAGE_BYTES));

pub(super) fn shrunk() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the image has shrunk behind our back")
}

impl AsRawFd for Image {
    fn as_raw_fd(&self) -> RawFd {
        self.0.file.as_raw_fd()
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}
