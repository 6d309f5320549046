//! A client that says exactly what a test wants, right or wrong.

use blockd::nbd::wire::{NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, option};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longer than anything takes that is not meant to time out.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection.
pub struct Raw(pub UnixStream);

impl Raw {
    /// Connects and says nothing.
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// Connects over TCP and says nothing.
    pub fn connect_tcp(address: SocketAddr) -> Self {
        let stream = UnixStream::from(OwnedFd::from(TcpStream::connect(address).unwrap()));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// Connects, reads the greeting and answers it.
    pub fn greet(path: &Path) -> Self {
        Self::connect(path).greeted()
    }

    /// Reads the greeting and answers it.
    pub fn greeted(mut self) -> Self {
        let client = &mut self;
        let greeting = client.receive(18).unwrap();
        assert_eq!(greeting[..16], [NBD_MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat());
        client.send(&3_u32.to_be_bytes());
        self
    }

    /// Connects and chooses the default export; replies are simple.
    pub fn attach(path: &Path) -> Self {
        let mut client = Self::greet(path);
        client.option(option::EXPORT_NAME, 0, &[]);
        client.receive(10).unwrap();
        client
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn receive(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends an option that announces `len_bytes`, and `data`.
    pub fn option(&mut self, option: u32, len_bytes: u32, data: &[u8]) {
        self.send(&[&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &len_bytes.to_be_bytes(), data].concat());
    }

    /// Reads a reply to an option: its type and data.
    pub fn option_reply(&mut self) -> (u32, Vec<u8>) {
        let head = self.receive(20).unwrap();
        assert_eq!(head[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let [kind, len] = [12, 16].map(|at| u32::from_be_bytes(head[at..at + 4].try_into().unwrap()));
        (kind, self.receive(len as usize).unwrap())
    }

    /// Sends a request.
    pub fn request(&mut self, kind: u16, cookie: u64, offset: u64, len_bytes: u32, data: &[u8]) {
        self.request_with(0, kind, cookie, offset, len_bytes, data);
    }

    /// Sends a request with flags.
    pub fn request_with(&mut self, flags: u16, kind: u16, cookie: u64, offset: u64, len_bytes: u32, data: &[u8]) {
        let head = [&REQUEST_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes()].concat();
        self.send(&[&head[..], &offset.to_be_bytes(), &len_bytes.to_be_bytes(), data].concat());
    }

    /// Reads a reply without data: its error and cookie.
    pub fn reply(&mut self) -> (u32, u64) {
        let bytes = self.receive(16).unwrap();
        assert_eq!(bytes[..4], SIMPLE_REPLY_MAGIC.to_be_bytes());
        (u32::from_be_bytes(bytes[4..8].try_into().unwrap()), u64::from_be_bytes(bytes[8..].try_into().unwrap()))
    }

    /// Whether no reply comes for a while. What a test concludes from that is only that something did not happen at once.
    pub fn is_silent(&mut self) -> bool {
        self.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let result = self.0.read(&mut [0]);
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Returns when the server has hung up; whatever it says before is ignored.
    pub fn expect_end(&mut self) {
        let result = self.0.read_to_end(&mut Vec::new());
        assert!(!matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock), "the server hangs up");
    }
}
