//! An NBD client that does what the fuzzer says and believes nothing.
//!
//! Requests of a batch are sent before any of them is answered. Those of one batch do not touch each other's data, so that what a read
//! returns is certain; what they meet in is everything else.

mod handshake;
mod model;
mod replies;
mod requests;

pub use handshake::{Agreed, ClientOption};
pub use requests::{End, Step};

use crate::served::{Served, eventually};
use arbitrary::Arbitrary;
use blockd::nbd::wire::{NBD_MAGIC, OPTION_MAGIC};
use model::Model;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// No part of an answer is longer: neither what was read nor a full block status.
const MAX_ANSWER_BYTES: u64 = 512 << 10;

/// What the fuzzer makes up.
#[derive(Arbitrary, Debug)]
pub struct Input {
    flags: Option<u32>,
    options: Vec<ClientOption>,
    batches: Vec<Vec<Step>>,
    end: End,
}

/// A connection.
pub struct Session<'a> {
    stream: UnixStream,
    served: &'a Served,
    model: Model,
}

/// The server has hung up, as it may after nonsense.
#[derive(Debug)]
pub struct HungUp;

impl<'a> Session<'a> {
    /// Carries an input out.
    pub fn run(served: &'a Served, input: Input) {
        let stream = UnixStream::connect(served.socket()).expect("a place for a client");
        stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE))).expect("a live socket");
        let mut session = Self { stream, served, model: Model::of(served) };
        // Hung up on or not, the session leaves nothing behind.
        let _ = session.talk(input);
        let Self { stream, model, .. } = session;
        drop(stream);
        eventually("the client is gone", || served.volume.clients.nbd.load(SeqCst) == 0);
        model.settle(served);
    }

    fn talk(&mut self, input: Input) -> Result<(), HungUp> {
        let greeting = self.receive::<18>()?;
        assert_eq!(greeting[..16], [NBD_MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat());
        let flags = input.flags.unwrap_or(3);
        self.send(&flags.to_be_bytes())?;
        let agreed = self.negotiate(&input.options, flags & 2 != 0)?;
        for steps in input.batches.iter().take(32) {
            self.batch(&agreed, steps)?;
        }
        // It is told that the export is there before it is counted. Gone before that, nobody would know when what it sent is done.
        eventually("the client is counted", || self.served.volume.clients.nbd.load(SeqCst) == 1);
        self.end(&agreed, &input.end)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), HungUp> {
        self.stream.write_all(bytes).map_err(|error| judge(&error))
    }

    fn receive<const N: usize>(&mut self) -> Result<[u8; N], HungUp> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).map_err(|error| judge(&error))?;
        Ok(bytes)
    }

    fn receive_bytes(&mut self, len_bytes: u64) -> Result<Vec<u8>, HungUp> {
        assert!(len_bytes <= MAX_ANSWER_BYTES, "an answer of {len_bytes} bytes");
        let mut bytes = vec![0; len_bytes as usize];
        self.stream.read_exact(&mut bytes).map_err(|error| judge(&error))?;
        Ok(bytes)
    }

    /// Reads until the server hangs up, which it has to.
    fn expect_end(&mut self) -> HungUp {
        match self.stream.read_to_end(&mut Vec::new()) {
            Ok(_) => HungUp,
            Err(error) => judge(&error),
        }
    }
}

/// An error is the end of the connection. Silence is a finding.
fn judge(error: &io::Error) -> HungUp {
    let silence = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    assert!(!silence, "an answer or the end, in time");
    HungUp
}
