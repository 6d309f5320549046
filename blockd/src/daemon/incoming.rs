//! Streams that other sites open, and what becomes of them.

use super::Daemon;
use super::part::{Overtaken, Part};
use crate::admin::Outcome;
use crate::catalogue::{RecordedRole, VolumeRecord};
use crate::volume::{Gate, GateState};
use replicator::site_link::request::{self, Answer, Question, lineage_of};
use replicator::site_link::{self, REPLICATION, REQUEST};
use replicator::transport::{IncomingStream, ResetCode};
use replicator_engine::generation::{Id, Lineage, Relation};
use replicator_engine::wire::{Attach, Envelope, Message, Refusal, Refused};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// What an old primary says to the new one.
const WAITS_FOR_RESYNC: &str = "that site was primary before: `tern resync --discard-local` there makes it the standby";
/// What a primary hears of a site that may go back to being its standby.
const ON_TRIAL: &str = "that site is promoted on trial: `tern commit` there makes it the primary, `tern rollback` the standby again";
/// For the first message of a stream that will be refused.
const ATTACH_DEADLINE: Duration = Duration::from_secs(10);

impl Daemon {
    /// Serves streams and news until it is aborted.
    pub(super) async fn take_streams(
        self: Arc<Self>,
        mut streams: mpsc::Receiver<IncomingStream>,
        mut news: mpsc::UnboundedReceiver<Overtaken>,
    ) {
        loop {
            tokio::select! {
                Some(stream) = streams.recv() => drop(tokio::spawn(self.clone().take_stream(stream))),
                Some(overtaken) = news.recv() => {
                    let daemon = self.clone();
                    tokio::spawn(async move { daemon.overtaken(overtaken).await });
                }
                else => return,
            }
        }
    }

    async fn take_stream(self: Arc<Self>, mut stream: IncomingStream) {
        let peer = stream.link.peer();
        let ended = match stream.kind {
            REPLICATION => self.replicate_from(stream).await,
            REQUEST => self.answer(stream).await,
            _ => {
                stream.recv.stop(ResetCode::UnknownKind);
                stream.send.reset(ResetCode::UnknownKind);
                return;
            }
        };
        if let Err(error) = ended {
            tracing::debug!(site = %peer, %error, "a stream ended");
        }
    }

    async fn replicate_from(&self, mut stream: IncomingStream) -> Result<(), replicator::transport::StreamError> {
        let from = stream.link.peer().to_string();
        let Some(id) = site_link::volume_of(&stream.header) else {
            stream.recv.stop(ResetCode::UnknownKind);
            return Ok(());
        };
        let found = {
            let volumes = self.volumes.lock().await;
            volumes.by_id(&id.to_string()).filter(|open| open.record.peer_at(&from).is_some()).map(|open| {
                let standby = if let Part::Standby(standby) = &open.part { Some(standby.clone()) } else { None };
                (standby, open.volume.clone(), open.record.clone())
            })
        };
        match found {
            Some((Some(standby), volume, record)) => {
                let begun = self.streams.begin(&from);
                let follows = self.note_primary(&record, &from, &standby, begun.session);
                let ended = tokio::select! {
                    ended = standby.serve(begun.session, stream, &volume.counters) => ended,
                    never = follows => match never {},
                };
                self.meet_rival(&record.name, &from, &standby).await;
                ended
            }
            Some((None, volume, record)) => self.turn_away(stream, &volume.gate, &record).await,
            None => {
                let lineage = Lineage::first(Id::default());
                refuse(stream, Refusal::NotStandby, "this site has no standby of the volume", lineage).await
            }
        }
    }

    /// Another site takes itself for the primary of a volume of which this one is not the standby.
    async fn turn_away(
        &self,
        mut stream: IncomingStream,
        gate: &Gate,
        record: &VolumeRecord,
    ) -> Result<(), replicator::transport::StreamError> {
        let first = tokio::time::timeout(ATTACH_DEADLINE, stream.recv.recv()).await.unwrap_or(Ok(None))?;
        let attach = first.and_then(|frame| Envelope::decode(frame).ok()).map(|envelope| envelope.message);
        let Some(Message::Attach(Attach { lineage: theirs, .. })) = attach else { return Ok(()) };
        if record.trial.is_some() {
            self.tell_of_trial(&record.name).await;
            return refuse(stream, Refusal::NotStandby, ON_TRIAL, theirs).await;
        }
        let Some(mine) = lineage_of(&record.lineage) else {
            return refuse(stream, Refusal::NotStandby, "this site is not a standby of the volume", theirs).await;
        };
        let relation = mine.relation(&theirs);
        let rival = matches!(relation, Relation::Split | Relation::TheirsAhead(_));
        if rival && record.role == RecordedRole::Primary {
            gate.set(GateState::Fenced);
            self.overtaken(Overtaken { name: record.name.clone(), lineage: theirs.clone() }).await;
        }
        // A later generation than the one that this site split from: the operator has decided for the other site.
        let decided = lineage_of(&record.successor).is_some_and(|rival| matches!(rival.relation(&theirs), Relation::TheirsAhead(_)));
        let (reason, text) = match relation {
            Relation::MineAhead(_) => (Refusal::Stale, "this site was promoted meanwhile"),
            Relation::Split if record.role == RecordedRole::SplitBrain && decided => (Refusal::NotStandby, WAITS_FOR_RESYNC),
            Relation::Split => (Refusal::SplitBrain, "both sites were primary since they last agreed"),
            Relation::TheirsAhead(_) => (Refusal::NotStandby, WAITS_FOR_RESYNC),
            Relation::Same | Relation::Unrelated => (Refusal::NotStandby, "this site is not a standby of the volume"),
        };
        refuse(stream, reason, text, mine).await
    }

    async fn answer(&self, stream: IncomingStream) -> Result<(), replicator::transport::StreamError> {
        let from = stream.link.peer();
        let answer = match request::question(&stream) {
            Err(error) => Answer::Refused { code: "invalid-request".into(), message: error.to_string() },
            Ok(Question::Ping) => Answer::Done,
            Ok(Question::CreateStandby { name, volume, size_bytes, lineage }) => {
                let lineage = lineage_of(&lineage);
                if let Err(error) = self.check_holds_data() {
                    return request::answer(stream, &answer_of(Err(error))).await;
                }
                answer_of(self.create_standby(from, &name, &volume, size_bytes, lineage).await.map(|()| Answer::Done))
            }
            Ok(Question::Handover { volume, generation, force }) => {
                answer_of(self.hand_over(&from.to_string(), &volume, generation, force).await)
            }
            Ok(Question::TakeBack { volume, generation }) => answer_of(self.take_back(&from.to_string(), &volume, &generation).await),
            Ok(Question::Settings { volume, settings }) => {
                answer_of(self.note_settings(&from.to_string(), &volume, settings).await.map(|()| Answer::Done))
            }
            Ok(Question::Groups { groups }) => answer_of(self.note_groups(from, groups).await),
            Ok(Question::Alone { volume }) => answer_of(self.tell_alone(&from.to_string(), &volume).await),
            Ok(Question::Everywhere { volume, epoch }) => {
                answer_of(self.note_everywhere(&from.to_string(), &volume, epoch).await.map(|()| Answer::Done))
            }
            Ok(Question::Fence { volume, trial }) => answer_of(self.stand_still(&from.to_string(), &volume, trial).await),
            Ok(Question::TrialOver { volume, generations }) => {
                answer_of(self.trials_are_over(&from.to_string(), &volume, &generations).await)
            }
            Ok(Question::Lease(asked)) => answer_or_why(self.grant(&from.to_string(), &asked).await),
            Ok(Question::Consent { volume, lineage, candidacy }) => {
                answer_or_why(self.consent(&from.to_string(), &volume, &lineage, &candidacy))
            }
            Ok(Question::Withdraw { volume, term }) => {
                let recorded = tokio::task::block_in_place(|| self.grants.withdrawn(&from.to_string(), &volume, term));
                answer_or_why(recorded.map(|()| Answer::Done))
            }
            Ok(Question::Forecast { volume }) => answer_of(self.tell_forecast(&from.to_string(), &volume).await),
            Ok(Question::TookOver { volume, epoch, took_ms }) => {
                answer_of(self.note_took_over(&from.to_string(), &volume, epoch, took_ms).await)
            }
            Ok(Question::Detach { volume }) => {
                tracing::info!(volume, site = %from, "the primary does not replicate this volume to here any more");
                Answer::Done
            }
        };
        request::answer(stream, &answer).await
    }
}

fn answer_or_why(answer: Result<Answer, String>) -> Answer {
    answer.unwrap_or_else(|message| Answer::Refused { code: "wrong-state".into(), message })
}

fn answer_of(outcome: Outcome<Answer>) -> Answer {
    outcome.unwrap_or_else(|error| Answer::Refused {
        code: serde_json::to_value(error.code).ok().and_then(|code| code.as_str().map(str::to_owned)).unwrap_or_default(),
        message: error.to_string(),
    })
}

async fn refuse(
    mut stream: IncomingStream,
    reason: Refusal,
    text: &str,
    lineage: Lineage,
) -> Result<(), replicator::transport::StreamError> {
    let generation = lineage.current();
    let message = Message::Refused(Refused { reason, text: text.into(), lineage });
    stream.send.send(Envelope { generation, message }.encode()).await?;
    stream.send.finish();
    tokio::time::timeout(ATTACH_DEADLINE, stream.send.stopped()).await.unwrap_or(Ok(()))
}
