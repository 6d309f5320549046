//! The handshake, fixed newstyle, without I/O.
//!
//! ```text
//!   greeting ──► flags ──► option ⇄ answers ──► GO, EXPORT_NAME ──► transmission
//!                            ▲             ├──► ABORT, nonsense, a limit ──► end
//!                            └─ everything forgotten ◄── TLS ◄── STARTTLS
//! ```
//!
//! The caller sends what [`Handshake::take_output`] gives, reads exactly [`Handshake::wanted_bytes`], hands them to
//! [`Handshake::handle_input`], and so on until that says that it is over. Every length is checked before it is used; a client that breaks a
//! limit is cut off. Deadlines are the caller's.

mod answer;
mod contexts;
mod options;
#[cfg(test)]
mod tests;

pub use contexts::{Context, Contexts};

use super::wire::{NBD_MAGIC, OPTION_MAGIC, handshake_flag, option};
use crate::request::Access;
use answer::Answers;

/// Largest option, in bytes of its data.
pub const MAX_OPTION_BYTES: u32 = 64 << 10;
/// Most options that a client may send.
pub const MAX_OPTIONS: u32 = 1000;
/// Longest export name, as the protocol has it.
pub const MAX_NAME_BYTES: u32 = 4096;
/// Most exports that are listed.
pub const MAX_LISTED_EXPORTS: usize = 10_000;

/// What a client is told of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Canonical name.
    pub name: String,
    /// For people.
    pub description: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Whether it can be written to.
    pub access: Access,
}

/// The exports that a client may choose from.
pub trait Exports {
    /// The export of that name; the empty name is the default export.
    fn find(&self, name: &str) -> Option<ExportInfo>;
    /// The names of all exports, at most [`MAX_LISTED_EXPORTS`].
    fn list(&self) -> Vec<String>;
}

/// Which form requests and replies have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replies {
    /// Replies are simple.
    #[default]
    Simple,
    /// Reads and block status are answered in chunks.
    Structured,
    /// Everything is answered in chunks; lengths have 64 bits both ways.
    Extended,
}

/// What TLS is to a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// Not to be had.
    #[default]
    Plain,
    /// The client may ask for it.
    Offered,
    /// The client has to ask for it before anything else.
    Required,
    /// In use.
    Secured,
}

/// What both sides have agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The export's canonical name.
    pub export: String,
    /// Which form requests and replies have.
    pub replies: Replies,
    /// Which metadata is told when asked for.
    pub contexts: Contexts,
}

/// What comes after an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Send the output, read on.
    More,
    /// Send the output; transmission begins.
    Agreed(Agreement),
    /// Send the output; TLS begins, and the handshake goes on in it with [`Handshake::secured`]. Whatever the client has sent beyond what was
    /// wanted is an attack.
    StartTls,
    /// Send the output and close: the client wants to leave.
    Left,
}

/// Why a client is cut off. The output is still worth sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Unknown flags.
    #[error("the client's flags {0:#x} are unknown")]
    Flags(u32),
    /// Wrong magic.
    #[error("an option does not begin with its magic number")]
    Magic,
    /// Option above [`MAX_OPTION_BYTES`].
    #[error("an option of {0} bytes is too long")]
    OptionTooLong(u32),
    /// More than [`MAX_OPTIONS`].
    #[error("more than {MAX_OPTIONS} options")]
    TooManyOptions,
    /// `EXPORT_NAME` has no other way to say no.
    #[error("no export of that name")]
    NoSuchExport,
    /// Nor has it here.
    #[error("the client wants an export without TLS")]
    TlsRequired,
    /// Nor here: the protocol forbids it.
    #[error("the client asks for an export by EXPORT_NAME after it has negotiated extended headers")]
    OldStyle,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Flags,
    OptionHeader,
    OptionData { option: u32, len_bytes: u32 },
    Over,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    output: Answers,
    no_zeroes: bool,
    options: u32,
    security: Security,
    replies: Replies,
    /// What metadata was chosen, and the canonical name of the export for which.
    contexts: Option<(String, Contexts)>,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Handshake {
    /// A handshake without TLS, whose output is the greeting.
    pub fn new() -> Self {
        Self::with(Security::Plain)
    }

    /// A handshake whose output is the greeting.
    pub fn with(security: Security) -> Self {
        let mut output = Answers::default();
        output.put_u64(NBD_MAGIC);
        output.put_u64(OPTION_MAGIC);
        output.put_u16(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        Self { state: State::Flags, output, no_zeroes: false, options: 0, security, replies: Replies::Simple, contexts: None }
    }

    /// The handshake goes on in TLS. Of what was said before, only the flags are left, and the count of options, which is a limit.
    pub fn secured(self) -> Self {
        let begun = Self { state: State::OptionHeader, output: Answers::default(), ..Self::with(Security::Secured) };
        Self { no_zeroes: self.no_zeroes, options: self.options, ..begun }
    }

    /// Bytes to be sent, if any.
    pub fn take_output(&mut self) -> Vec<u8> {
        self.output.take()
    }

    /// Number of bytes that the next input must have; it may be zero.
    pub fn wanted_bytes(&self) -> usize {
        match self.state {
            State::Flags => 4,
            State::OptionHeader => 16,
            State::OptionData { len_bytes, .. } => len_bytes as usize,
            State::Over => 0,
        }
    }

    /// Takes exactly [`Self::wanted_bytes`] bytes from the client.
    pub fn handle_input(&mut self, mut input: &[u8], exports: &dyn Exports) -> Result<Progress, HandshakeError> {
        assert_eq!(input.len(), self.wanted_bytes(), "the caller reads what is wanted");
        match self.state {
            State::Flags => self.handle_flags(&mut input),
            State::OptionHeader => self.handle_header(&mut input),
            State::OptionData { option, .. } => {
                self.state = State::OptionHeader;
                let progress = self.handle_option(option, input, exports);
                if !matches!(progress, Ok(Progress::More)) {
                    self.state = State::Over;
                }
                progress
            }
            State::Over => Ok(Progress::Left),
        }
    }

    fn handle_flags(&mut self, input: &mut &[u8]) -> Result<Progress, HandshakeError> {
        let flags = super::wire::take_u32(input).unwrap_or_default();
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        if flags & !known != 0 {
            self.state = State::Over;
            return Err(HandshakeError::Flags(flags));
        }
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.state = State::OptionHeader;
        Ok(Progress::More)
    }

    fn handle_header(&mut self, input: &mut &[u8]) -> Result<Progress, HandshakeError> {
        let magic = super::wire::take_bytes(input, 8);
        let (Some(option), Some(len_bytes)) = (super::wire::take_u32(input), super::wire::take_u32(input)) else {
            return Err(HandshakeError::Magic);
        };
        self.state = State::Over;
        if magic != Some(&OPTION_MAGIC.to_be_bytes()) {
            return Err(HandshakeError::Magic);
        }
        if len_bytes > MAX_OPTION_BYTES {
            if option != option::EXPORT_NAME {
                self.output.too_big(option, "the option is longer than 64 KiB");
            }
            return Err(HandshakeError::OptionTooLong(len_bytes));
        }
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Err(HandshakeError::TooManyOptions);
        }
        self.state = State::OptionData { option, len_bytes };
        Ok(Progress::More)
    }
}
