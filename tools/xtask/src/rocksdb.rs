//! RocksDB's static archive, built once per machine.
//!
//! RocksDB takes twelve minutes on two cores, and cargo would build it again for each profile and each checkout. So it is built
//! once, as the locked package with the features that the workspace asks for, and kept in the cache; the variables of
//! [`Archive::environment`] make `librocksdb-sys` link it. Without them cargo builds RocksDB from source as ever.
//!
//! Invariant: an archive under its final name is whole. It is renamed into place after everything else, under a lock.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::subprocess::{Subprocess, Verdict};
use crate::workspace::Workspace;

/// The package that compiles RocksDB.
const PACKAGE: &str = "librocksdb-sys";
/// The archive's name, in cargo's build directory and in the cache.
const ARCHIVE: &str = "librocksdb.a";
/// What the archive was made from and by; absent when somebody put the archive there by hand.
const PROVENANCE: &str = "provenance";
/// Twelve minutes were measured on two cores.
const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);

/// An archive in the cache.
#[derive(Debug)]
pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// What cargo must see to link this archive.
    pub fn environment(&self) -> [(&'static str, OsString); 2] {
        [("ROCKSDB_LIB_DIR", self.dir.clone().into_os_string()), ("ROCKSDB_STATIC", OsString::from("1"))]
    }
}

/// The archive for the locked version; builds it if the cache has none that fits.
pub fn ensure_archive(workspace: &Workspace) -> Result<Archive> {
    let lock_file = fs::read_to_string(workspace.root.join("Cargo.lock")).context("Cargo.lock")?;
    let version = locked_version(&lock_file).with_context(|| format!("Cargo.lock names no {PACKAGE}"))?;
    let archive = Archive { dir: workspace.cache.join(format!("rocksdb-{version}")) };
    let provenance = provenance(workspace, &version)?;
    if fits(&archive.dir, &provenance)? {
        return Ok(archive);
    }
    fs::create_dir_all(&workspace.cache).with_context(|| format!("create {}", workspace.cache.display()))?;
    let lock_path = workspace.cache.join("rocksdb.lock");
    let lock = File::create(&lock_path).with_context(|| format!("create {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("lock {}", lock_path.display()))?;
    // Whoever held the lock before us has most likely built it.
    if !fits(&archive.dir, &provenance)? {
        eprintln!("RocksDB {version} is built once into {}: about twelve minutes on two cores", archive.dir.display());
        build(workspace, &archive.dir, &provenance)?;
    }
    Ok(archive)
}

/// The version of the package in a Cargo.lock.
fn locked_version(lock_file: &str) -> Option<String> {
    let name = format!("name = \"{PACKAGE}\"");
    let mut lines = lock_file.lines().skip_while(|line| *line != name);
    lines.nth(1)?.strip_prefix("version = \"")?.strip_suffix('"').map(str::to_owned)
}

/// One line each: package, features, C++ compiler. Another value means another archive.
fn provenance(workspace: &Workspace, version: &str) -> Result<String> {
    let tree = Command::new("cargo")
        .current_dir(&workspace.root)
        .args(["tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p} {f}", "--package", PACKAGE])
        .args(["--depth", "0"])
        .output()
        .context("cargo tree")?;
    ensure!(tree.status.success(), "cargo tree: {}", String::from_utf8_lossy(&tree.stderr).trim());
    let tree = String::from_utf8_lossy(&tree.stdout);
    let features = tree.split_whitespace().last().unwrap_or_default();
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| OsString::from("c++"));
    let output = Command::new(&compiler).arg("--version").output();
    let output = output.with_context(|| format!("cannot run the C++ compiler {} (package g++)", compiler.display()))?;
    let compiler = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
    Ok(format!("{PACKAGE} {version}\nfeatures {features}\ncompiler {compiler}\n"))
}

/// Whether the directory has an archive, and one of this provenance as far as it is known.
fn fits(dir: &Path, wanted: &str) -> Result<bool> {
    if !dir.join(ARCHIVE).is_file() {
        return Ok(false);
    }
    match fs::read_to_string(dir.join(PROVENANCE)) {
        Ok(found) => Ok(found == wanted),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("read {}", dir.join(PROVENANCE).display())),
    }
}

fn build(workspace: &Workspace, dir: &Path, provenance: &str) -> Result<()> {
    let scratch = workspace.cache.join("rocksdb-build");
    remove_if_there(&scratch)?;
    // The workspace's own lock file and features, but no debug information: it would be ten times the size of the code.
    let verdict = Subprocess::new("cargo", BUILD_LIMIT)
        .current_dir(&workspace.root)
        .args(["build", "--release", "--locked", "--package", PACKAGE, "--target-dir"])
        .args([&scratch])
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .envs([("ROCKSDB_COMPILE", OsString::from("1"))])
        .run()?;
    match verdict {
        Verdict::Passed => {}
        Verdict::Failed { status } => bail!("building {PACKAGE}: {status} (packages g++, clang and libclang-dev are needed)"),
        Verdict::TimedOut => bail!("building {PACKAGE} took longer than {} s", BUILD_LIMIT.as_secs()),
    }
    let built = find_archive(&scratch.join("release/build"))?;
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    // An old archive must not stand beside a new provenance if we die between the two renames.
    remove_if_there(&dir.join(ARCHIVE))?;
    fs::write(dir.join(PROVENANCE), provenance).with_context(|| format!("write {}", dir.join(PROVENANCE).display()))?;
    let unfinished = dir.join(format!("{ARCHIVE}.unfinished"));
    fs::copy(&built, &unfinished).with_context(|| format!("copy {} to {}", built.display(), unfinished.display()))?;
    File::open(&unfinished).and_then(|file| file.sync_all()).with_context(|| format!("sync {}", unfinished.display()))?;
    fs::rename(&unfinished, dir.join(ARCHIVE)).with_context(|| format!("rename {}", unfinished.display()))?;
    remove_if_there(&scratch)
}

/// The one archive that a build script of the package left below cargo's `build` directory.
fn find_archive(build_dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(build_dir).with_context(|| format!("read {}", build_dir.display()))?;
    for entry in entries {
        let candidate = entry.context("read a build directory")?.path().join("out").join(ARCHIVE);
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!("no {ARCHIVE} below {}: did {PACKAGE} change its layout?", build_dir.display())
}

fn remove_if_there(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_lock_file() {
        let lock =
            "[[package]]\nname = \"libc\"\nversion = \"0.2.1\"\n\n[[package]]\nname = \"librocksdb-sys\"\nversion = \"1.2.3+4.5.6\"\n";
        assert_eq!(locked_version(lock).as_deref(), Some("1.2.3+4.5.6"));
        assert_eq!(locked_version("[[package]]\nname = \"libc\"\nversion = \"0.2.1\"\n"), None);
    }

    #[test]
    fn an_archive_fits_unless_it_is_missing_or_made_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!fits(dir.path(), "a").unwrap(), "nothing there");
        fs::write(dir.path().join(ARCHIVE), "").unwrap();
        assert!(fits(dir.path(), "a").unwrap(), "put there by hand");
        fs::write(dir.path().join(PROVENANCE), "a").unwrap();
        assert!(fits(dir.path(), "a").unwrap());
        assert!(!fits(dir.path(), "b").unwrap(), "another compiler or feature set");
    }

    #[test]
    fn the_archive_is_found_among_build_scripts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find_archive(dir.path()).is_err());
        fs::create_dir_all(dir.path().join("lz4-sys-1/out")).unwrap();
        fs::create_dir_all(dir.path().join("librocksdb-sys-2/out")).unwrap();
        fs::write(dir.path().join("librocksdb-sys-2/out").join(ARCHIVE), "").unwrap();
        assert_eq!(find_archive(dir.path()).unwrap(), dir.path().join("librocksdb-sys-2/out").join(ARCHIVE));
    }
}
