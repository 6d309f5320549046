//! The transmission phase, without I/O: requests become checked [`Plan`]s, results become replies.

mod command;
mod extents;
mod reply;
#[cfg(test)]
mod tests;

pub use command::{Command, Fault, MAX_REQUEST_HEADER_BYTES, Order, Plan, Refusal, Session, Zeroing};
pub use extents::{Extent, MAX_EXTENTS, Meaning, Statuses, describe};
pub use reply::{Failure, Header, MAX_HEADER_BYTES, block_status, done, failure, read};

/// Smallest unit of offsets and lengths.
pub const MIN_BLOCK_BYTES: u32 = 1;
/// Unit that costs least.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;
