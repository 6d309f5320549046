//! Leases: who may acknowledge while nobody hears of the others.
//!
//! A primary with a lease asks its standby and a witness for it again and again, and acknowledges only while one of the two has granted it.
//! Whoever is to be promoted without the primary first makes sure that neither grants any more, and that all that was granted has run out.
//!
//! ```text
//!   primary (Holder)              standby (Standby)                    witness (Grantor)
//!     ├── request: number, promise ──►┤ grants                              │
//!     ├── request: number, promise ───┼────────────────────────────────────►┤ grants, notes the promise
//!     ✗                               │ hears nothing for long enough       │
//!                                     │ stands: records that it grants      │
//!                                     │   nothing any more                  │
//!                                     │ waits until its own grants ran out  │
//!                                     ├── consent: term ───────────────────►┤ its grants ran out, the promise held:
//!                                     │                                     │   records that it grants nothing more
//!                                     │ ◄─────────────────────────── agreed ┤
//!                                     │ promotes itself                     │
//! ```
//!
//! Invariants
//! - A lease runs from when the primary *sent* its request, by the primary's clock; what it costs the grantor runs from when that came,
//!   by the grantor's. So clocks need not agree, only run at about the same rate: see [`wait_of_ms`].
//! - Whatever a grantor answers it recorded before. One that starts again takes it that it granted a full lease the moment before.
//! - A grantor that yielded to a candidate grants nothing to anybody else until that one withdraws; the candidate says so itself.
//! - The witness yields only if the primary's last word was that its mode's promise holds. The primary gives a weaker acknowledgement
//!   only after the witness has recorded that it does not: [`Holder::is_told_broken`].

mod grantor;
mod holder;
mod standby;

pub use grantor::{Grantor, Refusal, Verdict};
pub use holder::{Ask, Holder, Party};
pub use standby::{Stage, Standby, Step};

use crate::generation::{Id, Lineage};

/// The clock of one side may run by so much faster or slower than it should, in parts of a hundred. Those of hosts are off by a
/// hundredth of that.
pub const MAX_DRIFT_PERCENT: u64 = 1;

/// Longest lease.
pub const MAX_LEASE_MS: u64 = 600_000;

/// Between the look at the lease and the acknowledgement's leaving the host.
const LEAVING_MS: u64 = 200;

/// For how long a grantor has to take a lease for valid.
pub fn wait_of_ms(lease_ms: u64) -> u64 {
    // The primary's clock is slow by the drift, and this one fast.
    lease_ms + lease_ms * 2 * MAX_DRIFT_PERCENT / 100 + lease_ms / 200 + LEAVING_MS
}

/// What a primary asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The primary's own.
    pub lineage: Lineage,
    /// Grows with each request of a generation, over restarts, too.
    pub number: u64,
    /// How long the lease is to be.
    pub lease_ms: u64,
    /// Whether the standby may be promoted without the operator.
    pub auto_promote: bool,
    /// Whether an automatic promotion now would cost no more than the mode says.
    pub promised: bool,
    /// The number of the request that said so first: a word of an earlier one counts no more.
    pub said: u64,
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has the lease, from when it asked; what it said of the promise is recorded.
    Granted,
    /// Not before so many milliseconds: a lease of an earlier generation may be valid still.
    Later(u64),
    /// A standby is about to be promoted.
    Yielded,
    /// There is a later generation, or another one.
    Overtaken(Lineage),
    /// A later request was answered already.
    Old,
}

/// A standby that wants to be promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidacy {
    /// The generation that it would be.
    pub generation: Id,
    /// Tells its attempts apart: a later one has a larger number.
    pub term: u64,
}

/// What a grantor remembers of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of the primary that it grants to.
    pub lineage: Lineage,
    /// The longest lease that may be valid.
    pub lease_ms: u64,
    /// See [`Request::auto_promote`].
    pub auto_promote: bool,
    /// The primary's last word on its promise.
    pub promised: bool,
    /// See [`Request::said`].
    pub said: u64,
    /// The candidate that it grants nothing for the sake of.
    pub yielded: Option<Candidacy>,
    /// The last term that there was, withdrawn ones included.
    pub last_term: u64,
    /// At a standby: the last of its terms that the witness knows to be withdrawn, or never heard of.
    pub released_term: u64,
}

#[cfg(test)]
mod tests;
