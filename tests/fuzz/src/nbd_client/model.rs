//! What the disk must hold.

use crate::served::Served;
use std::ops::Range;

/// The content that acknowledged writes make, and what those that were not acknowledged may have made of it.
pub(super) struct Model {
    content: Vec<u8>,
    unsettled: Vec<(Range<usize>, Change)>,
}

/// What a request makes of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// This byte, everywhere.
    Fill(u8),
    /// Zeroes.
    Zero,
}

impl Change {
    fn byte(self) -> u8 {
        match self {
            Self::Fill(byte) => byte,
            Self::Zero => 0,
        }
    }
}

impl Model {
    /// Of a volume that nobody writes to.
    pub(super) fn of(served: &Served) -> Self {
        let size_bytes = served.volume.size_bytes() as usize;
        Self { content: served.content(0, size_bytes), unsettled: Vec::new() }
    }

    pub(super) fn content(&self, range: Range<usize>) -> &[u8] {
        &self.content[range]
    }

    /// A change was sent.
    pub(super) fn begin(&mut self, range: Range<usize>, change: Change) {
        self.unsettled.push((range, change));
    }

    /// It was answered: done, or refused.
    pub(super) fn finish(&mut self, range: &Range<usize>, change: Change, done: bool) {
        let at = self.unsettled.iter().position(|entry| *entry == (range.clone(), change)).expect("it was sent");
        self.unsettled.swap_remove(at);
        if done {
            self.content[range.clone()].fill(change.byte());
        }
    }

    /// The session is over: the image holds what was acknowledged, and of what was not either the old or the new.
    pub(super) fn settle(mut self, served: &Served) {
        let found = served.content(0, self.content.len());
        for (range, change) in std::mem::take(&mut self.unsettled) {
            for at in range {
                if found[at] == change.byte() {
                    self.content[at] = found[at];
                }
            }
        }
        // All at once first: byte by byte takes longer than the session.
        if self.content != found {
            let at = self.content.iter().zip(&found).position(|(expected, found)| expected != found).expect("they differ");
            panic!("byte {at} is {}, but acknowledged was {}", found[at], self.content[at]);
        }
    }
}
