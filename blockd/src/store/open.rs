//! Creating and opening images: for direct I/O, locked, of the size that the catalogue knows.

use super::image::{Inner, Kind};
use super::{Image, PAGE_BYTES, StoreError, sys, zero};
use crate::bells::Bells;
use replicator_engine::block::MAX_BLOCKS;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

/// Alignment that direct I/O needs where the kernel does not say (`STATX_DIOALIGN` is there since Linux 6.1).
const USUAL_ALIGN_BYTES: u64 = 512;

/// A process that was killed keeps its image until what it had submitted to its rings is done, which its end does not wait for.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(10);

impl Image {
    /// Makes a sparse file of `size_bytes`, readable and writable by its owner only; its name is durable on return. Refuses to overwrite.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Self, StoreError> {
        check_size(size_bytes)?;
        let file = open_file(path, OFlags::CREATE | OFlags::EXCL)?;
        create_with(path, file, size_bytes).inspect_err(|_| drop(std::fs::remove_file(path)))
    }

    /// Makes a sparse file of `size_bytes` in `dir` that has no name: it is gone with its last owner, whatever becomes of that.
    pub fn scratch(dir: &Path, size_bytes: u64) -> Result<Self, StoreError> {
        check_size(size_bytes)?;
        let file = open_file(dir, OFlags::TMPFILE)?;
        file.set_len(size_bytes).map_err(StoreError::io("sizing", dir))?;
        finish(dir, file, Kind::Scratch, size_bytes)
    }

    /// Opens a file or a block device. `expected_bytes` is what the catalogue says of its size; a longer file keeps that size. One that is
    /// in use is waited for, a little.
    pub fn open(path: &Path, expected_bytes: Option<u64>) -> Result<Self, StoreError> {
        let began = Instant::now();
        loop {
            match Self::try_open(path, expected_bytes) {
                Err(StoreError::InUse(_)) if began.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_POLL),
                opened => return opened,
            }
        }
    }

    fn try_open(path: &Path, expected_bytes: Option<u64>) -> Result<Self, StoreError> {
        let file_type = std::fs::metadata(path).map_err(StoreError::io("opening", path))?.file_type();
        let (kind, flags) = match () {
            () if file_type.is_file() => (Kind::File, OFlags::empty()),
            // Of a device this means: not while it is mounted or part of another device.
            () if file_type.is_block_device() => (Kind::Device, OFlags::EXCL),
            () => return Err(StoreError::NotADisk(path.to_owned())),
        };
        let file = open_file(path, flags)?;
        let found_bytes =
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|error| StoreError::io("measuring", path)(error.into()))?;
        let size_bytes = match expected_bytes {
            Some(expected_bytes) if found_bytes < expected_bytes => {
                return Err(StoreError::Shrunk { path: path.to_owned(), expected_bytes, size_bytes: found_bytes });
            }
            Some(expected_bytes) => expected_bytes,
            None if !found_bytes.is_multiple_of(PAGE_BYTES) => {
                return Err(StoreError::OddSize { path: path.to_owned(), size_bytes: found_bytes });
            }
            None => found_bytes,
        };
        check_size(size_bytes)?;
        finish(path, file, kind, size_bytes)
    }
}

fn create_with(path: &Path, file: File, size_bytes: u64) -> Result<Image, StoreError> {
    file.set_len(size_bytes).map_err(StoreError::io("sizing", path))?;
    file.sync_all().map_err(StoreError::io("syncing", path))?;
    sync_directory(path)?;
    finish(path, file, Kind::File, size_bytes)
}

/// Refuses what no volume may have.
pub(super) fn check_size(size_bytes: u64) -> Result<(), StoreError> {
    let fits = size_bytes > 0 && size_bytes.is_multiple_of(PAGE_BYTES) && size_bytes / PAGE_BYTES <= MAX_BLOCKS;
    if fits { Ok(()) } else { Err(StoreError::BadSize(size_bytes)) }
}

/// Opens for direct I/O, or without where the file system refuses that.
fn open_file(path: &Path, flags: OFlags) -> Result<File, StoreError> {
    let open = |flags| rustix::fs::open(path, flags | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    let opened = match open(flags | OFlags::DIRECT) {
        Err(Errno::INVAL) => {
            tracing::warn!(path = %path.display(), "no direct I/O on this file system: content goes through the page cache, and twice through memory");
            // A refused open may have made the file already.
            if flags.contains(OFlags::CREATE) { open((flags - OFlags::EXCL) | OFlags::NOFOLLOW) } else { open(flags) }
        }
        opened => opened,
    };
    opened.map(File::from).map_err(|error| match error {
        Errno::EXIST => StoreError::Exists(path.to_owned()),
        Errno::BUSY => StoreError::InUse(path.to_owned()),
        error => StoreError::io("opening", path)(error.into()),
    })
}

fn finish(path: &Path, file: File, kind: Kind, size_bytes: u64) -> Result<Image, StoreError> {
    sys::lock_exclusively(file.as_fd()).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied => StoreError::InUse(path.to_owned()),
        _ => StoreError::io("locking", path)(error),
    })?;
    let align_bytes = alignment(&file).map_err(StoreError::io("examining", path))?;
    Ok(Image::from_inner(Inner {
        file,
        path: path.to_owned(),
        kind,
        align_bytes,
        size_bytes: AtomicU64::new(size_bytes),
        zeroing: zero::Methods::default(),
        sync_failed: AtomicBool::new(false),
        error_logged: Mutex::default(),
        failure: Mutex::default(),
        failing: AtomicBool::default(),
        growing: Mutex::new(()),
        resized: Bells::default(),
    }))
}

/// What transfers have to be aligned to.
fn alignment(file: &File) -> io::Result<u64> {
    if !rustix::fs::fcntl_getfl(file)?.contains(OFlags::DIRECT) {
        return Ok(1);
    }
    let status = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    let told = u64::from(status.stx_dio_offset_align.max(status.stx_dio_mem_align));
    let known = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::DIOALIGN) && told.is_power_of_two();
    Ok(if known { told.clamp(USUAL_ALIGN_BYTES, PAGE_BYTES) } else { USUAL_ALIGN_BYTES })
}

/// Makes the entry of `path` in its directory durable.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(StoreError::io("syncing", directory))
}
