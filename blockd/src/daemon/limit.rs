//! The limit that is in force: what the operator set, at the time that it is.
//!
//! One timer for each calendar: it sleeps until the limit changes, and looks at the clock on the wall now and then, because that is set
//! forwards and back. Whoever sends only reads what is in force.

use blockd_api::{Bandwidth, InForce, Rate};
use std::time::Duration;
use tokio::sync::watch;

/// A clock that was set is noticed in this time.
const LONGEST_NAP: Duration = Duration::from_secs(30);
/// Rounding must not make the timer spin.
const SHORTEST_NAP: Duration = Duration::from_millis(10);

/// See the module's documentation.
pub(super) struct Limit {
    wanted: watch::Sender<Bandwidth>,
    in_force: watch::Sender<Option<u64>>,
    clock: fn() -> u64,
}

impl Limit {
    /// What holds is known from the start.
    pub fn new(wanted: Bandwidth, clock: fn() -> u64) -> Self {
        let in_force = bits_per_second(wanted.at(clock()));
        Self { wanted: watch::Sender::new(wanted), in_force: watch::Sender::new(in_force), clock }
    }

    /// The operator wants something else: it holds on return.
    pub fn set(&self, wanted: Bandwidth) {
        self.wanted.send_replace(wanted);
        self.renew();
    }

    /// What holds now, in bits a second; `None`: no limit.
    pub fn in_force(&self) -> Option<u64> {
        *self.in_force.borrow()
    }

    /// The same, with its changes.
    pub fn watch(&self) -> watch::Receiver<Option<u64>> {
        self.in_force.subscribe()
    }

    /// Keeps in step with the calendar, for as long as it is polled.
    pub async fn follow(&self) {
        let mut wanted = self.wanted.subscribe();
        loop {
            wanted.borrow_and_update();
            let nap = self.renew();
            tokio::select! {
                () = async { match nap { Some(nap) => tokio::time::sleep(nap).await, None => std::future::pending().await } } => {}
                // It is sent by this very value, which is there.
                _ = wanted.changed() => {}
            }
        }
    }

    /// Looks what holds, and says when to look again.
    fn renew(&self) -> Option<Duration> {
        let now_ms = (self.clock)();
        let seen = self.wanted.borrow().at(now_ms);
        let limit = bits_per_second(seen);
        self.in_force.send_if_modified(|old| std::mem::replace(old, limit) != limit);
        seen.until_unix_ms.map(|until| Duration::from_millis(until.saturating_sub(now_ms)).clamp(SHORTEST_NAP, LONGEST_NAP))
    }
}

fn bits_per_second(seen: InForce) -> Option<u64> {
    seen.limit.map(Rate::bits_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
    use std::sync::{Arc, OnceLock};
    use tokio::time::Instant;

    const OFFICE: &str = "08:00-18:00=20Mbit,else=200Mbit";
    /// 22 November 2026, 07:59.
    const BEGIN_MS: u64 = 1_795_334_340_000;

    static BEGAN: OnceLock<Instant> = OnceLock::new();
    /// By how much the clock on the wall was set.
    static SET_BY_MS: AtomicI64 = AtomicI64::new(0);

    /// A clock that goes with tokio's, which is driven, and can be set.
    fn wall_ms() -> u64 {
        let passed_ms = BEGAN.get_or_init(Instant::now).elapsed().as_millis() as u64;
        (BEGIN_MS + passed_ms).saturating_add_signed(SET_BY_MS.load(SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_follows_the_calendar_the_clock_and_the_operator() {
        let (hour_ms, minute) = (3_600_000, Duration::from_secs(60));
        let limit = Arc::new(Limit::new(OFFICE.parse().unwrap(), wall_ms));
        let following = tokio::spawn({
            let limit = limit.clone();
            async move { limit.follow().await }
        });
        let mbit = || limit.in_force().map(|bits| bits / 1_000_000);
        assert_eq!(mbit(), Some(200));
        tokio::time::sleep(minute - Duration::from_millis(50)).await;
        assert_eq!(mbit(), Some(200));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(mbit(), Some(20), "to the minute");
        // Back to before it began, forwards to after it ended, and to where it was.
        for (set_by_ms, wanted) in [(-hour_ms, 200), (11 * hour_ms, 200), (0, 20)] {
            SET_BY_MS.store(set_by_ms, SeqCst);
            tokio::time::sleep(LONGEST_NAP + SHORTEST_NAP).await;
            assert_eq!(mbit(), Some(wanted), "set by {set_by_ms} ms");
        }
        limit.set("none".parse().unwrap());
        assert_eq!(mbit(), None, "at once");
        let mut watch = limit.watch();
        watch.borrow_and_update();
        limit.set(OFFICE.parse().unwrap());
        assert!(watch.has_changed().unwrap());
        tokio::time::sleep(10 * 60 * minute).await;
        assert_eq!(mbit(), Some(200), "18:00 has passed");
        following.abort();
    }
}
