//! How many transfers an image's disk is given at once.
//!
//! Some disks, most of them virtual, report nothing before they have done all that they were given:
//!
//! ```text
//!   all at once    disk    ████████████                ████████████
//!                  client              ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒            ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒
//!   paced          disk    ████████·██████·████████·██████·████████·██████
//!                  client          ▒▒▒▒▒▒▒▒·▒▒▒▒▒▒·▒▒▒▒▒▒▒▒·▒▒▒▒▒▒·▒▒▒▒▒▒▒▒
//! ```
//!
//! Disk and client then take turns, each idle while the other works. Where that is seen, a part is kept here and given to the disk when it
//! reports: it has something to do while the client takes the answers. A disk that reports each transfer gets all of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What a disk that reports all at once is given, of what there is.
const SHARE: (usize, usize) = (5, 8);
/// What a disk reports within this time, or within this part of the time since its last report, it reports at once.
const AT_ONCE: Duration = Duration::from_micros(50);
const AT_ONCE_PART: u32 = 8;
/// Reports of all at once, less others, before that is believed; and the most of them that are remembered.
const BELIEVED: u32 = 4;
const REMEMBERED: u32 = 8;

/// See the module's documentation.
#[derive(Debug)]
pub struct Pace<T> {
    /// Transfers under way from which on it is looked at.
    deep: usize,
    /// The most that the disk is given.
    limit: usize,
    at_disk: usize,
    kept: VecDeque<T>,
    /// The most that there was at a time, at the disk and here, since the last judgement.
    most: usize,
    report: Option<Report>,
    /// Reports of all at once, less others.
    in_bulk: u32,
}

/// What a disk has reported at once.
#[derive(Debug)]
struct Report {
    began: Instant,
    /// How long it takes at most.
    at_once: Duration,
    /// How many it had then.
    of: usize,
    done: usize,
}

impl<T> Pace<T> {
    /// Looks at what happens while `deep` transfers or more are under way.
    pub fn new(deep: usize) -> Self {
        Self { deep, limit: usize::MAX, at_disk: 0, kept: VecDeque::new(), most: 0, report: None, in_bulk: 0 }
    }

    /// A transfer: to be started now, or else kept until [`Self::resume`].
    pub fn begin(&mut self, transfer: T) -> Option<T> {
        self.kept.push_back(transfer);
        self.most = self.most.max(self.at_disk + self.kept.len());
        self.resume()
    }

    /// One that was started is done, well or not.
    pub fn done(&mut self, now: Instant) {
        let mut at_once = AT_ONCE;
        if let Some(report) = self.report.take_if(|report| now.duration_since(report.began) > report.at_once) {
            at_once = at_once.max(now.duration_since(report.began) / AT_ONCE_PART);
            self.judge(&report);
        }
        self.report.get_or_insert(Report { began: now, at_once, of: self.at_disk, done: 0 }).done += 1;
        self.at_disk -= 1;
    }

    /// One that was kept, and is to be started now.
    pub fn resume(&mut self) -> Option<T> {
        let next = if self.at_disk < self.limit { self.kept.pop_front() } else { None };
        self.at_disk += usize::from(next.is_some());
        next
    }

    fn judge(&mut self, &Report { of, done, .. }: &Report) {
        if of < self.deep / 2 || self.most < self.deep {
            return;
        }
        let most = std::mem::replace(&mut self.most, self.at_disk + self.kept.len());
        self.in_bulk = match () {
            () if done * 8 >= of * 7 => (self.in_bulk + 1).min(REMEMBERED),
            () if done * 2 < of => self.in_bulk.saturating_sub(1),
            () => self.in_bulk,
        };
        self.limit = if self.in_bulk >= BELIEVED { most * SHARE.0 / SHARE.1 } else { usize::MAX };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEEP: usize = 16;

    /// A client that has `depth` transfers begun at any time, and a disk that reports up to `report` of them at once.
    struct Bench {
        pace: Pace<()>,
        at_disk: usize,
        begun: usize,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { pace: Pace::new(DEEP), at_disk: 0, begun: 0, now: Instant::now() }
        }

        /// Returns how many are kept at the end, and how many the disk has.
        fn turns(&mut self, turns: usize, depth: usize, report: usize) -> (usize, usize) {
            for _ in 0..turns {
                self.now += AT_ONCE * 2;
                for _ in 0..report.min(self.at_disk) {
                    self.pace.done(self.now);
                    (self.at_disk, self.begun) = (self.at_disk - 1, self.begun - 1);
                    self.start_kept();
                }
                for _ in self.begun..depth {
                    self.begun += 1;
                    self.at_disk += usize::from(self.pace.begin(()).is_some());
                }
                assert!(self.at_disk > 0, "kept, and nothing will be reported");
            }
            (self.begun - self.at_disk, self.at_disk)
        }

        fn start_kept(&mut self) {
            self.at_disk += std::iter::from_fn(|| self.pace.resume()).count();
        }
    }

    #[test]
    fn a_disk_that_reports_each_transfer_gets_all_of_them() {
        for report in [1, 4, 15] {
            assert_eq!(Bench::new().turns(1000, 32, report), (0, 32));
        }
    }

    #[test]
    fn of_what_is_for_a_disk_that_reports_all_at_once_a_part_is_kept_for_then() {
        let mut bench = Bench::new();
        assert_eq!(bench.turns(3, 32, 1000), (0, 32));
        assert_eq!(bench.turns(1000, 32, 1000), (12, 20));
    }

    #[test]
    fn a_disk_that_changes_its_ways_is_followed() {
        let mut bench = Bench::new();
        assert_eq!(bench.turns(100, 32, 1000), (12, 20));
        assert_eq!(bench.turns(100, 32, 2), (0, 32));
        assert_eq!(bench.turns(100, 128, 1000), (48, 80));
    }

    #[test]
    fn few_transfers_are_never_kept() {
        for depth in 1..DEEP {
            assert_eq!(Bench::new().turns(100, depth, 1000), (0, depth));
        }
    }
}
