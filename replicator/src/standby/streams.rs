//! The streams of primaries: which of them is taken, and what comes of its frames.
//!
//! A stream that begins while a primary is attached takes that one's place once it is judged, and not before: a primary that is refused, again and
//! again, disturbs nobody. Unless it is of a later generation: then the one that is attached hears of that, and goes.

use super::service::{Progress, Session, Shell};
use super::trouble::Work;
use super::{Standby, StandbyError};
use crate::disk::SegmentFiles;
use bytes::Bytes;
use replicator_engine::generation::Lineage;
use replicator_engine::wire::{Envelope, Message, Refusal, Refused};
use std::io;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

impl<F: SegmentFiles + 'static> Shell<F> {
    /// A stream began.
    pub(super) fn handle_connected(&mut self, session: Session, answers: mpsc::Sender<Bytes>) {
        if self.progress >= Progress::Attached {
            // One that has said nothing until now ends here.
            self.contender = Some((session, answers));
        } else {
            self.disconnect();
            self.connection = Some((session, answers));
        }
    }

    /// The first frame of a stream that is not the attached primary's.
    pub(super) fn handle_contender(&mut self, session: Session, frame: Bytes) {
        let Some((_, answers)) = self.contender.take_if(|(contender, _)| *contender == session) else { return };
        match self.judge(&frame) {
            Ok(()) => {
                self.disconnect();
                self.connection = Some((session, answers));
                self.handle_frame(frame);
            }
            Err(refused) => {
                self.log_refusal(&refused);
                let generation = refused.lineage.current();
                // Whoever does not take its first answer goes without.
                let _ = answers.try_send(Envelope { generation, message: Message::Refused(refused) }.encode());
                if let Some(outdated) = self.standby.as_ref().and_then(Standby::outdated) {
                    self.refuse(outdated);
                }
                self.publish();
            }
        }
    }

    fn judge(&mut self, frame: &Bytes) -> Result<(), Refused> {
        if let Err(error) = self.reopen() {
            return Err(self.no_storage(error.to_string()));
        }
        let Some(standby) = &mut self.standby else { unreachable!("just opened") };
        standby.judge(frame).map_err(|error| error.refusal(&standby.place().lineage))
    }

    pub(super) fn handle_frame(&mut self, frame: Bytes) {
        match self.try_frame(frame) {
            Ok(Some(answer)) => {
                let progress = match &answer {
                    Message::Committed(_) => {
                        self.trouble.clear(Work::TakeIn);
                        Some(Progress::Committed)
                    }
                    Message::Attached(_) => Some(Progress::Attached),
                    _ => None,
                };
                self.progress = progress.unwrap_or(self.progress);
                if progress == Some(Progress::Attached) {
                    // Whoever hears the answer may ask for more than this stream.
                    self.publish();
                }
                self.answer(answer);
                if progress.is_some() {
                    self.ask_for_repair();
                    self.publish();
                }
            }
            Ok(None) => {}
            Err(refused) => {
                self.log_refusal(&refused);
                self.refuse(refused);
            }
        }
    }

    fn log_refusal(&mut self, refused: &Refused) {
        if refused.reason != Refusal::Storage
            && let Some(left_out) = self.log_limit.admit(Instant::now())
        {
            tracing::warn!(reason = ?refused.reason, text = refused.text, left_out, "replication: the primary is refused");
        }
    }

    fn try_frame(&mut self, frame: Bytes) -> Result<Option<Message>, Refused> {
        if let Err(error) = self.reopen() {
            return Err(self.no_storage(error.to_string()));
        }
        if self.trouble.of_folding().is_some() {
            self.fold_not_before = None;
            while self.fold() {}
        }
        if let Some(text) = self.trouble.of_folding() {
            return Err(self.no_storage(text.to_owned()));
        }
        let Some(standby) = &mut self.standby else { unreachable!("just opened") };
        let error = match standby.handle_frame(frame) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let refused = error.refusal(&standby.place().lineage);
        if let StandbyError::Disk(disk) = &error {
            self.trouble.set(Work::TakeIn, &error, disk.kind() == io::ErrorKind::StorageFull);
            // Half a record may be at the journal's end: reading it again is what mends that.
            self.standby = None;
        }
        Err(refused)
    }

    pub(super) fn no_storage(&self, text: String) -> Refused {
        let lineage = self.lineage().unwrap_or_else(|| Lineage::first(Default::default()));
        Refused { reason: Refusal::Storage, text, lineage }
    }

    pub(super) fn refuse(&mut self, refused: Refused) {
        self.answer(Message::Refused(refused));
        self.disconnect();
    }

    pub(super) fn answer(&mut self, message: Message) {
        let (Some((_, sink)), Some(lineage)) = (&self.connection, self.lineage()) else { return };
        let sent = sink.try_send(Envelope { generation: lineage.current(), message }.encode());
        if let Err(TrySendError::Full(_)) = sent {
            tracing::warn!("replication: the primary asks and does not take the answers");
            self.disconnect();
        }
    }
}
