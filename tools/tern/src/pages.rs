//! Completions and man pages, from the same definitions as the command line.

use crate::cli::Cli;
use blockd_api::{ApiError, ErrorCode};
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::Path;

/// The script that teaches a shell our verbs.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tern", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes `tern.1` and a page for each verb.
pub fn man(dir: &Path) -> Result<(), ApiError> {
    let failed = |error: std::io::Error| {
        let message = format!("cannot write man pages to {}: {error}", dir.display());
        ApiError::new(ErrorCode::Io, message).with_hint("give a directory that exists and can be written")
    };
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_know_the_verbs() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(shell);
            assert!(script.contains("promote") && script.contains("discard-local"), "{shell}");
        }
    }

    #[test]
    fn there_is_a_man_page_for_each_verb() {
        let dir = tempfile::tempdir().unwrap();
        man(dir.path()).unwrap();
        for page in ["tern.1", "tern-promote.1", "tern-volume-create.1"] {
            assert!(dir.path().join(page).exists(), "{page}");
        }
        assert_eq!(man(&dir.path().join("missing")).unwrap_err().code, ErrorCode::Io);
    }
}
