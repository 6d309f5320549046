//! What others paid for, and the tests that keep us from it.
//!
//! Whoever writes such a test says so in its documentation, which begins with [`MARK`], and names it in the table of the threat model.
//! Neither is there without the other, so that a rule whose test is renamed or removed is noticed.

use std::collections::BTreeMap;

use super::{SourceFile, Violation};

const MARK: &str = "/// Lesson: ";
const PAGE: &str = "docs/failure-and-threat-model.md";
const HEADING: &str = "## What others paid for";

/// The table and the tests agree.
pub fn check(files: &[SourceFile]) -> Vec<Violation> {
    let Some(page) = files.iter().find(|file| file.path == PAGE) else { return Vec::new() };
    let mut tests: BTreeMap<&str, (&SourceFile, usize)> = BTreeMap::new();
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        for (index, name) in marked(file) {
            match name {
                Some(name) => drop(tests.insert(name, (file, index))),
                None => violations.push(Violation::at_line(file, index, "a lesson without a test behind it")),
            }
        }
    }
    let named = named(page);
    for (index, name) in named.iter().filter(|(_, name)| !tests.contains_key(name)) {
        violations.push(Violation::at_line(page, *index, format!("no test says that it is the lesson `{name}`")));
    }
    for (name, (file, index)) in tests.iter().filter(|(name, _)| named.iter().all(|(_, known)| known != *name)) {
        violations.push(Violation::at_line(file, *index, format!("{name} is not in the table \"{}\" of {PAGE}", &HEADING[3..])));
    }
    violations
}

/// The lines of a file that are marked, and the function behind each.
fn marked(file: &SourceFile) -> Vec<(usize, Option<&str>)> {
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    let marks = lines.iter().enumerate().filter(|(_, line)| line.starts_with(MARK));
    marks.map(|(index, _)| (index, lines[index..].iter().find_map(|line| function(line)))).collect()
}

fn function(line: &str) -> Option<&str> {
    let (_, behind) = line.strip_prefix("async ").unwrap_or(line).split_once("fn ").filter(|(before, _)| before.is_empty())?;
    behind.split(['(', '<']).next()
}

/// The words in code style in the last column of the table.
fn named(page: &SourceFile) -> Vec<(usize, &str)> {
    let section = page.text.lines().enumerate().skip_while(|(_, line)| *line != HEADING).skip(1);
    let rows = section.take_while(|(_, line)| !line.starts_with("## ")).filter(|(_, line)| line.starts_with('|'));
    let last = rows.filter_map(|(index, line)| Some((index, line.trim_end_matches('|').rsplit('|').next()?)));
    last.flat_map(|(index, cell)| cell.split('`').skip(1).step_by(2).map(move |name| (index, name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(table: &str, code: &str) -> Vec<String> {
        let page = format!("# Model\n\n{HEADING}\n\n| rule | tests |\n| --- | --- |\n{table}\n\n## Else\n\n| a | `b` |\n");
        let file = |path: &str, text: &str| SourceFile { path: path.to_owned(), text: text.to_owned() };
        check(&[file(PAGE, &page), file("a.rs", code)]).iter().map(ToString::to_string).collect()
    }

    // Put together, so that this file has no lesson of its own.
    fn test(name: &str) -> String {
        format!("{MARK}loops (1234).\n#[test]\nasync fn {name}() {{}}\n")
    }

    #[test]
    fn a_table_that_names_every_marked_test_is_sound() {
        assert_eq!(violations("| loops end | `one`, `two` |", &[test("one"), test("two")].concat()), Vec::<String>::new());
    }

    #[test]
    fn a_test_that_is_gone_or_not_marked_or_not_named_is_found() {
        assert!(violations("| loops end | `one` |", "#[test]\nfn one() {}\n")[0].contains("no test says"));
        assert!(
            violations("| loops end | `one` |", &[test("one"), test("two")].concat())[0].starts_with("a.rs:4: two is not in the table")
        );
        assert!(violations("", &format!("{MARK}nothing\n"))[0].contains("without a test"));
    }
}
