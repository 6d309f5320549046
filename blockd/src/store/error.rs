//! Why an image cannot be created, opened, grown or imported. Each message ends with the cure, if there is one.

use super::PAGE_BYTES;
use std::{io, path::PathBuf};

/// See the module's documentation.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file is there already.
    #[error("{} exists already: choose another path, or remove it if nobody needs it", .0.display())]
    Exists(PathBuf),
    /// Neither a regular file nor a block device.
    #[error("{} is neither a regular file nor a block device", .0.display())]
    NotADisk(PathBuf),
    /// Somebody else has it open.
    #[error("{} is in use by another program: stop it first", .0.display())]
    InUse(PathBuf),
    /// Not a whole number of pages.
    #[error("{}: its size, {size_bytes} bytes, is not a multiple of {PAGE_BYTES}: `truncate --size=%{PAGE_BYTES} FILE` rounds it up", path.display())]
    OddSize {
        /// The image.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// Nothing in it, or larger than a volume may be.
    #[error("a volume of {0} bytes cannot be made: the size is a multiple of {PAGE_BYTES}, at least {PAGE_BYTES} and less than 16 TiB")]
    BadSize(u64),
    /// Smaller than it was.
    #[error(
        "{} has shrunk from {expected_bytes} to {size_bytes} bytes behind our back: restore it, or promote a standby; `truncate \
         --size={expected_bytes} FILE` gives the size back, but not the content", path.display()
    )]
    Shrunk {
        /// The image.
        path: PathBuf,
        /// What the catalogue says.
        expected_bytes: u64,
        /// What it has.
        size_bytes: u64,
    },
    /// Shrinking is not what [`super::Image::grow`] does, and a device has to be grown by whoever made it.
    #[error("{} cannot grow from {size_bytes} to {wanted_bytes} bytes: {why}", path.display())]
    CannotGrow {
        /// The image.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The wanted size.
        wanted_bytes: u64,
        /// The reason, with the cure.
        why: &'static str,
    },
}

impl StoreError {
    /// For `map_err`.
    pub(super) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
