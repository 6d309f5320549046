//! Until when a primary may acknowledge: one word that every completion looks at.

use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// No lease is needed.
const UNLIMITED: u64 = u64::MAX;

/// See the module's documentation.
#[derive(Debug)]
pub struct Lease(AtomicU64);

impl Default for Lease {
    fn default() -> Self {
        Self(AtomicU64::new(UNLIMITED))
    }
}

impl Lease {
    /// Whether nothing may be acknowledged now. A load, and where a lease is needed at all a look at the clock, without a system call.
    pub fn has_run_out(&self) -> bool {
        let until_ms = self.0.load(SeqCst);
        until_ms != UNLIMITED && boot_ms() >= until_ms
    }

    /// Whether one is needed.
    pub fn is_needed(&self) -> bool {
        self.0.load(SeqCst) != UNLIMITED
    }

    /// A lease is needed, and valid until then; 0: there is none.
    pub fn set_until(&self, until_ms: u64) {
        self.0.store(until_ms.min(UNLIMITED - 1), SeqCst);
    }

    /// None is needed any more.
    pub fn lift(&self) {
        self.0.store(UNLIMITED, SeqCst);
    }

    /// What is left of it, in milliseconds; `None`: none is needed.
    pub fn left_ms(&self) -> Option<u64> {
        let until_ms = self.0.load(SeqCst);
        (until_ms != UNLIMITED).then(|| until_ms.saturating_sub(boot_ms()))
    }
}

/// The time that leases are counted in: milliseconds since the host started, sleep included. Nobody sets it.
pub fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds * 1000 + nanos / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_runs_out_unless_a_lease_is_needed() {
        let lease = Lease::default();
        assert!(!lease.has_run_out() && !lease.is_needed() && lease.left_ms().is_none());
        lease.set_until(0);
        assert!(lease.has_run_out() && lease.is_needed() && lease.left_ms() == Some(0));
        lease.set_until(boot_ms() + 60_000);
        assert!(!lease.has_run_out() && lease.left_ms() > Some(50_000));
        lease.lift();
        assert!(!lease.has_run_out());
    }
}
