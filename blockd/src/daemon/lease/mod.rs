//! Leases: what this site grants, what it asks for, and when its standbys are promoted without the operator.
//!
//! The rules are the engine's ([`replicator_engine::lease`]); here questions are sent and answered, and records written before either counts.

mod answering;
mod candidate;
mod grants;
mod keeper;
pub(super) mod status;
mod terms;

pub(super) use grants::{Duty, Grants};
pub(super) use keeper::Keeper;
pub(super) use terms::{Fencing, Inherited};
