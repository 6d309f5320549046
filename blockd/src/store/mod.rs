//! Where a volume's content lies: a raw sparse file or a block device.
//!
//! An [`Image`] is opened for direct I/O, locked against everybody else, and cheap to clone. Its own methods block; front ends take its
//! descriptor and submit to their own io_uring, with buffers that are aligned as [`AlignedBuf`] is. What the content means, who may
//! write when, and what has to be kept before, is decided elsewhere.

mod buffer;
mod error;
mod extents;
mod image;
pub mod import;
mod inline;
mod open;
mod pace;
mod sys;
mod zero;

#[cfg(test)]
mod tests;

pub use buffer::{AlignedBuf, BufferPool, HEADROOM_BYTES};
pub use error::StoreError;
pub use extents::Extents;
pub use image::Image;
pub use inline::Inline;
pub use pace::Pace;

/// A volume's size is a multiple of this, and so is the alignment of every [`AlignedBuf`].
pub const PAGE_BYTES: u64 = 4096;
