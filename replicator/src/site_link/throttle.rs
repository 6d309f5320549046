//! Keeps a stream below a rate.

use std::time::Duration;
use tokio::time::Instant;

/// What headers and acknowledgements add to a stream's bytes, in percent.
const OVERHEAD_PERCENT: u64 = 5;
/// Time that was not used may be made up for.
const BURST: Duration = Duration::from_millis(20);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// When everything sent so far would have left at the wanted rate.
    free_at: Instant,
}

impl Throttle {
    pub(crate) fn new() -> Self {
        Self { free_at: Instant::now() }
    }

    /// Waits until `len_bytes` more may be sent. No rate: at once.
    pub(crate) async fn pass(&mut self, len_bytes: usize, bits_per_second: Option<u64>) {
        let Some(rate) = bits_per_second.filter(|rate| *rate > 0) else { return };
        let now = Instant::now();
        self.free_at = self.free_at.max(now.checked_sub(BURST).unwrap_or(now));
        let wait_until = self.free_at;
        let wire_bits = len_bytes as u64 * 8 * (100 + OVERHEAD_PERCENT) / 100;
        self.free_at += Duration::from_secs_f64(wire_bits as f64 / rate as f64);
        tokio::time::sleep_until(wait_until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_and_no_rate_is_no_wait() {
        let mut throttle = Throttle::new();
        let begin = Instant::now();
        for _ in 0..101 {
            throttle.pass(10_000, None).await;
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
        for _ in 0..101 {
            throttle.pass(10_000, Some(8_400_000)).await;
        }
        let seconds = begin.elapsed().as_secs_f64();
        assert!((0.95..1.01).contains(&seconds), "{seconds}");
    }
}
