//! The acknowledgement policy: the only place that decides when a guest's request completes.
//!
//! Two questions, asked by different threads:
//! - A front end asks of each request that is done locally whether it waits for the standby: [`Promise::completes`], with the promise that
//!   is *in force*. In mode `async` that is a comparison and nothing else.
//! - The volume's sender asks which promise is to be in force: [`Policy`], which raises it once the standby is close, and lowers it when the
//!   standby is gone for too long.
//!
//! ```text
//!              the probe's epoch is there, in time            the proof's epoch is there
//!   local ─────────────────────────────────────────► raising ─────────────────────────────► held
//!     ▲      (the guest waits for nothing meanwhile)    │        (recorded durably)           │
//!     ├─────────────────────────────────────────────────┘                                     │
//!     │              the link breaks, or a request waits for too long                         │
//!     └───────────────────────────────────────────────────────────────────────────────────────┘
//!                    a request waits for too long; recorded durably, then told
//! ```
//!
//! Invariants
//! - What is recorded is never more than what is in force: before a weaker promise comes into force, the record of the stronger one is
//!   durably gone. Where it cannot be, requests go on waiting.
//! - What is recorded holds: each request that was acknowledged, and that this promise covers, is at the standby.

mod policy;
mod spread;

pub use policy::{OnDisconnect, Policy, Rules, Standing, Step, View};
pub use spread::{Spread, TURN_US};

use crate::tracker::Epoch;

/// What an acknowledgement means beyond the local disk; a later one is the safer one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Promise {
    /// Nothing: `async` and `snapshot`.
    #[default]
    Local = 0,
    /// What a flush or FUA made durable is at the standby: `barrier`.
    Barrier = 1,
    /// Every write is at the standby: `sync`.
    Sync = 2,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A change that may be lost with the power.
    Write,
    /// A flush, or a change that is to be durable.
    Durable,
}

/// A request that is done locally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// What it asks for.
    pub kind: Kind,
    /// The epoch that has all that it covers: a change's own; for a flush the one that was open when it arrived, which every change that
    /// was complete by then is in, or in an earlier one.
    pub epoch: Epoch,
}

impl Promise {
    /// The promise with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Local, Self::Barrier, Self::Sync].into_iter().find(|promise| *promise as u8 == number)
    }

    /// Whether a request of this kind waits for the standby at all.
    pub fn covers(self, kind: Kind) -> bool {
        match kind {
            Kind::Write => self >= Self::Sync,
            Kind::Durable => self >= Self::Barrier,
        }
    }

    /// Whether a request is to be acknowledged while this promise is in force and the standby has every epoch up to `safe`.
    pub fn completes(self, done: Done, safe: Option<Epoch>) -> bool {
        !self.covers(done.kind) || safe.is_some_and(|safe| safe >= done.epoch)
    }
}

#[cfg(test)]
mod tests;
