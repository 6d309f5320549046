//! Proof that what is kept is what was written: standbys' images against their digests, and both sites against each other.

mod scrub;
mod verify;

pub(super) use scrub::of_standby;
pub(super) use verify::{add_verified, forget};
