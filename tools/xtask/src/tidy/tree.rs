//! Rules about the tree as a whole: manifests, pure crates, the book's table of contents, exceptions without a file.

use super::allowed::{LONG_FILES, PURE_CRATES};
use super::{SourceFile, Violation};

/// The book's sources.
const BOOK: &str = "docs/";
const BOOK_SUMMARY: &str = "docs/SUMMARY.md";

/// Everything that needs more than one file.
pub fn check(files: &[SourceFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    manifests(files, &mut violations);
    pure_crates(files, &mut violations);
    book(files, &mut violations);
    for long in LONG_FILES.iter().filter(|long| find(files, long.path).is_none()) {
        violations.push(missing(long.path, "has an exception for long files, but is not there"));
    }
    violations
}

fn manifests(files: &[SourceFile], violations: &mut Vec<Violation>) {
    // A workspace of its own, such as one for fuzz targets, has nothing to inherit from.
    let in_ours = |file: &&SourceFile| file.path.ends_with("/Cargo.toml") && !file.text.lines().any(|line| line.starts_with("[workspace]"));
    for file in files.iter().filter(in_ours) {
        let mut lines = file.text.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
        if lines.next() != Some("workspace = true") && file.text.contains("[package]") {
            violations.push(Violation::in_file(file, "no `[lints]` with `workspace = true`"));
        }
    }
}

fn pure_crates(files: &[SourceFile], violations: &mut Vec<Violation>) {
    for pure in PURE_CRATES {
        let path = format!("{pure}/src/lib.rs");
        if !find(files, &path).is_some_and(|file| file.text.contains("#![forbid(unsafe_code)]")) {
            violations.push(missing(&path, "a pure crate says `#![forbid(unsafe_code)]`"));
        }
        let path = format!("{pure}/clippy.toml");
        if find(files, &path).is_none() {
            violations.push(missing(&path, "a pure crate bans the clock, threads, I/O and hash maps in its own clippy.toml"));
        }
    }
}

/// mdbook leaves out a chapter that its table of contents does not name, and makes an empty one for a name without a file.
fn book(files: &[SourceFile], violations: &mut Vec<Violation>) {
    let Some(summary) = find(files, BOOK_SUMMARY) else {
        violations.push(missing(BOOK_SUMMARY, "the book has no table of contents"));
        return;
    };
    let linked: Vec<&str> = summary.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    for (index, line) in summary.text.lines().enumerate() {
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| find(files, &format!("{BOOK}{target}")).is_none()) {
            violations.push(Violation::at_line(summary, index, format!("{target} is not there")));
        }
    }
    let chapters = files.iter().filter(|file| file.path.starts_with(BOOK) && file.path.ends_with(".md") && file.path != BOOK_SUMMARY);
    for file in chapters.filter(|file| !linked.contains(&&file.path[BOOK.len()..])) {
        violations.push(Violation::in_file(file, format!("is not in {BOOK_SUMMARY}")));
    }
}

fn find<'a>(files: &'a [SourceFile], path: &str) -> Option<&'a SourceFile> {
    files.iter().find(|file| file.path == path)
}

fn missing(path: &str, message: &str) -> Violation {
    Violation { path: path.to_owned(), line: None, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(changes: &[(&str, &str)]) -> Vec<String> {
        let sound = [
            ("a/Cargo.toml", "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"),
            ("replicator/engine/src/lib.rs", "//! X.\n#![forbid(unsafe_code)]\n"),
            ("replicator/engine/clippy.toml", ""),
            ("docs/SUMMARY.md", "- [Start](start.md)\n"),
            ("docs/start.md", ""),
        ];
        let unchanged = sound.iter().filter(|(path, _)| changes.iter().all(|(changed, _)| changed != path));
        let files = unchanged.chain(changes).map(|(path, text)| SourceFile { path: (*path).to_owned(), text: (*text).to_owned() });
        check(&files.collect::<Vec<_>>()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_sound_tree_has_no_violations() {
        assert_eq!(tree(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_crate_without_the_shared_lints_is_found() {
        assert!(tree(&[("a/Cargo.toml", "[package]\nname = \"a\"\n")])[0].starts_with("a/Cargo.toml"));
        assert!(tree(&[("a/Cargo.toml", "[package]\n[lints]\nworkspace = false\n")])[0].starts_with("a/Cargo.toml"));
        assert!(tree(&[("a/Cargo.toml", "[package]\nname = \"a\"\n\n[workspace]\n")]).is_empty());
    }

    #[test]
    fn a_pure_crate_must_forbid_unsafe_code() {
        assert!(tree(&[("replicator/engine/src/lib.rs", "//! X.\n")])[0].contains("forbid"));
    }

    #[test]
    fn chapters_and_table_of_contents_must_agree() {
        assert!(tree(&[("docs/lost.md", "")])[0].starts_with("docs/lost.md"));
        assert!(tree(&[("docs/SUMMARY.md", "- [Start](start.md)\n- [Gone](gone.md)\n")])[0].starts_with("docs/SUMMARY.md:2: gone.md"));
    }
}
