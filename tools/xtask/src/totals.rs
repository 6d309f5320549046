//! Sums what the test runners report, for one closing line over all of them.

use std::ops::AddAssign;

/// Who ran the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    /// cargo-nextest.
    Nextest,
    /// The standard harness.
    Cargo,
}

/// Counts of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tests that ran and held.
    pub passed: u64,
    /// Tests that ran and did not hold, or that were ended at their limit.
    pub failed: u64,
    /// Tests that were filtered out or ignored.
    pub skipped: u64,
}

impl Totals {
    /// Reads a runner's closing line; anything else is `None`. What a failed test printed may look like the other runner's.
    pub fn from_closing_line(runner: Runner, line: &str) -> Option<Self> {
        let counts = match runner {
            Runner::Nextest => line.trim_start().strip_prefix("Summary [")?.split_once("run:")?.1,
            Runner::Cargo => line.strip_prefix("test result: ")?.split_once(". ")?.1,
        };
        let mut totals = Self::default();
        for part in counts.split([',', ';']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(kind)) = (words.next(), words.next()) else { continue };
            let Ok(count) = count.parse::<u64>() else { continue };
            match kind {
                "passed" => totals.passed += count,
                "failed" | "timed" | "exec" => totals.failed += count,
                "skipped" | "ignored" | "filtered" => totals.skipped += count,
                _ => {}
            }
        }
        Some(totals)
    }

    /// Counts tests as skipped that passed only because they left themselves out.
    pub fn leave_out(&mut self, count: u64) {
        let count = count.min(self.passed);
        self.passed -= count;
        self.skipped += count;
    }

    /// Tests that ran.
    pub fn run(self) -> u64 {
        self.passed + self.failed
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nextest_lines_are_read() {
        let line = "     Summary [   3.204s] 12 tests run: 9 passed (1 slow), 2 failed, 1 timed out, 4 skipped";
        assert_eq!(Totals::from_closing_line(Runner::Nextest, line), Some(Totals { passed: 9, failed: 3, skipped: 4 }));
    }

    #[test]
    fn lines_of_the_standard_harness_are_read() {
        let line = "test result: FAILED. 7 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.00s";
        assert_eq!(Totals::from_closing_line(Runner::Cargo, line), Some(Totals { passed: 7, failed: 1, skipped: 5 }));
        assert_eq!(Totals::from_closing_line(Runner::Nextest, line), None, "printed by a failed test");
    }

    #[test]
    fn other_lines_are_not_taken_for_results() {
        assert_eq!(Totals::from_closing_line(Runner::Cargo, "running 3 tests"), None);
        assert_eq!(Totals::from_closing_line(Runner::Nextest, "Summary of all"), None);
    }

    #[test]
    fn tests_that_left_themselves_out_did_not_pass() {
        let mut totals = Totals { passed: 3, failed: 1, skipped: 0 };
        totals.leave_out(2);
        assert_eq!(totals, Totals { passed: 1, failed: 1, skipped: 2 });
    }
}
