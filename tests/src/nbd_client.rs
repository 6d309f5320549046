//! The smallest NBD client: one request at a time, so that the order of acknowledgements is the order of writes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_EXPORT_NAME: u32 = 1;
const FLAGS_FIXED_NO_ZEROES: u32 = 3;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module's documentation.
pub struct NbdClient {
    stream: UnixStream,
    cookie: u64,
}

impl NbdClient {
    /// Opens the export `vm1`.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        Self::connect_to(socket, "vm1")
    }

    /// Opens an export.
    pub fn connect_to(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut [0; 18])?;
        let mut hello = FLAGS_FIXED_NO_ZEROES.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(OPTION_EXPORT_NAME.to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello)?;
        stream.read_exact(&mut [0; 10])?;
        Ok(Self { stream, cookie: 0 })
    }

    /// How long an answer may take from now on.
    pub fn set_patience(&mut self, patience: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(patience))
    }

    fn request(&mut self, command: u16, offset: u64, len_bytes: u32, content: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
        request.extend(0u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(len_bytes.to_be_bytes());
        request.extend(content);
        self.stream.write_all(&request)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        assert_eq!(reply[..4], REPLY_MAGIC.to_be_bytes());
        assert_eq!(reply[8..], self.cookie.to_be_bytes());
        match u32::from_be_bytes(reply[4..8].try_into().expect("four bytes")) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error as i32)),
        }
    }

    /// Writes; acknowledged on return.
    pub fn write(&mut self, offset: u64, content: &[u8]) -> io::Result<()> {
        self.request(1, offset, content.len() as u32, content)
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, content: &mut [u8]) -> io::Result<()> {
        self.request(0, offset, content.len() as u32, &[])?;
        self.stream.read_exact(content)
    }

    /// Makes what was written durable.
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(3, 0, 0, &[])
    }
}
