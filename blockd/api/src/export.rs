//! Where a volume can be attached.
//!
//! An export is written `nbd:unix:PATH`, `nbd:tcp:IP:PORT` or `vhost-user:PATH`, with `read-only:` in front if it is; in documents it is an
//! object. Paths are absolute: the daemon's working directory is not the client's.

use crate::VolumeName;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Longest path of a unix socket: `sun_path` less its terminator.
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

const READ_ONLY: &str = "read-only:";

/// A way to attach a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Export {
    /// NBD; several volumes may share an address, told apart by their export names, which are the volumes' names.
    Nbd {
        /// Where the server listens.
        address: NbdAddress,
        /// What clients may do.
        #[serde(default, skip_serializing_if = "ExportAccess::is_default")]
        access: ExportAccess,
    },
    /// vhost-user-blk.
    VhostUser {
        /// The socket that QEMU connects to.
        path: SocketPath,
        /// What the guest may do.
        #[serde(default, skip_serializing_if = "ExportAccess::is_default")]
        access: ExportAccess,
    },
}

/// What the clients of an export may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportAccess {
    /// Everything.
    #[default]
    ReadWrite,
    /// Reads.
    ReadOnly,
}

/// Where an NBD server listens: `unix:PATH` or `tcp:IP:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NbdAddress {
    /// A unix socket.
    Unix(SocketPath),
    /// TCP.
    Tcp(SocketAddr),
}

/// The absolute path of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "PathBuf", into = "PathBuf")]
pub struct SocketPath(PathBuf);

/// Why a text is not an export.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseExportError {
    /// The beginning is not one that we know.
    #[error("{0:?} is no address: write unix:PATH or tcp:IP:PORT")]
    Scheme(String),
    /// What follows `tcp:` is not an address.
    #[error("{0:?} is no TCP address: write tcp:IP:PORT, for instance tcp:127.0.0.1:10809 or tcp:[::1]:10809")]
    Tcp(String),
    /// A relative path.
    #[error("{0:?} is not an absolute path")]
    Relative(PathBuf),
    /// Too long for the kernel.
    #[error("{0:?} is longer than a unix socket's path may be ({MAX_SOCKET_PATH_BYTES} bytes)")]
    TooLong(PathBuf),
    /// Not a path that the kernel, a URI and a log line can hold alike.
    #[error("{0:?} is not plain text without control characters")]
    NotText(PathBuf),
}

impl SocketPath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The path as text: it is always UTF-8.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl TryFrom<PathBuf> for SocketPath {
    type Error = ParseExportError;
    fn try_from(path: PathBuf) -> Result<Self, ParseExportError> {
        match path.to_str() {
            None => Err(ParseExportError::NotText(path)),
            Some(text) if text.chars().any(char::is_control) => Err(ParseExportError::NotText(path)),
            Some(text) if text.len() > MAX_SOCKET_PATH_BYTES => Err(ParseExportError::TooLong(path)),
            Some(text) if !text.starts_with('/') || text.ends_with('/') => Err(ParseExportError::Relative(path)),
            Some(_) => Ok(Self(path)),
        }
    }
}

impl From<SocketPath> for PathBuf {
    fn from(path: SocketPath) -> Self {
        path.0
    }
}

impl FromStr for NbdAddress {
    type Err = ParseExportError;
    fn from_str(text: &str) -> Result<Self, ParseExportError> {
        match text.split_once(':') {
            Some(("unix", path)) => SocketPath::try_from(PathBuf::from(path)).map(Self::Unix),
            Some(("tcp", address)) => address.parse().map(Self::Tcp).map_err(|_| ParseExportError::Tcp(address.to_owned())),
            _ => Err(ParseExportError::Scheme(text.to_owned())),
        }
    }
}

impl TryFrom<String> for NbdAddress {
    type Error = ParseExportError;
    fn try_from(text: String) -> Result<Self, ParseExportError> {
        text.parse()
    }
}

impl From<NbdAddress> for String {
    fn from(address: NbdAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.as_str()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl NbdAddress {
    /// The NBD URI of a volume at this address
    /// (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>).
    pub fn uri(&self, volume: &VolumeName) -> String {
        match self {
            Self::Unix(path) => format!("nbd+unix:///{volume}?socket={}", percent_encoded(path.as_str())),
            Self::Tcp(address) => format!("nbd://{address}/{volume}"),
        }
    }
}

/// Percent-encodes everything that is not an unreserved character or a slash (RFC 3986, section 2.3).
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => encoded.push(byte as char),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

impl ExportAccess {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Export {
    /// What clients may do.
    pub fn access(&self) -> ExportAccess {
        match self {
            Self::Nbd { access, .. } | Self::VhostUser { access, .. } => *access,
        }
    }

    /// Whether both are served at the same place: a volume can be served there once.
    pub fn is_at(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nbd { address, .. }, Self::Nbd { address: others, .. }) => address == others,
            (Self::VhostUser { path, .. }, Self::VhostUser { path: others, .. }) => path == others,
            _ => false,
        }
    }
}

impl FromStr for Export {
    type Err = ParseExportError;
    fn from_str(text: &str) -> Result<Self, ParseExportError> {
        let (access, place) = match text.strip_prefix(READ_ONLY) {
            Some(place) => (ExportAccess::ReadOnly, place),
            None => (ExportAccess::ReadWrite, text),
        };
        match place.split_once(':') {
            Some(("nbd", address)) => Ok(Self::Nbd { address: address.parse()?, access }),
            Some(("vhost-user", path)) => Ok(Self::VhostUser { path: PathBuf::from(path).try_into()?, access }),
            _ => Err(ParseExportError::Scheme(text.to_owned())),
        }
    }
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.access() == ExportAccess::ReadOnly {
            f.write_str(READ_ONLY)?;
        }
        match self {
            Self::Nbd { address, .. } => write!(f, "nbd:{address}"),
            Self::VhostUser { path, .. } => write!(f, "vhost-user:{}", path.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_read_back_what_they_print() {
        for text in ["nbd:unix:/run/a b.sock", "nbd:tcp:127.0.0.1:10809", "nbd:tcp:[::1]:10809", "vhost-user:/run/vm1.sock"] {
            let read_only = format!("read-only:{text}");
            for text in [text, &read_only] {
                let export: Export = text.parse().unwrap();
                assert_eq!(export.to_string(), text);
                assert_eq!(serde_json::from_str::<Export>(&serde_json::to_string(&export).unwrap()).unwrap(), export);
            }
        }
    }

    #[test]
    fn only_what_is_read_only_says_so_in_documents() {
        for (text, document) in [
            ("nbd:unix:/a", r#"{"kind":"nbd","address":"unix:/a"}"#),
            ("read-only:vhost-user:/a", r#"{"kind":"vhost-user","path":"/a","access":"read-only"}"#),
        ] {
            assert_eq!(serde_json::to_string(&text.parse::<Export>().unwrap()).unwrap(), document);
        }
    }

    #[test]
    fn a_place_is_the_same_whatever_may_be_done_there() {
        let export = |text: &str| text.parse::<Export>().unwrap();
        assert!(export("nbd:unix:/a").is_at(&export("read-only:nbd:unix:/a")));
        assert!(!export("nbd:unix:/a").is_at(&export("nbd:unix:/b")) && !export("nbd:unix:/a").is_at(&export("vhost-user:/a")));
    }

    #[test]
    fn exports_that_cannot_work_are_refused_with_the_cure() {
        let long = format!("nbd:unix:/{}", "x".repeat(MAX_SOCKET_PATH_BYTES));
        for bad in ["nbd:unix:relative", "nbd:unix:", "nbd:tcp:localhost:1", "nbd:/run/x", "vhost-user:x", "vhost-user:/run/", "", &long] {
            assert!(bad.parse::<Export>().is_err(), "{bad}");
        }
        let error = "tcp:host:1".parse::<NbdAddress>().unwrap_err();
        assert!(error.to_string().contains("tcp:IP:PORT"), "{error}");
    }

    #[test]
    fn uris_are_what_nbd_clients_take() {
        let volume = "vm1".parse().unwrap();
        let uri = |text: &str| text.parse::<NbdAddress>().unwrap().uri(&volume);
        assert_eq!(uri("unix:/run/a b.sock"), "nbd+unix:///vm1?socket=/run/a%20b.sock");
        assert_eq!(uri("tcp:[::1]:10809"), "nbd://[::1]:10809/vm1");
    }
}
