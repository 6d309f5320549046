//! The state directory: made at the first start, used by one daemon at a time.
//!
//! | name | what |
//! | --- | --- |
//! | `lock` | held while a daemon runs |
//! | `site.key` | the site's key |
//! | `catalogue/` | RocksDB |
//! | `images/` | images that the daemon made |
//! | `spill/` | unnamed files with kept content |
//! | `journals/` | epochs on their way into standby images |
//! | `undo/` | what those images held before |
//! | `digests/` | what their blocks are known by |
//! | `old/` | what they held as primaries, until the operator lets it go |

use replicator::undo::LEVELS;
use rustix::fs::{FlockOperation, Mode};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// See the module's documentation.
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another daemon uses it.
    #[error("state_dir {0}: another blockd uses it: stop that one, or give this one a directory of its own")]
    Locked(PathBuf),
    /// It belongs to somebody else.
    #[error("state_dir {0}: it belongs to user {1}, not to the one that runs blockd: change its owner or choose another")]
    Foreign(PathBuf, u32),
    /// The system will not let us.
    #[error("state_dir {path}: {source}: it must be a directory that blockd can write to", path = path.display())]
    Io {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StateDir {
    /// Makes the directory if it is not there; says whether it was not.
    pub fn make(path: &Path) -> Result<bool, StateDirError> {
        let new = !path.exists();
        make_private_dir(path).map_err(|source| StateDirError::Io { path: path.into(), source })?;
        Ok(new)
    }

    /// Makes the directory if it is not there, and locks it.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let failed = |source: io::Error| StateDirError::Io { path: path.into(), source };
        make_private_dir(path).map_err(failed)?;
        let owner = path.metadata().map_err(failed)?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(StateDirError::Foreign(path.into(), owner));
        }
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join("lock")).map_err(failed)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StateDirError::Locked(path.into())),
            Err(error) => return Err(failed(error.into())),
        }
        for part in ["catalogue", "images", "spill", "journals", "undo", "digests", "old", "trials"] {
            make_private_dir(&path.join(part)).map_err(failed)?;
        }
        Ok(Self { path: path.into(), _lock: lock })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the catalogue lies.
    pub fn catalogue(&self) -> PathBuf {
        self.path.join("catalogue")
    }

    /// Where the image of the volume with this id goes.
    pub fn image(&self, id: &str) -> PathBuf {
        self.path.join("images").join(format!("{id}.raw"))
    }

    /// Where the journal of the volume with this id goes.
    pub fn journal(&self, id: &str) -> PathBuf {
        self.path.join("journals").join(id)
    }

    /// Where the undo of the volume with this id goes: a directory for each level.
    pub fn undo(&self, id: &str) -> [PathBuf; LEVELS] {
        std::array::from_fn(|level| self.path.join("undo").join(format!("{id}.{level}")))
    }

    /// Where the digests of the volume with this id go.
    pub fn digests(&self, id: &str) -> PathBuf {
        self.path.join("digests").join(id)
    }

    /// Where what is overwritten of the volume's old state goes.
    pub fn old(&self, id: &str) -> PathBuf {
        self.path.join("old").join(id)
    }

    /// Where it is kept what the image of the volume with this id held before a trial.
    pub fn trial(&self, id: &str) -> PathBuf {
        self.path.join("trials").join(id)
    }

    /// Where kept content is spilled to.
    pub fn spill(&self) -> PathBuf {
        self.path.join("spill")
    }
}

fn make_private_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) if path.is_dir() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let first = StateDir::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        assert!(matches!(StateDir::open(&path), Err(StateDirError::Locked(_))));
        drop(first);
        assert!(StateDir::open(&path).is_ok());
    }

    #[test]
    fn a_file_in_its_place_is_a_clear_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(StateDir::open(file.path()), Err(StateDirError::Io { .. })));
    }
}
