//! What came out, for people and for programs.

use crate::machine::Machine;
use crate::record::{Benchmark, Figure, Record, Target, Verdict, three_digits};
use crate::workshop::Scale;
use serde_json::{Value, json};

const HEADINGS: [&str; 7] = ["benchmark", "what", "median", "spread", "at least", "aim", "verdict"];

/// What can be measured.
pub fn list(group: &str, benchmarks: &[Benchmark]) -> String {
    let line = |name: &str, about: &str| format!("{name:<24} {about}\n");
    let all = line(group, "all of the following");
    benchmarks.iter().fold(all, |text, benchmark| text + &line(benchmark.name, benchmark.about))
}

/// A Markdown table with a row for each figure. Small sizes are not judged.
pub fn table(scale: Scale, records: &[Record]) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned), HEADINGS.map(|_| "---".to_owned())];
    for record in records {
        for (index, figure) in record.benchmark.figures.iter().enumerate() {
            rows.push(row(scale, record, index, figure));
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; HEADINGS.len()] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

fn row(scale: Scale, record: &Record, index: usize, figure: &Figure) -> [String; HEADINGS.len()] {
    let Some(summary) = record.summary(index) else {
        return [record.benchmark.name, figure.what, "not measured", "", "", "", ""].map(str::to_owned);
    };
    let bar = |of: fn(&Target) -> f64| figure.target.map_or_else(String::new, |target| figure.show(of(&target)));
    [
        record.benchmark.name.to_owned(),
        figure.what.to_owned(),
        figure.show(summary.median),
        format!("{}–{}", three_digits(summary.min), three_digits(summary.max)),
        bar(|target| target.at_least),
        bar(|target| target.aim),
        figure.target.filter(|_| scale == Scale::Full).map_or_else(String::new, |target| in_words(&target, summary.median)),
    ]
}

fn in_words(target: &Target, value: f64) -> String {
    match target.verdict(value) {
        Verdict::Aim => "reaches the aim".to_owned(),
        Verdict::AtLeast => "holds".to_owned(),
        Verdict::Short => {
            let percent = (value - target.at_least).abs() / target.at_least * 100.0;
            format!("{} by {percent:.0} %", if target.is_floor() { "too low" } else { "too high" })
        }
    }
}

/// The same with every round, and with the machine.
pub fn document(machine: &Machine, scale: Scale, records: &[Record]) -> Value {
    let figures = records.iter().flat_map(|record| {
        record.benchmark.figures.iter().enumerate().map(|(index, figure)| {
            let summary = record.summary(index);
            let verdict = figure.target.zip(summary).map(|(target, summary)| target.verdict(summary.median));
            json!({ "benchmark": record.benchmark.name, "figure": figure, "rounds": record.values(index), "summary": summary,
                "verdict": verdict })
        })
    });
    json!({ "machine": machine, "scale": scale, "figures": figures.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    static MEMORY: Benchmark = Benchmark {
        name: "memory",
        about: "",
        figures: &[
            Figure { what: "peak", unit: "MiB", target: Some(Target { at_least: 300.0, aim: 100.0 }) },
            Figure { what: "written", unit: "GiB", target: None },
        ],
        run: |_, _| Ok(()),
    };

    #[test]
    fn a_row_says_by_how_much_it_falls_short() {
        let mut record = Record::new(&MEMORY, 1);
        assert!(table(Scale::Full, &[Record::new(&MEMORY, 1)]).contains("not measured"));
        record.add([330.0, 10.0]);
        assert!(!table(Scale::Quick, std::slice::from_ref(&record)).contains("too"));
        let table = table(Scale::Full, &[record]);
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
        assert_eq!(rows[2][1..8], ["memory", "peak", "330 MiB", "330–330", "300 MiB", "100 MiB", "too high by 10 %"]);
        assert_eq!(rows[3][1..8], ["memory", "written", "10.0 GiB", "10.0–10.0", "", "", ""]);
    }
}
