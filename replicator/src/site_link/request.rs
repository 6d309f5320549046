//! What sites ask each other outside of replication: one question and one answer, as JSON, on a stream of their own.
//!
//! A site acts on a question only if the volume's own record allows it; the transport has proved who asks. Every question may be asked
//! again: what was done already is answered as if it were done now. So one whose link gave way to another, as of two that the sites dialled
//! at the same time, is asked again over that one.

use super::REQUEST;
use super::forecast::{ForecastRecord, HandedOver};
use super::lease::{CandidacyRecord, LeaseRequest, NotConsented, NotLeased};
use crate::identity::SiteId;
use crate::transport::{IncomingStream, Link, Links, StreamError};
use bytes::Bytes;
use replicator_engine::generation::{Generation, Id, Lineage};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Largest question or answer.
const MAX_BYTES: usize = 256 * 1024;
/// For the question to come, and for an answer to be taken.
const DEADLINE: Duration = Duration::from_secs(10);
/// For the link to show up here that the other side keeps, at most; it is there in a round trip unless it ends, too.
const SUCCESSOR_DEADLINE: Duration = Duration::from_secs(5);
/// The admin API's word for a site that another operation on the volume keeps from acting.
pub const BUSY: &str = "busy";
/// How often a site is asked that may be busy with the same question.
const BUSY_POLL: Duration = Duration::from_millis(250);

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

/// What the operator set for a replica, as sites tell each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsRecord {
    /// A word of the admin API's modes.
    pub mode: String,
    /// How much acknowledged data a disaster may cost.
    pub rpo_ms: u64,
    /// Most that may be sent; `None`: no limit. The least that a calendar allows, for sites that know none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bits_per_second: Option<u64>,
    /// The calendar by which that changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<String>,
    /// A word of the admin API's choices; `None`: as the mode has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_disconnect: Option<String>,
    /// How long a request waits for the standby; `None`: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_timeout_ms: Option<u64>,
    /// When mode `snapshot` cuts: a span or cron syntax; `None`: only when asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The primary's other standbys: they are to be the new primary's, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherStandby>,
}

/// Another standby of the same volume, as its primary tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherStandby {
    /// Its site's id.
    pub site: String,
    /// Its site's name.
    pub name: String,
    /// What the operator set for it. It names no others.
    pub settings: SettingsRecord,
}

/// A consistency group, as its primary tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupTold {
    /// Its name.
    pub name: String,
    /// Its id with these members, in hexadecimal.
    pub id: String,
    /// Its members' ids, in hexadecimal: their order counts.
    pub members: Vec<String>,
}

/// A consistency group that a site does not note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRefused {
    /// Its name.
    pub name: String,
    /// Why, in words.
    pub message: String,
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
    /// I do not want what you granted me: be primary again.
    TakeBack {
        /// The volume's id, in hexadecimal.
        volume: String,
        /// The generation that it was granted to, in hexadecimal. I shall not be it any more.
        generation: String,
    },
    /// This is what the operator set here: go by it once you are primary.
    Settings {
        /// The volume's id, in hexadecimal.
        volume: String,
        /// What was set.
        settings: SettingsRecord,
    },
    /// Every standby has this epoch of the volume, and all before it.
    Everywhere {
        /// The volume's id, in hexadecimal.
        volume: String,
        /// The epoch.
        epoch: u64,
    },
    /// What do you have of this volume that I lack, now that both of us were primary?
    Alone {
        /// The volume's id, in hexadecimal.
        volume: String,
    },
    /// These are the groups whose members you are the standby of: there are no others.
    Groups {
        /// All of them.
        groups: Vec<GroupTold>,
    },
    /// I go on from an older point of this volume, without you: acknowledge nothing more.
    Fence {
        /// The volume's id, in hexadecimal.
        volume: String,
        /// The generation, in hexadecimal, if it is only for as long as I am on trial in it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trial: Option<String>,
    },
    /// These trials of this volume came to nothing: acknowledge again if it is for one of them that you do not.
    TrialOver {
        /// The volume's id, in hexadecimal.
        volume: String,
        /// Their generations, in hexadecimal.
        generations: Vec<String>,
    },
    /// I am primary of this volume: may I acknowledge?
    Lease(LeaseRequest),
    /// I have not heard this volume's primary for long: may I be promoted?
    Consent {
        /// The volume's id, in hexadecimal.
        volume: String,
        /// What I know of the primary's lineage.
        lineage: Vec<GenerationRecord>,
        /// Who I am as a candidate.
        candidacy: CandidacyRecord,
    },
    /// I do not want to be promoted any more.
    Withdraw {
        /// The volume's id, in hexadecimal.
        volume: String,
        /// The term, with all before it.
        term: u64,
    },
    /// How long would it take to hand this volume over to me now?
    Forecast {
        /// The volume's id, in hexadecimal.
        volume: String,
    },
    /// I am primary of this volume, which you handed over at this epoch.
    TookOver {
        /// The volume's id, in hexadecimal.
        volume: String,
        /// The volume's last epoch before.
        epoch: u64,
        /// How long it took, from the order on.
        took_ms: u64,
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
        /// How that went.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        handed: Option<HandedOver>,
    },
    /// This site is not primary either, and will not become it for what it knows.
    NotPrimary {
        /// Its newest recovery point.
        committed: u64,
        /// How it stepped down there, if it did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        handed: Option<HandedOver>,
    },
    /// This site has what the asker lacks.
    Alone {
        /// How many blocks, if they are counted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        blocks: Option<u64>,
        /// Whether exactly these; otherwise they are the regions that may have changed.
        exact: bool,
        /// When the first of it was written, if that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since_unix_ms: Option<u64>,
        /// When the asker wrote last what this site has, too, if that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        common_unix_ms: Option<u64>,
    },
    /// These groups are not noted here; the others are.
    NotNoted {
        /// Which, and why.
        refused: Vec<GroupRefused>,
    },
    /// This is what I reckon.
    Forecast(ForecastRecord),
    /// You have the lease, from when you asked.
    Leased,
    /// You do not have it, and this is why.
    NotLeased(NotLeased),
    /// You may be promoted, for all that I know.
    Consented,
    /// You may not, and this is why.
    NotConsented(NotConsented),
    /// No.
    Refused {
        /// A word of the admin API's error codes.
        code: String,
        /// Why, in words.
        message: String,
    },
}

/// Why there is no answer. What was asked may have been done all the same.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// There is no link to the site.
    #[error("it is not connected")]
    NotConnected,
    /// The link ended, or the site gave the question up.
    #[error(transparent)]
    Lost(#[from] StreamError),
    /// The link gave way to another one, which is not there.
    #[error("its connection gave way to another one, which was lost before the question could be asked again")]
    LostTwice,
    /// It did not answer in time.
    #[error("no answer within {:.1} s", deadline.as_secs_f64())]
    Late {
        /// How long it was waited for.
        deadline: Duration,
    },
    /// It answered something else than an answer.
    #[error("its answer makes no sense: {0}")]
    Senseless(String),
}

/// Asks a site and waits for its answer, at most until `deadline`, over however many links.
pub async fn ask(links: &Links, site: &SiteId, question: &Question, deadline: Duration) -> Result<Answer, AskError> {
    let header = serde_json::to_vec(question).map_err(|_| StreamError::Ended)?;
    let asked = async {
        let first = links.get(site).ok_or(AskError::NotConnected)?;
        let mut link = first.clone();
        loop {
            match ask_over(&link, &header).await {
                // With the first asking, whose answer is lost.
                Ok(Answer::Refused { code, .. }) if code == BUSY && !link.is(&first) => tokio::time::sleep(BUSY_POLL).await,
                Err(_) if link.gave_way() => {
                    tracing::debug!(%site, "the link gave way to another: asking again");
                    link = tokio::time::timeout(SUCCESSOR_DEADLINE, links.another(&link)).await.map_err(|_| AskError::LostTwice)?;
                }
                ended => return ended,
            }
        }
    };
    tokio::time::timeout(deadline, asked).await.unwrap_or(Err(AskError::Late { deadline }))
}

async fn ask_over(link: &Link, header: &[u8]) -> Result<Answer, AskError> {
    let (mut send, mut recv) = link.open(REQUEST, header).await?;
    send.finish();
    recv.set_limit(MAX_BYTES);
    let answer = recv.recv().await?.ok_or(StreamError::CutShort)?;
    serde_json::from_slice(&answer).map_err(|error| AskError::Senseless(error.to_string()))
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
pub(super) mod tests {
    use super::*;
    use crate::documented::PROTOCOL;

    pub(in super::super) fn check<T: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug>(message: &T) {
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
        check(&Question::Handover { volume: volume.clone(), generation: generation.clone(), force: false });
        check(&Question::TakeBack { volume: volume.clone(), generation });
        let settings = SettingsRecord {
            mode: "sync".into(),
            rpo_ms: 5000,
            bandwidth_bits_per_second: Some(20_000_000),
            bandwidth: Some("08:00-18:00=20Mbit,else=200Mbit".into()),
            on_disconnect: Some("suspend".into()),
            ack_timeout_ms: Some(3000),
            schedule: Some("15m".into()),
            others: Vec::new(),
        };
        check(&Question::Settings { volume: volume.clone(), settings: settings.clone() });
        let other = OtherStandby {
            site: "SITE".into(),
            name: "milan".into(),
            settings: SettingsRecord { mode: "async".into(), rpo_ms: 5000, ..SettingsRecord::default() },
        };
        check(&Question::Settings { volume: volume.clone(), settings: SettingsRecord { others: vec![other], ..settings } });
        check(&Question::Everywhere { volume: volume.clone(), epoch: 17 });
        check(&Question::Alone { volume: volume.clone() });
        let trial = Id([0x33; 16]).to_string();
        check(&Question::Fence { volume: volume.clone(), trial: None });
        check(&Question::Fence { volume: volume.clone(), trial: Some(trial.clone()) });
        check(&Question::TrialOver { volume: volume.clone(), generations: vec![trial] });
        let group =
            GroupTold { name: "shop".into(), id: Id([0x99; 16]).to_string(), members: vec![volume.clone(), Id([0x78; 16]).to_string()] };
        check(&Question::Groups { groups: vec![group] });
        check(&Question::Detach { volume });
        check(&Answer::Done);
        check(&Answer::Granted { epoch: 17, handed: None });
        check(&Answer::NotPrimary { committed: 17, handed: None });
        let (since_unix_ms, common_unix_ms) = (Some(1_795_300_000_500), Some(1_795_300_000_000));
        check(&Answer::Alone { blocks: Some(3), exact: true, since_unix_ms, common_unix_ms });
        let refused = vec![GroupRefused { name: "shop".into(), message: "a volume shop exists there already".into() }];
        check(&Answer::NotNoted { refused });
        check(&Answer::Refused { code: "client-active".into(), message: "a client is active at vm1 by nbd".into() });
    }
}
