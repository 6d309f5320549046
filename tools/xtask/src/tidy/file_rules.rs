//! Rules about one file.

use super::allowed::{FILE_LINES, FOREIGN_TEXT, GENERATED_FILES, GUEST_POINTERS, LONG_FILES, NAMELESS_MODULES, UNFINISHED_MARKS};
use super::source_text::code_only;
use super::{SourceFile, Violation};

/// Everything that can be said of a file alone.
pub fn check(file: &SourceFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    if file.path.rsplit('/').next().is_some_and(|name| !GENERATED_FILES.contains(&name)) {
        foreign_text(file, &mut violations);
    }
    if file.path.ends_with(".rs") {
        length(file, &mut violations);
        header(file, &mut violations);
        let code = code_only(&file.text);
        names(file, &code, &mut violations);
        unsafe_outside_sys(file, &code, &mut violations);
    }
    violations
}

fn foreign_text(file: &SourceFile, violations: &mut Vec<Violation>) {
    for (index, line) in file.text.lines().enumerate() {
        if let Some(text) = FOREIGN_TEXT.into_iter().find(|text| line.contains(text)) {
            violations.push(Violation::at_line(file, index, format!("\"{text}\" belongs to a machine or a network, not to the project")));
        }
        if file.path.ends_with(".rs")
            && let Some(mark) = UNFINISHED_MARKS.into_iter().find(|mark| line.contains(mark))
        {
            violations.push(Violation::at_line(file, index, format!("\"{mark}\": finish it, or write it down in docs/")));
        }
    }
}

fn length(file: &SourceFile, violations: &mut Vec<Violation>) {
    let lines = file.text.lines().count();
    let exception = LONG_FILES.iter().find(|long| long.path == file.path);
    let limit = exception.map_or(FILE_LINES, |long| long.lines);
    if lines > limit {
        let why = exception.map_or_else(String::new, |long| format!(" (its own limit, because {})", long.reason));
        violations.push(Violation::in_file(file, format!("{lines} lines, the limit is {limit}{why}")));
    } else if exception.is_some() && lines <= FILE_LINES {
        violations.push(Violation::in_file(file, "needs its exception for long files no more: remove it".to_owned()));
    }
}

/// A file of tests is about the module that it stands beside.
fn header(file: &SourceFile, violations: &mut Vec<Violation>) {
    if file.path.ends_with("/tests.rs") {
        return;
    }
    let first = file.text.lines().find(|line| !line.trim().is_empty());
    if first.is_some_and(|line| !line.starts_with("//!") && !line.starts_with("#!")) {
        violations.push(Violation::in_file(file, "no module header (`//!`): say what it is for, its invariants, what it leaves to others"));
    }
}

fn names(file: &SourceFile, code: &str, violations: &mut Vec<Violation>) {
    let message = |name: &str| format!("a module named \"{name}\" says nothing: name it by a noun of the domain");
    let stem_or_dir = |part: &str| part.strip_suffix(".rs").unwrap_or(part).to_owned();
    if let Some(name) = file.path.split('/').map(stem_or_dir).find(|name| NAMELESS_MODULES.contains(&name.as_str())) {
        violations.push(Violation::in_file(file, message(&name)));
    }
    for (index, line) in code.lines().enumerate() {
        let inline = words(line).skip_while(|word| *word != "mod").nth(1).filter(|_| line.contains('{'));
        if let Some(name) = inline.filter(|name| NAMELESS_MODULES.contains(name)) {
            violations.push(Violation::at_line(file, index, message(name)));
        }
    }
}

fn unsafe_outside_sys(file: &SourceFile, code: &str, violations: &mut Vec<Violation>) {
    if file.path.split('/').any(|part| part == "sys" || part == "sys.rs") {
        return;
    }
    for (index, line) in code.lines().enumerate() {
        if words(line).any(|word| word == "unsafe") {
            violations.push(Violation::at_line(file, index, "unsafe outside a module file named `sys`"));
        }
        if let Some(word) = words(line).find(|word| GUEST_POINTERS.contains(word)) {
            let message = format!("{word} outside a module file named `sys`: guest memory is copied, or lent to the kernel");
            violations.push(Violation::at_line(file, index, message));
        }
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        let file = SourceFile { path: path.to_owned(), text: text.to_owned() };
        check(&file).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_file_is_fine() {
        assert_eq!(messages("a/src/volume.rs", "//! Volumes.\nfn f() {}\n"), Vec::<String>::new());
    }

    #[test]
    fn the_length_limit_is_exact() {
        let of_lines = |lines: usize| format!("//! Long.\n{}", "\n".repeat(lines - 1));
        assert!(messages("a/src/a.rs", &of_lines(FILE_LINES)).is_empty());
        assert!(messages("a/src/a.rs", &of_lines(FILE_LINES + 1))[0].contains("the limit is"));
    }

    #[test]
    fn pointers_into_guest_memory_are_for_the_kernel_alone() {
        let text = "//! Vectors.\nfn f() { slice.ptr_guard_mut().as_ptr() }\n";
        assert!(messages("a/src/queue.rs", text)[0].starts_with("a/src/queue.rs:2: ptr_guard_mut outside"));
        assert!(messages("a/src/sys.rs", text).is_empty());
    }

    #[test]
    fn unsafe_code_is_found_only_where_it_is_code() {
        let text = "//! It has no unsafe code.\n#![forbid(unsafe_code)]\nconst S: &str = \"unsafe\";\n";
        assert!(messages("a/src/lib.rs", text).is_empty());
        let text = "//! X.\nfn f() { unsafe { g() } }\n";
        assert_eq!(messages("a/src/lib.rs", text), ["a/src/lib.rs:2: unsafe outside a module file named `sys`"]);
        assert!(messages("a/src/sys.rs", text).is_empty());
        assert!(messages("a/src/sys/ring.rs", text).is_empty());
    }

    #[test]
    fn names_that_say_nothing_are_refused() {
        assert!(messages("a/src/utils.rs", "//! X.\n")[0].contains("\"utils\""));
        assert!(messages("a/src/common/ring.rs", "//! X.\n")[0].contains("\"common\""));
        assert!(messages("a/src/lib.rs", "//! X.\npub(crate) mod helpers {\n}\n")[0].contains("lib.rs:2"));
    }

    #[test]
    fn headers_and_finished_work_are_asked_for() {
        assert!(messages("a/src/lib.rs", "fn f() {}\n")[0].contains("header"));
        assert!(messages("a/src/volume/tests.rs", "use super::*;\n").is_empty());
        let text = format!("//! X.\n// {}: later\n", UNFINISHED_MARKS[0]);
        assert!(messages("a/src/lib.rs", &text)[0].contains("finish it"));
    }

    #[test]
    fn text_of_one_machine_is_refused_in_any_file() {
        let text = format!("see {}me/x\n", FOREIGN_TEXT[1]);
        assert!(messages("docs/a.md", &text)[0].starts_with("docs/a.md:1:"));
        assert!(messages("Cargo.lock", &text).is_empty() && messages("fuzz/Cargo.lock", &text).is_empty());
    }
}
