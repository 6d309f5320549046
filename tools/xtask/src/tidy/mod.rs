//! The house style that no compiler checks, enforced over every file of the checkout.
//!
//! A rule is a function from one file to its violations; what needs the whole tree is in [`tree`]. Exceptions stand in
//! [`allowed`], each with its reason, and an exception that is no longer needed is a violation itself.

mod allowed;
mod file_rules;
mod lessons;
mod source_text;
mod tree;

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A file of the checkout as the rules see it.
#[derive(Debug)]
pub struct SourceFile {
    /// Relative to the root, with `/`.
    path: String,
    /// Its text; binary files are not looked at.
    text: String,
}

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    path: String,
    line: Option<usize>,
    message: String,
}

impl Violation {
    fn in_file(file: &SourceFile, message: impl Into<String>) -> Self {
        Self { path: file.path.clone(), line: None, message: message.into() }
    }

    fn at_line(file: &SourceFile, index: usize, message: impl Into<String>) -> Self {
        Self { path: file.path.clone(), line: Some(index + 1), message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path, self.message),
            None => write!(f, "{}: {}", self.path, self.message),
        }
    }
}

/// Checks every file that git tracks or would track.
pub fn run(root: &Path) -> Result<Vec<Violation>> {
    let files = read_files(root)?;
    let mut violations: Vec<_> = files.iter().flat_map(file_rules::check).collect();
    violations.extend(tree::check(&files));
    violations.extend(lessons::check(&files));
    violations.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    Ok(violations)
}

fn read_files(root: &Path) -> Result<Vec<SourceFile>> {
    let output = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("git ls-files")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    let listing = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut files = Vec::new();
    for path in listing.split('\0').filter(|path| !path.is_empty()) {
        match fs::read(root.join(path)) {
            Ok(bytes) => files.extend(String::from_utf8(bytes).ok().map(|text| SourceFile { path: path.to_owned(), text })),
            // Deleted in the working tree, not yet in the index.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read {path}")),
        }
    }
    Ok(files)
}
