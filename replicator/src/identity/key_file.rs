//! The key's file: read with its permissions checked, written once so that a crash leaves the whole file or none.

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A key file is a few hundred bytes; whatever is longer is something else.
const MAX_FILE_BYTES: u64 = 16 * 1024;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Others could have read the key.
    #[error("{} can be read by others (mode {mode:o}): if nobody did, run chmod 600 on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not PEM, or cut short.
    #[error("{} is damaged: put it back from a backup, or move it away and pair this site anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser met.
        source: pem::Error,
    },
    /// The file is PEM, but its key is not one.
    #[error("{} holds no usable key: put it back from a backup, or move it away and pair this site anew", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// No key could be made.
    #[error("cannot make a key pair")]
    Generate(#[source] rcgen::Error),
}

/// The key in `path`, or `None` if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<PrivateKeyDer<'static>>, IdentityError> {
    let failed = |source| IdentityError::Io { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    let mut pem = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut pem).map_err(failed)?;
    parse(path, &pem).map(Some)
}

/// The key in a PEM text; `path` is for the error.
pub(super) fn parse(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|source| IdentityError::Damaged { path: path.to_owned(), source })
}

/// Writes a new key file; it and its name are durable on return.
pub(super) fn create(path: &Path, pem: &str) -> Result<(), IdentityError> {
    write_and_rename(path, pem).map_err(|source| IdentityError::Io { action: "write", path: path.to_owned(), source })
}

fn write_and_rename(path: &Path, pem: &str) -> io::Result<()> {
    let unfinished = path.with_extension("key.new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
