//! Which files the daemon may touch. Landlock enforces it; this says it in words, before the kernel says "permission denied".
//!
//! Without a list, everything but what belongs to the operating system may be written, and everything be read. With one, only what lies
//! below its entries, the state directory and the directory of the admin socket.

use super::SandboxError;
use blockd_api::{ApiError, ErrorCode};
use std::path::{Path, PathBuf};

/// Directories of the operating system: for reading, never for writing.
pub(super) const SYSTEM: [&str; 11] = ["/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr"];

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// Without symbolic links; what lies below may be read and written.
    writable: Vec<PathBuf>,
    /// Whether what lies elsewhere may be read.
    reading: Reading,
}

/// What may be read beside what may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The system's directories.
    System,
    /// Everything.
    Everything,
}

/// A path that the daemon may not touch.
#[derive(Debug, thiserror::Error)]
#[error("{} lies outside of what blockd may touch", .0.display())]
pub struct OutsideRoots(PathBuf);

impl From<OutsideRoots> for ApiError {
    fn from(outside: OutsideRoots) -> Self {
        let hint = "add its directory to `paths` under [sandbox] in blockd's configuration, and restart blockd";
        Self::new(ErrorCode::Io, outside.to_string()).with_hint(hint)
    }
}

impl Roots {
    /// No limits.
    pub(super) fn everything() -> Self {
        Self { writable: vec!["/".into()], reading: Reading::Everything }
    }

    /// By the configuration; `own` directories always belong to it.
    pub(super) fn find(listed: Option<&[PathBuf]>, own: &[&Path]) -> Result<Self, SandboxError> {
        let (mut writable, reading) = match listed {
            Some(listed) => (canonical(listed)?, Reading::System),
            None => (outside_of_system(), Reading::Everything),
        };
        // One that is missing fails later, in words of its own.
        writable.extend(own.iter().filter_map(|path| path.canonicalize().ok()));
        writable.sort();
        writable.dedup();
        Ok(Self { writable, reading })
    }

    /// Whether a file or a socket may be made or written at this path.
    pub fn admit(&self, path: &Path) -> Result<(), OutsideRoots> {
        self.check(path, self.writable.iter().map(PathBuf::as_path))
    }

    /// Whether the file at this path may be read.
    pub fn admit_reading(&self, path: &Path) -> Result<(), OutsideRoots> {
        match self.reading {
            Reading::Everything => Ok(()),
            Reading::System => self.check(path, self.writable.iter().map(PathBuf::as_path).chain(SYSTEM.map(Path::new))),
        }
    }

    pub(super) fn writable(&self) -> &[PathBuf] {
        &self.writable
    }

    pub(super) fn reading(&self) -> Reading {
        self.reading
    }

    /// What cannot be looked up fails by itself, in words of its own.
    fn check<'a>(&self, path: &Path, mut roots: impl Iterator<Item = &'a Path>) -> Result<(), OutsideRoots> {
        let parent = || path.parent()?.canonicalize().ok();
        let Some(real) = path.canonicalize().ok().or_else(parent) else { return Ok(()) };
        if roots.any(|root| real.starts_with(root)) { Ok(()) } else { Err(OutsideRoots(path.to_owned())) }
    }
}

fn canonical(paths: &[PathBuf]) -> Result<Vec<PathBuf>, SandboxError> {
    paths.iter().map(|path| path.canonicalize().map_err(|source| SandboxError::Path { path: path.clone(), source })).collect()
}

/// The directories at the top that are there now.
fn outside_of_system() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/").into_iter().flatten().flatten();
    let real = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
    real.filter(|path| !SYSTEM.iter().any(|system| path == Path::new(system))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_list_only_the_system_is_closed_and_all_can_be_read() {
        let state = tempfile::tempdir().unwrap();
        let roots = Roots::find(None, &[state.path()]).unwrap();
        roots.admit(&state.path().join("vm.raw")).unwrap();
        roots.admit(Path::new("/tmp/new.raw")).unwrap();
        for closed in ["/etc/cron.d/x", "/usr/bin/env", "/proc/self/mem", "/bin/sh"] {
            assert!(roots.admit(Path::new(closed)).is_err(), "{closed}");
            roots.admit_reading(Path::new(closed)).unwrap();
        }
    }

    #[test]
    fn a_list_closes_everything_else_and_links_do_not_lead_out() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let roots = Roots::find(Some(&[inside.path().to_owned()]), &[]).unwrap();
        roots.admit(&inside.path().join("new.raw")).unwrap();
        let error = roots.admit(&outside.path().join("new.raw")).unwrap_err().to_string();
        assert!(error.contains(outside.path().to_str().unwrap()), "{error}");
        let link = inside.path().join("link");
        std::fs::write(outside.path().join("vm.raw"), "").unwrap();
        std::os::unix::fs::symlink(outside.path().join("vm.raw"), &link).unwrap();
        assert!(roots.admit(&link).is_err());
        assert!(roots.admit(&inside.path().join("../elsewhere.raw")).is_err());
        assert!(roots.admit_reading(&outside.path().join("vm.raw")).is_err());
        roots.admit_reading(Path::new("/etc/hostname")).unwrap();
    }

    #[test]
    fn a_list_that_names_nothing_real_is_refused_with_the_cure() {
        let error = Roots::find(Some(&["/no such directory".into()]), &[]).unwrap_err().to_string();
        assert!(error.starts_with("sandbox.paths: /no such directory") && error.contains("make it"), "{error}");
    }
}
