//! The errors of the shell, split by what the operator can do about them.

use std::{io, path::PathBuf};

/// A result of the shell.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the emulator did not start, stopped, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces and TUN devices need root.
    #[error("needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN): run it with sudo")]
    NotRoot,
    /// The namespace is not there and nobody asked for it to be made.
    #[error("no network namespace {name}: `ip netns add {name}`, or pass --create-namespaces")]
    NoNamespace {
        /// The name looked for.
        name: String,
    },
    /// Both sides were given the same namespace.
    #[error("both sides are namespace {name}: the two must differ")]
    SameNamespace {
        /// The name given twice.
        name: String,
    },
    /// `ip` of iproute2 refused.
    #[error("`{command}` failed: {message}")]
    Ip {
        /// What was run.
        command: String,
        /// What it said.
        message: String,
    },
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process answers on the control socket's path.
    #[error("{path}: another wanem answers there; stop it or choose another --control")]
    ControlInUse {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The emulator answered a command with an error.
    #[error("refused: {0}")]
    Refused(String),
    /// The child process ended, or did not become ready in time.
    #[error("wanem did not start: {0}")]
    NotStarted(String),
    /// An answer of the emulator was not understood.
    #[error("unexpected answer: {0}")]
    Answer(String),
}

impl Error {
    /// Wraps a failed system call, naming what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
