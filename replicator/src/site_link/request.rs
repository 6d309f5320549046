//! What sites ask each other outside of replication: one question and one answer, as JSON, on a stream of their own.
//!
//! A site acts on a question only if the volume's own record allows it; the transport has proved who asks.

use super::REQUEST;
use crate::transport::{IncomingStream, Link, StreamError};
use bytes::Bytes;
use replicator_engine::generation::{Generation, Id, Lineage};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Largest question or answer.
const MAX_BYTES: usize = 256 * 1024;
/// For the question to come, and for an answer to be taken.
const DEADLINE: Duration = Duration::from_secs(10);

/// One generation, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// See the engine's generation.
    pub counter: u64,
    /// In hexadecimal.
    pub id: String,
    /// See the engine's generation.
    pub branch_epoch: u64,
}

/// Writes a lineage down.
pub fn lineage_records(lineage: &Lineage) -> Vec<GenerationRecord> {
    let record = |of: &Generation| GenerationRecord { counter: of.counter, id: of.id.to_string(), branch_epoch: of.branch_epoch };
    lineage.generations().iter().map(record).collect()
}

/// Reads a lineage that was written down; `None` if it is none.
pub fn lineage_of(records: &[GenerationRecord]) -> Option<Lineage> {
    let generation = |record: &GenerationRecord| {
        Some(Generation { counter: record.counter, id: parse_id(&record.id)?, branch_epoch: record.branch_epoch })
    };
    Lineage::from_generations(records.iter().map(generation).collect::<Option<_>>()?)
}

/// Reads an id in hexadecimal.
pub fn parse_id(text: &str) -> Option<Id> {
    let well_formed = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    well_formed.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(|number| Id(number.to_be_bytes()))
}

/// A question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Question {
    /// Are you there?
    Ping,
    /// Keep a standby of this volume for me.
    CreateStandby {
        /// The volume's name.
        name: String,
        /// Its id, in hexadecimal.
        volume: String,
        /// Its size.
        size_bytes: u64,
        /// The asking primary's lineage.
        lineage: Vec<GenerationRecord>,
    },
    /// I want to be primary: stop, and tell me where the volume ends.
    Handover {
        /// The volume's id, in hexadecimal.
        volume: String,
        /// The generation that I shall be, in hexadecimal: the same when I ask again.
        generation: String,
        /// Whether clients that are active may be cut off.
        force: bool,
    },
    /// I do not replicate this volume to you any more.
    Detach {
        /// The volume's id, in hexadecimal.
        volume: String,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// Done.
    Done,
    /// This site has stopped being primary; everything is in the epoch.
    Granted {
        /// The volume's last epoch.
        epoch: u64,
    },
    /// This site is not primary either, and will not become it for what it knows.
    NotPrimary {
        /// Its newest recovery point.
        committed: u64,
    },
    /// No.
    Refused {
        /// A word of the admin API's error codes.
        code: String,
        /// Why, in words.
        message: String,
    },
}

/// Asks a site and waits for its answer, at most until `deadline`.
pub async fn ask(link: &Link, question: &Question, deadline: Duration) -> Result<Answer, StreamError> {
    let header = serde_json::to_vec(question).map_err(|_| StreamError::Ended)?;
    let asked = async {
        let (mut send, mut recv) = link.open(REQUEST, &header).await?;
        send.finish();
        recv.set_limit(MAX_BYTES);
        let answer = recv.recv().await?.ok_or(StreamError::CutShort)?;
        serde_json::from_slice(&answer).map_err(|_| StreamError::CutShort)
    };
    tokio::time::timeout(deadline, asked).await.unwrap_or(Err(StreamError::Ended))
}

/// The question that a stream asks.
pub fn question(stream: &IncomingStream) -> Result<Question, serde_json::Error> {
    serde_json::from_slice(&stream.header)
}

/// Answers; returns when the asker has it.
pub async fn answer(mut stream: IncomingStream, answer: &Answer) -> Result<(), StreamError> {
    let bytes = serde_json::to_vec(answer).map_err(|_| StreamError::Ended)?;
    stream.send.send(Bytes::from(bytes)).await?;
    stream.send.finish();
    tokio::time::timeout(DEADLINE, stream.send.stopped()).await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented::PROTOCOL;

    fn check<T: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug>(message: &T) {
        let json = serde_json::to_string(message).unwrap();
        assert!(PROTOCOL.contains(&json), "{json}");
        assert_eq!(serde_json::from_str::<T>(&json).unwrap(), *message);
    }

    #[test]
    fn questions_and_answers_are_the_documented_ones() {
        let (volume, generation) = (Id([0x77; 16]).to_string(), Id([0x22; 16]).to_string());
        let lineage = lineage_records(&Lineage::first(Id([0x11; 16])));
        check(&Question::Ping);
        check(&Question::CreateStandby { name: "vm1".into(), volume: volume.clone(), size_bytes: 1 << 30, lineage });
        check(&Question::Handover { volume: volume.clone(), generation, force: false });
        check(&Question::Detach { volume });
        check(&Answer::Done);
        check(&Answer::Granted { epoch: 17 });
        check(&Answer::NotPrimary { committed: 17 });
        check(&Answer::Refused { code: "client-active".into(), message: "a client is active at vm1 by nbd".into() });
    }
}
