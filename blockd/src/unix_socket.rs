//! Unix sockets with an owner and a mode.
//!
//! A socket file that a dead process left is replaced; one that somebody answers on, and anything that is not a socket, is not touched.
//! The file never has a wider mode than asked for, not even between its making and its `chmod`.

use rustix::{
    fs::{Gid, Mode, OFlags, Uid},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::{fs::FileTypeExt, net::UnixListener},
    },
    path::{Path, PathBuf},
};

/// Length of the kernel's queue of clients that nobody accepted yet.
const BACKLOG: i32 = 128;

/// Who may open a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Owner; `None`: the daemon's user.
    pub owner: Option<u32>,
    /// Group; `None`: the daemon's.
    pub group: Option<u32>,
    /// Permission bits.
    pub mode: u32,
}

impl SocketAccess {
    /// Nobody but the daemon's own user.
    pub const PRIVATE: Self = Self { owner: None, group: None, mode: 0o600 };
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process serves it.
    #[error("{0}: somebody answers on this socket already: stop that one, or choose another path")]
    InUse(PathBuf),
    /// The path is something else.
    #[error("{0}: exists and is not a socket: choose another path")]
    NotASocket(PathBuf),
    /// The path does not fit the kernel's address.
    #[error("{0}: longer than a unix socket's path may be: choose a shorter one")]
    TooLong(PathBuf),
    /// The directory is missing, or the system refuses.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// Which socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Removes the socket's file in the end, unless another one has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The file itself: while it is held, no other one can have its number.
    file: OwnedFd,
}

/// Binds and listens. The listener does not block.
pub fn bind(path: &Path, access: SocketAccess) -> Result<(UnixListener, SocketFile), SocketError> {
    remove_stale(path)?;
    let failed = |action| move |source: rustix::io::Errno| SocketError::Io { path: path.to_owned(), action, source: source.into() };
    let address = SocketAddrUnix::new(path).map_err(|_| SocketError::TooLong(path.to_owned()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed("make a socket"))?;
    // Linux gives the file the mode of the unbound socket, less the umask: nobody slips in before the chmod.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("set its mode"))?;
    rustix::net::bind(&socket, &address).map_err(failed("bind"))?;
    if access.owner.is_some() || access.group.is_some() {
        let (owner, group) = (access.owner.map(Uid::from_raw), access.group.map(Gid::from_raw));
        rustix::fs::chown(path, owner, group).map_err(failed("change its owner"))?;
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(access.mode)).map_err(failed("set its mode"))?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed("listen"))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(failed("look at it"))?;
    Ok((socket.into(), SocketFile { path: path.to_owned(), file }))
}

impl SocketFile {
    fn is_there(&self) -> rustix::io::Result<bool> {
        let (mine, now) = (rustix::fs::fstat(&self.file)?, rustix::fs::lstat(&self.path)?);
        Ok((mine.st_dev, mine.st_ino) == (now.st_dev, now.st_ino))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there() == Ok(true) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |action| move |source| SocketError::Io { path: path.to_owned(), action, source };
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at it")(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match probe(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed("remove the old one")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Connected, or a full backlog: somebody is there.
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

/// Connects without waiting: a hung owner with a full backlog must not hang us.
fn probe(path: &Path) -> io::Result<()> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(rustix::net::connect(&socket, &address)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_has_the_mode_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let _listener = bind(&path, SocketAccess { mode: 0o660, ..SocketAccess::PRIVATE }).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o660);
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (live, _file) = bind(&path, SocketAccess::PRIVATE).unwrap();
        assert!(matches!(bind(&path, SocketAccess::PRIVATE), Err(SocketError::InUse(_))));
        drop(live);
        assert!(path.exists());
        bind(&path, SocketAccess::PRIVATE).unwrap();
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(bind(&path, SocketAccess::PRIVATE), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
        let missing = bind(&dir.path().join("no/a.sock"), SocketAccess::PRIVATE).unwrap_err();
        assert!(missing.to_string().contains("cannot bind: No such file"), "{missing}");
    }
}
