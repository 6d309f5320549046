//! How long a handover would take now.
//!
//! ```text
//!   order ──► ship while the clients write on ──► cut ──► ship what is frozen ──► commit ──► gate shut ──► last epoch ──► new primary
//!             until little is left                                                                                        serves
//! ```
//!
//! [`Gauge`] measures, while replication runs, what the link takes, what content shrinks to, how fast it changes, and what a commit costs.
//! [`Outlook::forecast`] reckons with that how the handover would go. What was never measured is said, not guessed.

mod gauge;
mod link;
mod window;

pub use gauge::{Gauge, Measured};
pub use link::LinkRate;

/// So little is sent with a commit: it costs no time of its own.
pub const NEGLIGIBLE_BYTES: u64 = 64 << 10;
/// Beyond this share of what the link takes, in percent, what changes meanwhile never ends.
const ENDLESS_PERCENT: f64 = 97.0;
/// Round trips of the order, its answer and a sign of life before.
const ORDER_ROUND_TRIPS: u64 = 3;
/// Times that both sites write something down durably, beside commits.
const RECORDS: u64 = 4;
/// A link that was not seen for longer may be another by now.
const STALE_MS: u64 = 15 * 60 * 1000;

/// What a forecast is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// What was measured.
    pub measured: Measured,
    /// Content that is to be sent.
    pub backlog_bytes: u64,
    /// A backlog up to this is cut at once; `None`: any.
    pub cut_bytes: Option<u64>,
    /// Of the link.
    pub round_trip_ms: u64,
}

/// What is known beside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// Whether clients may write until they are cut off.
    pub writers: Writers,
    /// What earlier handovers took beside sending and commits.
    pub fixed_ms: Option<u64>,
    /// For how long other standbys are waited for.
    pub others_ms: u64,
    /// The time, by the clock of [`Measured::link_seen_ms`].
    pub now_ms: u64,
}

/// Whether clients write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writers {
    /// None is attached.
    #[default]
    None,
    /// They go on as they did.
    GoOn,
}

/// How long a handover would take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// How long; `None`: nobody knows, or it does not end.
    pub seconds: Option<f64>,
    /// What it would send, payload; `None` if it does not end.
    pub bytes: Option<u64>,
    /// What is to be known of that.
    pub basis: Basis,
}

/// What a forecast rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// All of it was measured.
    Measured,
    /// The link was seen long ago.
    LinkLongAgo,
    /// No handover has been seen: what it costs beside sending is reckoned from round trips and commits.
    NoHandover,
    /// Nothing says what the content shrinks to: it is taken to be incompressible.
    NoYield,
    /// The link was never full but for a limit that was lifted since: it may take more than is reckoned with.
    LinkFaster,
    /// Nothing was sent that would have filled the link.
    LinkUnknown,
    /// Content changes faster than the link takes it.
    Endless,
}

impl Outlook {
    /// How long a handover would take that is ordered now.
    pub fn forecast(&self, circumstances: Circumstances) -> Forecast {
        let measured = &self.measured;
        let changes = if circumstances.writers == Writers::GoOn { measured.changes_per_second as f64 } else { 0.0 };
        let shrinks = measured.payload_per_mille.map_or(1.0, |per_mille| per_mille as f64 / 1000.0);
        let backlog = self.backlog_bytes as f64;
        let waiting = backlog * shrinks + measured.queued_bytes as f64;
        let commit = measured.commit_ms.unwrap_or(self.round_trip_ms) as f64 / 1000.0;
        let is_little = waiting + changes * shrinks * commit <= NEGLIGIBLE_BYTES as f64;
        let per_byte = match measured.link.per_second() {
            Some(rate) => 1.0 / rate as f64,
            None if is_little => 0.0,
            None => return Forecast { seconds: None, bytes: Some(waiting as u64), basis: Basis::LinkUnknown },
        };
        let per_content_byte = shrinks * per_byte;
        let load = changes * per_content_byte;
        let fuzzy = self.cut_bytes.map_or(0.0, |most| (backlog - most as f64).max(0.0));
        if fuzzy > 0.0 && load * 100.0 >= ENDLESS_PERCENT {
            return Forecast { seconds: None, bytes: None, basis: Basis::Endless };
        }
        let shipping = if fuzzy > 0.0 { fuzzy * per_content_byte / (1.0 - load) } else { 0.0 };
        let frozen = (backlog - fuzzy) * per_content_byte + commit;
        let last = changes * frozen * per_content_byte + commit;
        let caught_up = measured.queued_bytes as f64 * per_byte + shipping + frozen;
        let seconds = caught_up + last.max(circumstances.others_ms as f64 / 1000.0) + self.fixed_ms(&circumstances, commit) as f64 / 1000.0;
        let bytes = waiting + changes * (shipping + frozen) * shrinks;
        Forecast { seconds: Some(seconds), bytes: Some(bytes as u64), basis: self.basis(&circumstances, is_little) }
    }

    /// The order's way and the records, if nobody has measured them.
    fn fixed_ms(&self, circumstances: &Circumstances, commit_s: f64) -> u64 {
        let record_ms = ((commit_s * 1000.0) as u64).saturating_sub(self.round_trip_ms);
        circumstances.fixed_ms.unwrap_or(ORDER_ROUND_TRIPS * self.round_trip_ms + RECORDS * record_ms)
    }

    fn basis(&self, circumstances: &Circumstances, is_little: bool) -> Basis {
        match self.measured.link {
            LinkRate::AtLeast(_) if !is_little => Basis::LinkFaster,
            _ if !is_little && self.measured.payload_per_mille.is_none() => Basis::NoYield,
            _ if circumstances.fixed_ms.is_none() => Basis::NoHandover,
            _ if !is_little && self.measured.link_seen_ms.is_some_and(|seen_ms| circumstances.now_ms > seen_ms + STALE_MS) => {
                Basis::LinkLongAgo
            }
            _ => Basis::Measured,
        }
    }
}

#[cfg(test)]
mod tests;
