//! What fails at a standby: one state that stays until the same work has succeeded, and one log line, however often it is tried.

use std::fmt::Display;

/// What the standby does with its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Reading the journal.
    Open,
    /// Taking an epoch in, up to its commit.
    TakeIn,
    /// Moving committed epochs into the image, up to the last.
    Fold,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Trouble(Option<Failure>);

struct Failure {
    work: Work,
    text: String,
    full: bool,
}

impl Trouble {
    /// Something failed, perhaps for want of room.
    pub fn set(&mut self, work: Work, error: &dyn Display, full: bool) {
        let text = error.to_string();
        if self.0.as_ref().is_none_or(|failure| failure.text != text) {
            tracing::error!(?work, error = text, "the standby stands still until this works again");
        }
        self.0 = Some(Failure { work, text, full });
    }

    /// Something succeeded; whoever takes in a whole epoch can do the rest, too.
    pub fn clear(&mut self, work: Work) {
        if self.0.take_if(|failure| failure.work == work || work == Work::TakeIn).is_some() {
            tracing::info!("the standby works again");
        }
    }

    /// What keeps committed epochs out of the image.
    pub fn of_folding(&self) -> Option<&str> {
        self.0.as_ref().filter(|failure| failure.work == Work::Fold).map(|failure| failure.text.as_str())
    }

    /// What failed, and whether for want of room.
    pub fn get(&self) -> Option<(&str, bool)> {
        self.0.as_ref().map(|failure| (failure.text.as_str(), failure.full))
    }
}
