//! Tools that the gate uses when they are there: on the path or in the cache.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::subprocess::{Subprocess, Verdict};
use crate::workspace::Workspace;

/// Building cargo-deny takes some minutes on two cores.
const INSTALL_LIMIT: Duration = Duration::from_secs(45 * 60);

/// What [`install`] brings: a cargo package, whose program has the same name.
const INSTALLED: [&str; 2] = ["cargo-deny", "mdbook"];

/// Finds a program in the cache or on the path.
pub fn find(workspace: &Workspace, program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(workspace.cache.join("bin")).chain(env::split_paths(&path));
    dirs.map(|dir| dir.join(program)).find(|candidate| candidate.is_file())
}

/// Installs what is missing into the cache.
pub fn install(workspace: &Workspace) -> Result<()> {
    for package in INSTALLED.into_iter().filter(|package| find(workspace, package).is_none()) {
        let verdict = Subprocess::new("cargo", INSTALL_LIMIT)
            .args(["install", "--locked", package, "--root"])
            .args([&workspace.cache])
            .env("CARGO_TARGET_DIR", workspace.cache.join("tools-build"))
            .run()?;
        match verdict {
            Verdict::Passed => {}
            Verdict::Failed { status } => bail!("cargo install {package}: {status}"),
            Verdict::TimedOut => bail!("cargo install {package} took longer than {} s", INSTALL_LIMIT.as_secs()),
        }
    }
    Ok(())
}
