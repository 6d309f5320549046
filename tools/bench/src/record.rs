//! What is measured, what is asked of it, and what came out round by round.

use crate::workshop::Workshop;
use anyhow::Result;
use serde::Serialize;

/// Something that can be measured.
pub struct Benchmark {
    /// What the command line calls it.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    /// The figures of a round, in the order in which it records them.
    pub figures: &'static [Figure],
    /// Measures as many rounds as the workshop says.
    pub run: fn(&Workshop, &mut Record) -> Result<()>,
}

/// One figure of a round.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What it says.
    pub what: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What is asked for; `None` for a figure that explains another.
    pub target: Option<Target>,
}

/// What a figure should be. Less is better where `aim` is less than `at_least`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Target {
    /// The worst that will do.
    pub at_least: f64,
    /// What would be good.
    pub aim: f64,
}

/// How a figure stands to what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As good as the aim.
    Aim,
    /// Good enough.
    AtLeast,
    /// Not good enough.
    Short,
}

impl Target {
    /// Whether more is better.
    pub fn is_floor(&self) -> bool {
        self.aim > self.at_least
    }

    /// Where `value` stands.
    pub fn verdict(&self, value: f64) -> Verdict {
        let reaches = |bar: f64| if self.is_floor() { value >= bar } else { value <= bar };
        match () {
            () if reaches(self.aim) => Verdict::Aim,
            () if reaches(self.at_least) => Verdict::AtLeast,
            () => Verdict::Short,
        }
    }
}

/// The rounds of a benchmark.
pub struct Record {
    /// Of what.
    pub benchmark: &'static Benchmark,
    planned: u32,
    rounds: Vec<Vec<f64>>,
}

/// Median and spread of a figure's rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// The middle one, or between the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Record {
    /// No rounds yet, of so many.
    pub fn new(benchmark: &'static Benchmark, planned: u32) -> Self {
        Self { benchmark, planned, rounds: Vec::new() }
    }

    /// Adds a round, and shows it.
    pub fn add<const N: usize>(&mut self, values: [f64; N]) {
        let figures = self.benchmark.figures;
        assert_eq!(figures.len(), N, "a round of {} has all of its figures", self.benchmark.name);
        self.rounds.push(values.to_vec());
        let shown: Vec<_> = figures.iter().zip(values).map(|(figure, value)| format!("{}: {}", figure.what, figure.show(value))).collect();
        println!("{} {}/{}  {}", self.benchmark.name, self.rounds.len(), self.planned, shown.join(", "));
    }

    /// The values of a figure, round by round.
    pub fn values(&self, figure: usize) -> Vec<f64> {
        self.rounds.iter().map(|round| round[figure]).collect()
    }

    /// Median and spread of a figure; `None` without rounds.
    pub fn summary(&self, figure: usize) -> Option<Summary> {
        let mut values = self.values(figure);
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] };
        Some(Summary { median, min, max })
    }
}

impl Figure {
    /// The value with its unit.
    pub fn show(&self, value: f64) -> String {
        format!("{} {}", three_digits(value), self.unit)
    }
}

/// Three significant digits, but never fewer than the whole part has.
pub fn three_digits(value: f64) -> String {
    let whole_digits = if value.abs() < 1.0 { 1 } else { value.abs().log10().floor() as usize + 1 };
    format!("{value:.*}", 3usize.saturating_sub(whole_digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    static BENCHMARK: Benchmark =
        Benchmark { name: "test", about: "", figures: &[Figure { what: "speed", unit: "MiB/s", target: None }], run: |_, _| Ok(()) };

    #[test]
    fn the_median_is_the_middle_of_the_sorted_rounds() {
        let mut record = Record::new(&BENCHMARK, 4);
        assert_eq!(record.summary(0), None);
        for value in [5.0, 1.0, 9.0] {
            record.add([value]);
        }
        assert_eq!(record.summary(0), Some(Summary { median: 5.0, min: 1.0, max: 9.0 }));
        record.add([6.0]);
        assert_eq!(record.summary(0).unwrap().median, 5.5);
    }

    #[test]
    fn the_aim_says_which_way_is_better() {
        let (speed, memory) = (Target { at_least: 150.0, aim: 400.0 }, Target { at_least: 300.0, aim: 100.0 });
        assert_eq!([149.9, 150.0, 400.0].map(|value| speed.verdict(value)), [Verdict::Short, Verdict::AtLeast, Verdict::Aim]);
        assert_eq!([300.1, 300.0, 100.0].map(|value| memory.verdict(value)), [Verdict::Short, Verdict::AtLeast, Verdict::Aim]);
    }

    #[test]
    fn values_have_three_digits() {
        assert_eq!([0.0, 0.1234, 1.0, 92.66, 432.4, 23456.7].map(three_digits), ["0.00", "0.12", "1.00", "92.7", "432", "23457"]);
    }
}
