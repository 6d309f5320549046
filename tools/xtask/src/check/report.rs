//! What became of each step, and how it is told.

use std::time::Duration;

use crate::totals::Totals;

/// How a step ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not hold, and why.
    Failed(String),
    /// It did not run, and why.
    LeftOut(String),
}

/// The steps so far.
#[derive(Debug, Default)]
pub struct Report {
    steps: Vec<(&'static str, Outcome, Duration)>,
}

impl Report {
    /// Records a step.
    pub fn add(&mut self, name: &'static str, outcome: Outcome, took: Duration) {
        self.steps.push((name, outcome, took));
    }

    /// Whether this step ran and did not hold.
    pub fn failed_step(&self, name: &str) -> bool {
        self.steps.iter().any(|(step, outcome, _)| *step == name && matches!(outcome, Outcome::Failed(_)))
    }

    /// Whether no step failed.
    pub fn all_well(&self) -> bool {
        self.steps.iter().all(|(_, outcome, _)| !matches!(outcome, Outcome::Failed(_)))
    }

    /// Prints a line a step, what was left out, and the sum of all tests as the last line.
    pub fn print(&self, notes: &[String], totals: Totals) {
        println!("\ngate");
        for (name, outcome, took) in &self.steps {
            println!("{}", line(name, outcome, *took));
        }
        for note in notes {
            println!("  note: {note}");
        }
        if totals != Totals::default() {
            let total: Duration = self.steps.iter().map(|(_, _, took)| took).sum();
            println!("{}", closing_line(totals, total));
        }
    }
}

fn line(name: &str, outcome: &Outcome, took: Duration) -> String {
    let (word, why) = match outcome {
        Outcome::Passed => ("ok", ""),
        Outcome::Failed(why) => ("FAILED", why.as_str()),
        Outcome::LeftOut(why) => ("left out", why.as_str()),
    };
    format!("  {word:<8}  {name:<12}  {:>7.1} s  {why}", took.as_secs_f64()).trim_end().to_owned()
}

/// In the words of cargo-nextest, which readers and machines know.
fn closing_line(totals: Totals, took: Duration) -> String {
    let failed = if totals.failed > 0 { format!(", {} failed", totals.failed) } else { String::new() };
    let Totals { passed, skipped, .. } = totals;
    format!("     Summary [{:>8.3}s] {} tests run: {passed} passed{failed}, {skipped} skipped", took.as_secs_f64(), totals.run())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::totals::Runner;

    #[test]
    fn one_failed_step_fails_the_gate_and_one_left_out_does_not() {
        let mut report = Report::default();
        report.add("format", Outcome::Passed, Duration::ZERO);
        report.add("book", Outcome::LeftOut("no mdbook".to_owned()), Duration::ZERO);
        assert!(report.all_well());
        report.add("clippy", Outcome::Failed("exit status: 101".to_owned()), Duration::ZERO);
        assert!(!report.all_well());
        assert!(report.failed_step("clippy") && !report.failed_step("book"));
    }

    #[test]
    fn the_closing_line_reads_back_as_the_same_totals() {
        for failed in [0, 2] {
            let totals = Totals { passed: 7, failed, skipped: 1 };
            assert_eq!(Totals::from_closing_line(Runner::Nextest, &closing_line(totals, Duration::from_millis(1500))), Some(totals));
        }
    }

    #[test]
    fn a_line_says_why() {
        let shown = line("clippy", &Outcome::Failed("exit status: 101".to_owned()), Duration::from_secs(3));
        assert_eq!(shown, "  FAILED    clippy            3.0 s  exit status: 101");
    }
}
