//! What a verb prints in the end.

use crate::{app::Format, client::decode};
use blockd_api::{ApiError, ExitCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The result of a verb.
#[derive(Debug)]
pub struct Report {
    /// For standard output, newline included.
    pub text: String,
    /// For standard error: why the exit code is not 0 although there is a result.
    pub remark: Option<String>,
    /// How the program ends.
    pub exit: ExitCode,
}

impl Report {
    /// A daemon's document: as it came, or told to people.
    pub fn of<T: DeserializeOwned>(document: Value, format: Format, tell: impl FnOnce(T) -> String) -> Result<Self, ApiError> {
        let text = match format {
            Format::Json => document.to_string(),
            Format::Text => tell(decode(document)?),
        };
        Ok(Self::done(text))
    }

    /// Text that is the result.
    pub fn done(mut text: String) -> Self {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        Self { text, remark: None, exit: ExitCode::Done }
    }

    /// The same, ending with another code.
    pub fn but(self, exit: ExitCode, remark: String) -> Self {
        Self { exit, remark: Some(remark), ..self }
    }
}
