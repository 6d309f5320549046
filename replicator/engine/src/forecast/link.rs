//! What the link takes while there is more to send than it takes.
//!
//! A stream that begins after a pause is taken into buffers at once, and one that has little to send never meets the link: only what is taken
//! after a while of work without a break says how fast the link is. Until then it takes at least what single epochs took to get there.

/// Work without a break from here on has filled what buffers there are.
const SETTLED_MS: u64 = 250;
/// A sample is at least so long.
const SAMPLE_MS: u64 = 200;
/// The same for the end of a stretch of work.
const LAST_SAMPLE_MS: u64 = 100;
/// Time of work after which a rate has mostly forgotten what was before.
const MEMORY_MS: f64 = 2_000.0;
/// An epoch that is quicker was too small to tell anything.
const TELLING_MS: u64 = 20;
/// Of how many epochs the rate is a mean, about.
const EPOCHS: f64 = 4.0;
/// What headers and acknowledgements add to a stream's bytes, in percent.
const OVERHEAD_PERCENT: u64 = 5;
/// A stream that gets this part of its limit, in percent, is held by it and not by the link.
const HELD_PERCENT: u64 = 80;

/// See the module's documentation. Rates are of payload, in bytes a second.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    queued_bytes: u64,
    stretch: Option<Stretch>,
    free: Option<Rate>,
    held: Option<Rate>,
    epochs: Option<Rate>,
}

/// Work without a break.
#[derive(Clone, Debug)]
struct Stretch {
    began_ms: u64,
    /// Whether there is no more to send, for now, than is queued.
    ends: bool,
    sample: Option<(u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: f64,
    seen_ms: u64,
}

/// What is known of a link's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRate {
    /// Nothing was sent that would have filled it.
    Unknown,
    /// At least this: a limit held it, or there was not more to send.
    AtLeast(u64),
    /// This.
    Measured(u64),
}

impl LinkRate {
    /// Bytes a second, if anything is known.
    pub fn per_second(self) -> Option<u64> {
        match self {
            Self::Unknown => None,
            Self::AtLeast(rate) | Self::Measured(rate) => Some(rate),
        }
    }
}

/// How much payload a limit lets through.
fn under(limit_bits_per_second: u64) -> u64 {
    limit_bits_per_second / 8 * 100 / (100 + OVERHEAD_PERCENT)
}

impl Link {
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    pub fn handle_connected(&mut self) {
        (self.queued_bytes, self.stretch) = (0, None);
    }

    pub fn handle_enqueued(&mut self, len_bytes: u64, now_ms: u64) {
        if self.queued_bytes == 0 && self.stretch.as_ref().is_none_or(|stretch| stretch.ends) {
            self.stretch = Some(Stretch { began_ms: now_ms, ends: false, sample: None });
        }
        if let Some(stretch) = &mut self.stretch {
            stretch.ends = false;
        }
        self.queued_bytes += len_bytes;
    }

    /// There is nothing to send beside what is queued.
    pub fn handle_idle(&mut self) {
        if let Some(stretch) = &mut self.stretch {
            stretch.ends = true;
        }
    }

    /// The link took this, within this limit, in bits a second on the wire.
    pub fn handle_written(&mut self, len_bytes: u64, limit: Option<u64>, now_ms: u64) {
        self.queued_bytes = self.queued_bytes.saturating_sub(len_bytes);
        let is_over = self.queued_bytes == 0;
        let Some(stretch) = &mut self.stretch else { return };
        let Some((from_ms, bytes)) = &mut stretch.sample else {
            if now_ms.saturating_sub(stretch.began_ms) >= SETTLED_MS {
                stretch.sample = Some((now_ms, 0));
            }
            return;
        };
        *bytes += len_bytes;
        let elapsed_ms = now_ms.saturating_sub(*from_ms);
        let is_enough = elapsed_ms >= if is_over && stretch.ends { LAST_SAMPLE_MS } else { SAMPLE_MS };
        if is_enough {
            let per_second = *bytes as f64 * 1000.0 / elapsed_ms as f64;
            stretch.sample = Some((now_ms, 0));
            self.handle_sample(per_second, elapsed_ms, limit, now_ms);
        }
    }

    /// An epoch of so much was all there after so long, but for what any commit takes.
    pub fn handle_acknowledged(&mut self, bytes: u64, took_ms: u64, now_ms: u64) {
        if took_ms >= TELLING_MS {
            let seen = bytes as f64 * 1000.0 / took_ms as f64;
            let per_second = self.epochs.map_or(seen, |rate| rate.per_second + (seen - rate.per_second) / EPOCHS);
            self.epochs = Some(Rate { per_second, seen_ms: now_ms });
        }
    }

    fn handle_sample(&mut self, per_second: f64, elapsed_ms: u64, limit: Option<u64>, now_ms: u64) {
        let is_held = limit.is_some_and(|limit| per_second * 100.0 >= (under(limit) * HELD_PERCENT) as f64);
        let rate = if is_held { &mut self.held } else { &mut self.free };
        let weight = 1.0 - (-(elapsed_ms as f64) / MEMORY_MS).exp();
        let per_second = rate.map_or(per_second, |rate| rate.per_second + (per_second - rate.per_second) * weight);
        *rate = Some(Rate { per_second, seen_ms: now_ms });
    }

    /// What the link takes under this limit, in bits a second on the wire.
    pub fn rate(&self, limit: Option<u64>) -> LinkRate {
        let of = |rate: Rate| (rate.per_second as u64).max(1);
        let limit = limit.map(|limit| under(limit).max(1));
        match (self.free, self.held) {
            // A link that was slow once and has taken more since is not that slow any more.
            (Some(free), Some(held)) if held.seen_ms > free.seen_ms && held.per_second > free.per_second => at_least(of(held), limit),
            (Some(free), _) => LinkRate::Measured(limit.map_or(of(free), |limit| limit.min(of(free)))),
            (None, Some(held)) => at_least(of(held), limit),
            (None, None) => self.epochs.map_or(LinkRate::Unknown, |rate| at_least(of(rate), None)),
        }
    }

    /// When that was seen last.
    pub fn seen_ms(&self) -> Option<u64> {
        [self.free, self.held, self.epochs].into_iter().flatten().map(|rate| rate.seen_ms).max()
    }
}

fn at_least(held: u64, limit: Option<u64>) -> LinkRate {
    match limit {
        // The same limit, or a lower one.
        Some(limit) if limit * HELD_PERCENT / 100 <= held => LinkRate::Measured(limit.min(held)),
        _ => LinkRate::AtLeast(held),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: u64 = 64 << 10;

    /// Sends for so long over a link with this rate, with a buffer in front of it that takes a MiB at once; returns when it has ended.
    fn send(link: &mut Link, per_second: u64, span_ms: u64, limit: Option<u64>, from_ms: u64) -> u64 {
        let (window, buffer) = (4 << 20, 1 << 20);
        let (mut sent, mut taken, mut now_ms) = (0, 0, from_ms);
        while now_ms < from_ms + span_ms {
            while sent - taken < window {
                link.handle_enqueued(MESSAGE, now_ms);
                sent += MESSAGE;
            }
            now_ms += 1;
            while taken + MESSAGE <= buffer + (now_ms - from_ms) * per_second / 1000 {
                link.handle_written(MESSAGE, limit, now_ms);
                taken += MESSAGE;
            }
        }
        link.handle_idle();
        while taken < sent {
            now_ms += 1;
            while taken < sent && taken + MESSAGE <= buffer + (now_ms - from_ms) * per_second / 1000 {
                link.handle_written(MESSAGE, limit, now_ms);
                taken += MESSAGE;
            }
        }
        now_ms
    }

    fn assert_near(rate: LinkRate, expected: u64) {
        let LinkRate::Measured(rate) = rate else { panic!("{rate:?}") };
        assert!(rate.abs_diff(expected) * 20 <= expected, "{rate} is not {expected}");
    }

    #[test]
    fn a_link_that_was_full_is_known_and_what_its_buffers_took_at_once_is_not_its_rate() {
        let mut link = Link::default();
        assert_eq!(link.rate(None), LinkRate::Unknown);
        send(&mut link, 10_000_000, 1_000, None, 500);
        assert_near(link.rate(None), 10_000_000);
    }

    #[test]
    fn little_bits_of_work_say_nothing_of_a_link() {
        let mut link = Link::default();
        for now_ms in (0..60_000).step_by(5) {
            link.handle_enqueued(4096, now_ms);
            link.handle_idle();
            link.handle_written(4096, None, now_ms + 1);
        }
        assert_eq!(link.rate(None), LinkRate::Unknown);
    }

    #[test]
    fn a_link_that_changes_is_followed() {
        let mut link = Link::default();
        let now_ms = send(&mut link, 10_000_000, 5_000, None, 500);
        let now_ms = send(&mut link, 2_000_000, 8_000, None, now_ms + 60_000);
        assert_near(link.rate(None), 2_000_000);
        send(&mut link, 50_000_000, 8_000, None, now_ms + 60_000);
        assert_near(link.rate(None), 50_000_000);
    }

    #[test]
    fn a_link_that_never_was_full_takes_at_least_what_epochs_took() {
        let mut link = Link::default();
        link.handle_acknowledged(100_000, 10, 1_000);
        assert_eq!(link.rate(None), LinkRate::Unknown, "that may have been a buffer");
        (1..20).for_each(|epoch| link.handle_acknowledged(1_000_000, 200, epoch * 1_000));
        assert_eq!(link.rate(None), LinkRate::AtLeast(5_000_000));
        send(&mut link, 10_000_000, 1_000, None, 30_000);
        assert_near(link.rate(None), 10_000_000);
    }

    #[test]
    fn a_limit_bounds_the_rate_and_hides_the_link() {
        let mut link = Link::default();
        let limit = 8_400_000;
        let now_ms = send(&mut link, 1_000_000, 5_000, Some(limit), 500);
        assert_near(link.rate(Some(limit)), 1_000_000);
        assert_near(link.rate(Some(limit / 2)), 500_000);
        assert!(matches!(link.rate(None), LinkRate::AtLeast(rate) if rate > 900_000), "{:?}", link.rate(None));
        send(&mut link, 10_000_000, 3_000, None, now_ms + 1_000);
        assert_near(link.rate(None), 10_000_000);
        assert_near(link.rate(Some(limit)), 1_000_000);
    }
}
