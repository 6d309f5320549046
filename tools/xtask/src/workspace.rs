//! Where things are: the checkout, the cache that outlives it, and the build directory.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The three places that every task works with, all absolute.
#[derive(Debug)]
pub struct Workspace {
    /// The root of the checkout.
    pub root: PathBuf,
    /// What is slow to make and worth keeping: `$TERN_CACHE`, else `$XDG_CACHE_HOME/tern`, else `~/.cache/tern`.
    pub cache: PathBuf,
    /// Cargo's build directory.
    pub target: PathBuf,
}

impl Workspace {
    /// Finds the checkout that this process was started for.
    pub fn locate() -> Result<Self> {
        // Read when it runs, not when it was compiled: several checkouts may share one build directory.
        let start = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => env::current_dir().context("no current directory")?,
        };
        let root = start.ancestors().find(|dir| dir.join("Cargo.lock").is_file()).map(Path::to_path_buf);
        let root = root.with_context(|| format!("no Cargo.lock in or above {}", start.display()))?;
        let target = non_empty("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { cache: cache_dir()?, target, root })
    }

    /// The same places for whatever a task starts, so that no program has to find them again.
    pub fn environment(&self) -> [(&'static str, OsString); 2] {
        [("TERN_CACHE", self.cache.clone().into()), ("CARGO_TARGET_DIR", self.target.clone().into())]
    }
}

fn cache_dir() -> Result<PathBuf> {
    let dir = if let Some(dir) = non_empty("TERN_CACHE") {
        dir
    } else if let Some(dir) = non_empty("XDG_CACHE_HOME") {
        dir.join("tern")
    } else {
        let home = non_empty("HOME").context("none of TERN_CACHE, XDG_CACHE_HOME and HOME is set: set TERN_CACHE to a directory")?;
        home.join(".cache/tern")
    };
    std::path::absolute(&dir).with_context(|| format!("cache directory {}", dir.display()))
}

fn non_empty(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
