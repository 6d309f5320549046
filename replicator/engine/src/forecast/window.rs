//! Sums over the last minute, second by second.

/// Seconds that are kept.
const SECONDS: usize = 64;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) struct Window {
    seconds: [u64; SECONDS],
    newest_s: u64,
    began_ms: Option<u64>,
}

impl Default for Window {
    fn default() -> Self {
        Self { seconds: [0; SECONDS], newest_s: 0, began_ms: None }
    }
}

impl Window {
    /// Adds to the second that is now; even nothing says that there was nothing.
    pub fn add(&mut self, amount: u64, now_ms: u64) {
        self.began_ms.get_or_insert(now_ms);
        let now_s = now_ms / 1000;
        for second in (self.newest_s + 1..=now_s).rev().take(SECONDS) {
            self.seconds[second as usize % SECONDS] = 0;
        }
        self.newest_s = self.newest_s.max(now_s);
        self.seconds[self.newest_s as usize % SECONDS] += amount;
    }

    /// What came within the last `span_s` seconds, the one that has begun included.
    pub fn sum(&self, span_s: u64, now_ms: u64) -> u64 {
        let now_s = now_ms / 1000;
        let first = (now_s + 1).saturating_sub(span_s.min(SECONDS as u64)).max((self.newest_s + 1).saturating_sub(SECONDS as u64));
        (first..=self.newest_s).map(|second| self.seconds[second as usize % SECONDS]).sum()
    }

    /// The same for a second of them; 0 before there was anything to see. The second that has begun does not count: so it changes once a second.
    pub fn per_second(&self, span_s: u64, now_ms: u64) -> u64 {
        let (Some(began_ms), Some(last_s)) = (self.began_ms, (now_ms / 1000).checked_sub(1)) else { return 0 };
        let now = if self.newest_s > last_s { self.seconds[self.newest_s as usize % SECONDS] } else { 0 };
        let seen_ms = (span_s * 1000).min(((last_s + 1) * 1000).saturating_sub(began_ms)).max(1000);
        (self.sum(span_s + 1, now_ms) - now) * 1000 / seen_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_seen_as_it_is_over_any_span_and_after_any_pause() {
        let mut window = Window::default();
        (0..100_000).step_by(10).for_each(|now_ms| window.add(50, now_ms));
        for span_s in [5, 10, 60] {
            let rate = window.per_second(span_s, 99_990);
            assert!((4_900..=5_100).contains(&rate), "{span_s} s: {rate}");
        }
        assert_eq!(window.sum(10, 200_000), 0);
        window.add(7, 5_000_000);
        assert_eq!(window.sum(60, 5_000_000), 7);
    }

    #[test]
    fn a_short_life_is_not_taken_for_a_long_pause() {
        let mut window = Window::default();
        (70_000..72_000).step_by(10).for_each(|now_ms| window.add(50, now_ms));
        assert!((4_900..=5_100).contains(&window.per_second(60, 72_000)));
    }
}
