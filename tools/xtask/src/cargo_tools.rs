//! Tools that the gate uses besides cargo's own: found on the path or in the cache, installed into the cache when they are not.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::subprocess::{Subprocess, Verdict};
use crate::workspace::Workspace;

/// Two minutes were measured for the larger one, on two cores.
const INSTALL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// A cargo package whose program has the same name.
#[derive(Clone, Copy, Debug)]
pub struct CargoTool {
    /// The package and its program.
    pub name: &'static str,
    /// The version that is installed where there is none.
    version: &'static str,
}

/// Licences, duplicate and banned crates, advisories.
pub const CARGO_DENY: CargoTool = CargoTool { name: "cargo-deny", version: "0.20.2" };
/// Builds the Debian package.
pub const CARGO_DEB: CargoTool = CargoTool { name: "cargo-deb", version: "3.8.0" };
/// Builds the book.
pub const MDBOOK: CargoTool = CargoTool { name: "mdbook", version: "0.5.4" };

impl CargoTool {
    /// The one with this name.
    pub fn named(name: &str) -> Result<Self> {
        let known = [CARGO_DENY, CARGO_DEB, MDBOOK];
        known.into_iter().find(|tool| tool.name == name).with_context(|| format!("no tool of ours is called {name}"))
    }

    /// The program; installs it if need be.
    pub fn obtain(self, workspace: &Workspace) -> Result<PathBuf> {
        if let Some(program) = find(workspace, self.name) {
            return Ok(program);
        }
        let scratch = workspace.cache.join("tools-build");
        let package = format!("{}@{}", self.name, self.version);
        let verdict = Subprocess::new("cargo", INSTALL_LIMIT)
            .args(["install", "--quiet", "--locked", &package, "--root"])
            .args([&workspace.cache])
            .env("CARGO_TARGET_DIR", &scratch)
            .run()?;
        // Built once: what is left of it is worth nothing. A failure to remove it costs only room.
        let _ = std::fs::remove_dir_all(&scratch);
        match verdict {
            Verdict::Passed => Ok(workspace.cache.join("bin").join(self.name)),
            Verdict::Failed { status } => bail!("cargo install {package}: {status}"),
            Verdict::TimedOut => bail!("cargo install {package} took longer than {} s", INSTALL_LIMIT.as_secs()),
        }
    }
}

/// Finds a program in the cache or on the path.
pub fn find(workspace: &Workspace, program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(workspace.cache.join("bin")).chain(env::split_paths(&path));
    dirs.map(|dir| dir.join(program)).find(|candidate| candidate.is_file())
}
