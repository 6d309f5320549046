//! Which recovery points are kept, for how long, and at what distance.
//!
//! A point's age is the time from its cut to the newest one's, by the primary's clock: while no primary sends, nothing gets older. A clock that
//! is ahead of the standby's own makes nothing older either: points are for the day on which the primary is wrong.

use std::ops::Range;

/// Levels of undo: all points, fewer, fewest.
pub const LEVELS: usize = 3;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// An older point goes.
    pub span_ms: u64,
    /// Undo on disk: the oldest points go until it is no more.
    pub max_bytes: u64,
    /// For each level but the first: from which age on points are thinned to it, and to one in how long.
    pub thin: [Thin; LEVELS - 1],
    /// So many points that are not thinned yet make one in a millisecond of those to come, the first; twice as many, one in two, and so on. At
    /// 100, an hour has no more than 19,000, however often a mode commits; with a point a second the span stays at 64 ms.
    pub crowd: u64,
}

/// One point in `every_ms`, from the age of `after_ms` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thin {
    /// From this age on.
    pub after_ms: u64,
    /// One point is kept in this time.
    pub every_ms: u64,
}

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

impl Default for Keep {
    /// A day of points in at most 50 GiB: all for an hour, then one a minute for six, then one an hour.
    fn default() -> Self {
        Self {
            span_ms: 24 * HOUR_MS,
            max_bytes: 50 << 30,
            thin: [Thin { after_ms: HOUR_MS, every_ms: MINUTE_MS }, Thin { after_ms: 6 * HOUR_MS, every_ms: HOUR_MS }],
            crowd: 100,
        }
    }
}

impl Keep {
    /// Whether a cut is a point of its own after an earlier one, with so many before it. A clock that was set back makes none disappear. The
    /// time is divided in the same way whatever was kept before: members of a group, which are cut at the same times, keep the same cuts.
    pub fn is_apart(&self, earlier_ms: u64, later_ms: u64, points: usize) -> bool {
        let least_ms = points as u64 / self.crowd.max(1);
        let span_ms = least_ms.next_power_of_two();
        later_ms < earlier_ms || least_ms == 0 || earlier_ms / span_ms != later_ms / span_ms
    }

    /// Whether a point cut then goes when the newest is cut at `newest_ms`.
    pub fn is_over(&self, cut_ms: u64, newest_ms: u64) -> bool {
        newest_ms.saturating_sub(cut_ms) > self.span_ms
    }
}

impl Thin {
    /// The time of which the point cut at `cut_ms` is kept alone, if it is so old that it may be thinned.
    pub fn span_of(&self, cut_ms: u64, newest_ms: u64) -> Option<Range<u64>> {
        let start = cut_ms - cut_ms % self.every_ms.max(1);
        let end = start.saturating_add(self.every_ms.max(1));
        (end.saturating_add(self.after_ms) <= newest_ms).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_thinned_once_all_of_it_is_old_enough() {
        let thin = Thin { after_ms: HOUR_MS, every_ms: MINUTE_MS };
        assert_eq!(thin.span_of(30_000, HOUR_MS + MINUTE_MS - 1), None);
        assert_eq!(thin.span_of(30_000, HOUR_MS + MINUTE_MS), Some(0..MINUTE_MS));
    }

    #[test]
    fn the_more_points_there_are_the_farther_apart_are_new_ones() {
        let keep = Keep::default();
        assert!(keep.is_apart(7, 7, 99));
        assert!(!keep.is_apart(7, 127, 10_000) && keep.is_apart(7, 128, 10_000) && keep.is_apart(127, 128, 10_000));
    }

    #[test]
    fn a_clock_that_is_set_back_ends_no_point() {
        let keep = Keep::default();
        assert!(keep.is_apart(10 * HOUR_MS, 9 * HOUR_MS, 10_000));
        assert!(!keep.is_over(10 * HOUR_MS, 9 * HOUR_MS));
        assert_eq!(keep.thin[0].span_of(10 * HOUR_MS, 9 * HOUR_MS), None);
    }
}
