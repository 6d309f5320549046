//! Zeroes without moving them, by the best way that the file system or device has.
//!
//! Each way is tried until it was once refused as unsupported. The last one is to write zeroes, which always works.

use super::AlignedBuf;
use super::image::{Inner, Kind};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Zeroes that are written at once.
const WRITE_BYTES: usize = 1 << 20;

/// The ways that have not been refused yet.
#[derive(Debug, Default)]
pub(super) struct Methods {
    no_punch: AtomicBool,
    no_range: AtomicBool,
}

/// What is done where zeroes have to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fallback {
    Write,
    /// Fails with `EOPNOTSUPP`.
    Refuse,
}

/// Zeroes that free their space if possible.
pub(super) fn punch(image: &Inner, offset: u64, len_bytes: u64, fallback: Fallback) -> io::Result<()> {
    if try_allocate(image, FallocateFlags::PUNCH_HOLE, &image.zeroing.no_punch, offset, len_bytes)? {
        return Ok(());
    }
    zero(image, offset, len_bytes, fallback)
}

/// Zeroes that keep their space.
pub(super) fn zero(image: &Inner, offset: u64, len_bytes: u64, fallback: Fallback) -> io::Result<()> {
    // Where a device cannot do it by itself, the kernel writes zeroes without a word.
    let is_honest = fallback == Fallback::Write || image.kind != Kind::Device;
    if is_honest && try_allocate(image, FallocateFlags::ZERO_RANGE, &image.zeroing.no_range, offset, len_bytes)? {
        return Ok(());
    }
    match fallback {
        Fallback::Write => write(image, offset, len_bytes),
        Fallback::Refuse => Err(Errno::OPNOTSUPP.into()),
    }
}

fn write(image: &Inner, offset: u64, len_bytes: u64) -> io::Result<()> {
    let zeroes = AlignedBuf::new(WRITE_BYTES.min(usize::try_from(len_bytes).unwrap_or(WRITE_BYTES)));
    let mut done = 0;
    while done < len_bytes {
        let part = (len_bytes - done).min(WRITE_BYTES as u64);
        image.file.write_all_at(&zeroes[..part as usize], offset + done)?;
        done += part;
    }
    Ok(())
}

/// Whether the range is zero now; `false` if this way is not supported here.
fn try_allocate(image: &Inner, way: FallocateFlags, refused: &AtomicBool, offset: u64, len_bytes: u64) -> io::Result<bool> {
    if refused.load(Relaxed) || len_bytes == 0 {
        return Ok(len_bytes == 0);
    }
    loop {
        match rustix::fs::fallocate(&image.file, way | FallocateFlags::KEEP_SIZE, offset, len_bytes) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                refused.store(true, Relaxed);
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
    }
}
