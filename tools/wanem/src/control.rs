//! The control socket: lines in, one line out for each. It knows sockets and lines; what commands mean is the WAN's.
//!
//! Clients are few, their lines short, and none can hold up the relay: nothing here blocks, and who does not read its
//! answers is disconnected.

use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// Clients at a time; one more is closed at once.
pub const MAX_CLIENTS: usize = 16;
/// The longest line; a client that sends a longer one is disconnected.
const MAX_LINE_BYTES: usize = 256;

/// The listening socket and its clients. Its path is removed when it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    clients: [Option<Connection>; MAX_CLIENTS],
}

/// What became of a client after it was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It stays.
    Open,
    /// It went, or was sent away.
    Closed,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    line: Vec<u8>,
}

impl Server {
    /// Listens on `path`. A socket that nobody serves any more is replaced.
    ///
    /// # Errors
    /// [`Error::ControlInUse`] if somebody does; [`Error::Io`].
    pub fn bind(path: &Path) -> Result<Self> {
        let failed = || Error::io(format!("control socket {}", path.display()));
        if UnixStream::connect(path).is_ok() {
            return Err(Error::ControlInUse { path: path.into() });
        }
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| {
            use std::os::unix::fs::FileTypeExt;
            found.file_type().is_socket()
        });
        if is_socket {
            std::fs::remove_file(path).map_err(failed())?;
        }
        let listener = UnixListener::bind(path).map_err(failed())?;
        listener.set_nonblocking(true).map_err(failed())?;
        Ok(Self { listener, path: path.into(), clients: std::array::from_fn(|_| None) })
    }

    /// The descriptor that becomes readable when [`Self::accept`] has something to do.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Takes one waiting client in: its slot, and the descriptor that becomes readable when it speaks. `None` if there
    /// is none, or no room.
    pub fn accept(&mut self) -> Option<(usize, BorrowedFd<'_>)> {
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        let slot = self.clients.iter().position(Option::is_none)?;
        let connection = self.clients[slot].insert(Connection { stream, line: Vec::new() });
        Some((slot, connection.stream.as_fd()))
    }

    /// Reads what the client in `slot` sent and answers each whole line with `answer`'s line.
    pub fn serve(&mut self, slot: usize, answer: impl FnMut(&str) -> String) -> Served {
        let Some(place) = self.clients.get_mut(slot) else { return Served::Closed };
        let served = place.as_mut().map_or(Served::Closed, |connection| connection.serve(answer));
        if served == Served::Closed {
            *place = None;
        }
        served
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing can be done about a path that somebody else removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Connection {
    fn serve(&mut self, mut answer: impl FnMut(&str) -> String) -> Served {
        let mut chunk = [0; MAX_LINE_BYTES];
        let len = match self.stream.read(&mut chunk) {
            Ok(0) => return Served::Closed,
            Ok(len) => len,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return Served::Open,
            Err(_) => return Served::Closed,
        };
        for &byte in &chunk[..len] {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > MAX_LINE_BYTES {
                    return Served::Closed;
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let reply = format!("{}\n", answer(&String::from_utf8_lossy(&line)));
            if self.stream.write_all(reply.as_bytes()).is_err() {
                return Served::Closed;
            }
        }
        Served::Open
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    fn server(name: &str) -> Server {
        Server::bind(&std::env::temp_dir().join(format!("wanem-test-{}-{name}.sock", std::process::id()))).unwrap()
    }

    /// The listener is non-blocking, but a connected peer is in its backlog already.
    fn connected(server: &mut Server) -> (UnixStream, usize) {
        let peer = UnixStream::connect(&server.path).unwrap();
        let (slot, _) = server.accept().unwrap();
        (peer, slot)
    }

    #[test]
    fn whole_lines_are_answered_and_halves_wait() {
        let mut server = server("lines");
        let (mut peer, slot) = connected(&mut server);
        peer.write_all(b"one\ntw").unwrap();
        assert_eq!(server.serve(slot, |line| format!("<{line}>")), Served::Open);
        peer.write_all(b"o\n").unwrap();
        assert_eq!(server.serve(slot, |line| format!("<{line}>")), Served::Open);
        let mut lines = BufReader::new(peer).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "<one>");
        assert_eq!(lines.next().unwrap().unwrap(), "<two>");
    }

    #[test]
    fn an_endless_line_ends_the_client_and_only_it() {
        let mut server = server("endless");
        let (mut rude, rude_slot) = connected(&mut server);
        let (mut polite, polite_slot) = connected(&mut server);
        rude.write_all(&[b'x'; MAX_LINE_BYTES]).unwrap();
        assert_eq!(server.serve(rude_slot, |_| String::new()), Served::Open, "the limit itself is allowed");
        rude.write_all(b"x").unwrap();
        assert_eq!(server.serve(rude_slot, |_| String::new()), Served::Closed);
        polite.write_all(b"hi\n").unwrap();
        assert_eq!(server.serve(polite_slot, str::to_owned), Served::Open);
    }

    #[test]
    fn one_client_too_many_is_closed_and_a_place_is_used_again() {
        let mut server = server("many");
        let mut peers: Vec<_> = (0..MAX_CLIENTS).map(|_| connected(&mut server)).collect();
        let mut surplus = UnixStream::connect(&server.path).unwrap();
        assert!(server.accept().is_none());
        assert_eq!(surplus.read(&mut [0; 1]).unwrap(), 0, "closed");
        let (leaving, slot) = peers.remove(3);
        drop(leaving);
        assert_eq!(server.serve(slot, |_| String::new()), Served::Closed);
        assert_eq!(connected(&mut server).1, slot);
    }

    #[test]
    fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
        let first = server("stale");
        let path = first.path.clone();
        assert!(matches!(Server::bind(&path), Err(Error::ControlInUse { .. })));
        drop(first);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a plain listener leaves its path behind");
        assert!(Server::bind(&path).is_ok());
    }

    #[test]
    fn a_file_in_the_way_is_not_removed() {
        let path = std::env::temp_dir().join(format!("wanem-test-{}-file", std::process::id()));
        std::fs::write(&path, "precious").unwrap();
        assert!(Server::bind(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
    }
}
