//! Sums what the test runners report, for one closing line over all of them.

use std::ops::AddAssign;

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
    /// Reads a closing line of cargo-nextest or of the standard test harness; anything else is `None`.
    pub fn from_closing_line(line: &str) -> Option<Self> {
        let line = line.trim();
        let counts = if let Some(rest) = line.strip_prefix("Summary [") {
            rest.split_once("run:")?.1
        } else {
            line.strip_prefix("test result: ")?.split_once(". ")?.1
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
        assert_eq!(Totals::from_closing_line(line), Some(Totals { passed: 9, failed: 3, skipped: 4 }));
    }

    #[test]
    fn lines_of_the_standard_harness_are_read() {
        let line = "test result: FAILED. 7 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.00s";
        assert_eq!(Totals::from_closing_line(line), Some(Totals { passed: 7, failed: 1, skipped: 5 }));
    }

    #[test]
    fn other_lines_are_not_taken_for_results() {
        assert_eq!(Totals::from_closing_line("running 3 tests"), None);
        assert_eq!(Totals::from_closing_line("Summary of all"), None);
    }
}
