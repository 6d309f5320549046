//! What the service says in its log.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, OnceLock};

static LOG: Mutex<String> = Mutex::new(String::new());

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From now on lines are kept, whoever they are about: tests share the process.
pub fn begin() {
    static BEGUN: OnceLock<()> = OnceLock::new();
    BEGUN.get_or_init(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| Writer).init());
}

/// Whether there is a line about the address with `text` in it.
pub fn has(address: SocketAddr, text: &str) -> bool {
    let address = format!("tcp:{address} ");
    LOG.lock().unwrap().lines().any(|line| line.contains(&address) && line.contains(text))
}
