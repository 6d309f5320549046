//! Where output goes: the process's streams, or a test's buffers.

use blockd_api::ApiError;
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// Standard output and error, and whether people watch.
pub struct Console {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    /// Whether standard error is a terminal: progress is for people.
    pub progress: Watched,
    /// Whether standard output is a terminal: so are colours and full-screen views.
    pub screen: Watched,
}

/// Whether a stream is a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// It is.
    Terminal,
    /// It is a file or a pipe.
    Not,
}

impl Watched {
    fn of(stream: &impl IsTerminal) -> Self {
        if stream.is_terminal() { Self::Terminal } else { Self::Not }
    }
}

impl Console {
    /// The process's own streams.
    pub fn of_process() -> Self {
        let (out, err) = (std::io::stdout(), std::io::stderr());
        Self { progress: Watched::of(&err), screen: Watched::of(&out), out: Box::new(out), err: Box::new(err) }
    }

    /// Streams that nobody watches.
    #[cfg(test)]
    pub fn of_writers(out: impl Write + 'static, err: impl Write + 'static) -> Self {
        Self { out: Box::new(out), err: Box::new(err), progress: Watched::Not, screen: Watched::Not }
    }

    /// Prints text as it is. A reader that went away (`| head`) is no error of ours.
    pub fn print(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }

    /// Prints a document on one line.
    pub fn print_document(&mut self, document: &impl Serialize) {
        let text = serde_json::to_string(document)
            .unwrap_or_else(|error| format!("{{\"error\":{{\"code\":\"internal\",\"message\":\"{error}\"}}}}"));
        self.print(&(text + "\n"));
    }

    /// Prints text for people that is not the result.
    pub fn complain(&mut self, text: &str) {
        let _ = self.err.write_all(text.as_bytes()).and_then(|()| self.err.flush());
    }

    /// Prints an error's line.
    pub fn print_error(&mut self, error: &ApiError) {
        self.complain(&format!("tern: {error}\n"));
    }
}
