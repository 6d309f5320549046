//! Values of flags that need more than their own `FromStr`.

use blockd_api::{Fence, Mode, NbdAddress, OnDisconnect, SocketPath};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::path::PathBuf;

/// A path made absolute here: the daemon's working directory is another one.
pub fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| error.to_string())
}

/// The path of a socket, made absolute.
pub fn socket_path(text: &str) -> Result<SocketPath, String> {
    SocketPath::try_from(absolute(text)?).map_err(|error| error.to_string())
}

/// `unix:PATH`, made absolute, or `tcp:IP:PORT`.
pub fn nbd_address(text: &str) -> Result<NbdAddress, String> {
    match text.strip_prefix("unix:") {
        Some(path) => socket_path(path).map(NbdAddress::Unix),
        None => text.parse().map_err(|error: blockd_api::ParseExportError| error.to_string()),
    }
}

/// What to do when the standby is gone, as one of a list that completions know.
pub fn on_disconnect() -> impl TypedValueParser<Value = OnDisconnect> {
    PossibleValuesParser::new(OnDisconnect::ALL.iter().map(|word| word.as_str())).try_map(|word| word.parse::<OnDisconnect>())
}

/// When a primary fences itself.
pub fn fence() -> impl TypedValueParser<Value = Fence> {
    PossibleValuesParser::new(Fence::ALL.iter().map(|word| word.as_str())).try_map(|word| word.parse::<Fence>())
}

/// A mode, as one of a list that completions know.
pub fn mode() -> impl TypedValueParser<Value = Mode> {
    PossibleValuesParser::new(Mode::ALL.iter().map(|mode| mode.as_str())).try_map(|word| word.parse::<Mode>())
}
