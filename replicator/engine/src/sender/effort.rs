//! How hard content is compressed: as hard as the link gives time for, within a share of one core.

/// What the encoder is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Each message by itself, quickly: for a link that takes more than a core can compress.
    Quick,
    /// At this zstd level, with all that was sent before on the connection as history.
    WithHistory(i32),
}

/// Each step, and what a byte costs there against the first: measured on the files of a Debian system, with messages of 256 KiB.
const STEPS: [(Compression, u64); 4] =
    [(Compression::Quick, 10), (Compression::WithHistory(3), 18), (Compression::WithHistory(5), 27), (Compression::WithHistory(7), 50)];
/// Part of one core, in hundredths, that all volumes may use for it.
const BUDGET_PERCENT: u64 = 40;
/// From here on it is too much.
const TOO_MUCH_PERCENT: u64 = 60;
/// A decision needs so long, and so much content.
const WINDOW_MS: u64 = 250;
const WINDOW_BYTES: u64 = 256 << 10;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Effort {
    step: usize,
    began_ms: u64,
    /// Time that all volumes had spent when the window began.
    began_us: u64,
    content_bytes: u64,
    link_was_full: bool,
}

impl Effort {
    /// What the next message is compressed with.
    pub fn compression(&self) -> Compression {
        STEPS[self.step].0
    }

    /// There was something to send, and the link had no room.
    pub(super) fn handle_link_full(&mut self) {
        self.link_was_full = true;
    }

    /// A message of this much content was encoded; since the process began, all volumes together have spent `spent_us` on that.
    pub fn handle_encoded(&mut self, content_bytes: u64, spent_us: u64, now_ms: u64) {
        self.content_bytes += content_bytes;
        let elapsed_ms = now_ms.saturating_sub(self.began_ms);
        if elapsed_ms < WINDOW_MS || self.content_bytes < WINDOW_BYTES {
            return;
        }
        let percent = spent_us.saturating_sub(self.began_us) / 10 / elapsed_ms;
        self.step = self.next_step(percent);
        *self = Self { step: self.step, began_ms: now_ms, began_us: spent_us, ..Self::default() };
    }

    fn next_step(&self, percent: u64) -> usize {
        // Whoever compresses for want of room in the link, and leaves room, compresses too hard.
        let in_the_way = !self.link_was_full && percent > BUDGET_PERCENT;
        if percent > TOO_MUCH_PERCENT || in_the_way {
            return self.step.saturating_sub(1);
        }
        let next = self.step + 1;
        // History is worth its price on a link that is not full, too.
        let wanted = self.link_was_full || next == 1;
        let fits = STEPS.get(next).is_some_and(|(_, cost)| percent * cost / STEPS[self.step].1 <= BUDGET_PERCENT);
        if wanted && fits { next } else { self.step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a link and a core do with content without end, which shrinks to half: the step that is reached.
    fn settle(link_mib_s: u64, first_step_mib_s: u64) -> Compression {
        let (mut effort, mut now_us, mut spent_us) = (Effort::default(), 1_000_000, 0);
        for _ in 0..20_000 {
            let took_us = 1_000_000 / 4 * STEPS[effort.step].1 / STEPS[0].1 / first_step_mib_s;
            let sent_us = 1_000_000 / 8 / link_mib_s;
            spent_us += took_us;
            now_us += took_us.max(sent_us);
            if sent_us > took_us {
                effort.handle_link_full();
            }
            effort.handle_encoded(WINDOW_BYTES, spent_us, now_us / 1000);
        }
        effort.compression()
    }

    #[test]
    fn a_thin_link_is_worth_every_effort_and_a_fast_one_none() {
        assert_eq!(settle(1, 320), Compression::WithHistory(7));
        assert_eq!(settle(10, 320), Compression::WithHistory(7));
        assert_eq!(settle(30, 320), Compression::WithHistory(3));
        assert_eq!(settle(1000, 320), Compression::Quick);
    }

    #[test]
    fn a_core_that_others_use_is_given_back() {
        assert_eq!(settle(10, 40), Compression::Quick);
    }

    #[test]
    fn a_little_content_on_an_idle_link_gets_history_and_no_more() {
        let mut effort = Effort::default();
        for second in 1..100 {
            effort.handle_encoded(WINDOW_BYTES, second * 1_000, second * 1_000);
        }
        assert_eq!(effort.compression(), Compression::WithHistory(3));
    }
}
