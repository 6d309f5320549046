//! Questions about leases, as they are written down: JSON outside, the engine's words inside.

use super::request::{GenerationRecord, lineage_of, lineage_records, parse_id};
use replicator_engine::generation::Lineage;
use replicator_engine::lease::{Answer, Candidacy, MAX_LEASE_MS, Record, Refusal, Request};
use serde::{Deserialize, Serialize};

/// Longest id or name of a site.
const MAX_WORD_BYTES: usize = 255;

/// A primary asks for a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// The volume's id, in hexadecimal.
    pub volume: String,
    /// The primary's lineage.
    pub lineage: Vec<GenerationRecord>,
    /// Grows with each request of a generation.
    pub number: u64,
    /// Whether an automatic promotion now would cost no more than the mode says.
    pub promised: bool,
    /// The number of the request that said so first.
    pub said: u64,
    /// What was agreed upon.
    pub terms: LeaseTerms,
}

/// What the operator asked for, and between whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTerms {
    /// How long a lease is.
    pub lease_ms: u64,
    /// The standby's site.
    pub standby: String,
    /// The witness's site, and what the primary calls it; `None`: there is none.
    pub witness: Option<WitnessRecord>,
    /// For how long the standby hears nothing before it wants to be promoted; `None`: it never does.
    pub auto_promote_ms: Option<u64>,
}

/// A witness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessRecord {
    /// Its id.
    pub site: String,
    /// Its name.
    pub name: String,
}

/// Why there is no lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "why")]
pub enum NotLeased {
    /// A lease of an earlier generation may be valid still.
    Later {
        /// For so long at most.
        wait_ms: u64,
    },
    /// The standby is about to be promoted.
    Yielded,
    /// There is another generation.
    Overtaken {
        /// Its lineage.
        lineage: Vec<GenerationRecord>,
    },
    /// A later request was answered already.
    Old,
}

/// Why a witness does not agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "why")]
pub enum NotConsented {
    /// A lease may be valid still: the primary was alive when it asked for that.
    Later {
        /// For so long at most.
        wait_ms: u64,
    },
    /// The primary said that the standby does not have what its mode promises.
    PromiseBroken,
    /// The primary did not ask for automatic promotion.
    NotAutomatic,
    /// The witness knows another generation.
    OtherGeneration,
    /// The term is over.
    OldTerm,
}

/// A candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CandidacyRecord {
    /// The generation that it would be, in hexadecimal.
    pub generation: String,
    /// Tells its attempts apart.
    pub term: u64,
}

/// What a grantor records of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRecord {
    /// The primary's site.
    pub primary: String,
    /// What the primary asked for last.
    pub terms: LeaseTerms,
    /// See the engine's record, as for all that follows.
    pub lineage: Vec<GenerationRecord>,
    /// See there.
    pub lease_ms: u64,
    /// See there.
    pub auto_promote: bool,
    /// See there.
    pub promised: bool,
    /// See there.
    pub said: u64,
    /// See there.
    pub yielded: Option<CandidacyRecord>,
    /// See there.
    pub last_term: u64,
    /// See there.
    pub released_term: u64,
}

impl LeaseRequest {
    /// The engine's request; `None` if this is none.
    pub fn decoded(&self) -> Option<Request> {
        let LeaseTerms { lease_ms, auto_promote_ms, .. } = self.terms;
        let words =
            [Some(&self.terms.standby), self.terms.witness.as_ref().map(|of| &of.site), self.terms.witness.as_ref().map(|of| &of.name)];
        if !(1..=MAX_LEASE_MS).contains(&lease_ms) || words.into_iter().flatten().any(|word| word.len() > MAX_WORD_BYTES) {
            return None;
        }
        parse_id(&self.volume)?;
        let lineage = lineage_of(&self.lineage)?;
        let Self { number, promised, said, .. } = *self;
        Some(Request { lineage, number, lease_ms, auto_promote: auto_promote_ms.is_some(), promised, said })
    }
}

impl From<Candidacy> for CandidacyRecord {
    fn from(of: Candidacy) -> Self {
        Self { generation: of.generation.to_string(), term: of.term }
    }
}

impl CandidacyRecord {
    /// The engine's candidacy; `None` if this is none.
    pub fn decoded(&self) -> Option<Candidacy> {
        Some(Candidacy { generation: parse_id(&self.generation)?, term: self.term })
    }
}

impl LeaseRecord {
    /// Writes a record down.
    pub fn new(primary: String, terms: LeaseTerms, of: &Record) -> Self {
        let Record { lineage, lease_ms, auto_promote, promised, said, yielded, last_term, released_term } = of.clone();
        let (lineage, yielded) = (lineage_records(&lineage), yielded.map(CandidacyRecord::from));
        Self { primary, terms, lineage, lease_ms, auto_promote, promised, said, yielded, last_term, released_term }
    }

    /// Reads it; `None` if it is none.
    pub fn decoded(&self) -> Option<Record> {
        let Self { lease_ms, auto_promote, promised, said, last_term, released_term, .. } = *self;
        let yielded = match &self.yielded {
            Some(candidacy) => Some(candidacy.decoded()?),
            None => None,
        };
        let lineage = lineage_of(&self.lineage)?;
        Some(Record { lineage, lease_ms, auto_promote, promised, said, yielded, last_term, released_term })
    }
}

impl From<Answer> for super::request::Answer {
    fn from(answer: Answer) -> Self {
        Self::NotLeased(match answer {
            Answer::Granted => return Self::Leased,
            Answer::Later(wait_ms) => NotLeased::Later { wait_ms },
            Answer::Yielded => NotLeased::Yielded,
            Answer::Overtaken(lineage) => NotLeased::Overtaken { lineage: lineage_records(&lineage) },
            Answer::Old => NotLeased::Old,
        })
    }
}

impl From<Result<(), Refusal>> for super::request::Answer {
    fn from(answer: Result<(), Refusal>) -> Self {
        Self::NotConsented(match answer {
            Ok(()) => return Self::Consented,
            Err(Refusal::Later(wait_ms)) => NotConsented::Later { wait_ms },
            Err(Refusal::PromiseBroken) => NotConsented::PromiseBroken,
            Err(Refusal::NotAutomatic) => NotConsented::NotAutomatic,
            Err(Refusal::OtherGeneration(_)) => NotConsented::OtherGeneration,
            Err(Refusal::OldTerm) => NotConsented::OldTerm,
        })
    }
}

/// What a grantor's answer means; `None`: it is none.
pub fn answer_of(answer: super::request::Answer) -> Option<Answer> {
    use super::request::Answer as Written;
    Some(match answer {
        Written::Leased => Answer::Granted,
        Written::NotLeased(NotLeased::Later { wait_ms }) => Answer::Later(wait_ms),
        Written::NotLeased(NotLeased::Yielded) => Answer::Yielded,
        Written::NotLeased(NotLeased::Overtaken { lineage }) => Answer::Overtaken(lineage_of(&lineage)?),
        Written::NotLeased(NotLeased::Old) => Answer::Old,
        _ => return None,
    })
}

/// What a witness's answer means, to a candidate that knows this lineage; `None`: it is none.
pub fn consent_of(answer: super::request::Answer, lineage: &Lineage) -> Option<Result<(), Refusal>> {
    use super::request::Answer as Written;
    Some(match answer {
        Written::Consented => Ok(()),
        Written::NotConsented(why) => Err(match why {
            NotConsented::Later { wait_ms } => Refusal::Later(wait_ms),
            NotConsented::PromiseBroken => Refusal::PromiseBroken,
            NotConsented::NotAutomatic => Refusal::NotAutomatic,
            NotConsented::OtherGeneration => Refusal::OtherGeneration(lineage.clone()),
            NotConsented::OldTerm => Refusal::OldTerm,
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::check;
    use super::super::request::{Answer as Written, Question};
    use super::*;
    use replicator_engine::generation::Id;

    fn terms() -> LeaseTerms {
        let witness = Some(WitnessRecord { site: "WITNESS".into(), name: "kyoto".into() });
        LeaseTerms { lease_ms: 10_000, standby: "STANDBY".into(), witness, auto_promote_ms: Some(30_000) }
    }

    #[test]
    fn questions_and_answers_about_leases_are_the_documented_ones() {
        let (volume, lineage) = (Id([0x77; 16]).to_string(), Lineage::first(Id([0x11; 16])));
        let records = lineage_records(&lineage);
        let request =
            LeaseRequest { volume: volume.clone(), lineage: records.clone(), number: 17, promised: true, said: 16, terms: terms() };
        assert_eq!(request.decoded().map(|request| (request.number, request.auto_promote)), Some((17, true)));
        check(&Question::Lease(request));
        let candidacy = Candidacy { generation: Id([0x22; 16]), term: 3 };
        check(&Question::Consent { volume: volume.clone(), lineage: records, candidacy: candidacy.into() });
        check(&Question::Withdraw { volume, term: 3 });
        let answers = [Answer::Granted, Answer::Later(1500), Answer::Yielded, Answer::Overtaken(lineage.clone()), Answer::Old];
        for answer in answers {
            let written = Written::from(answer.clone());
            check(&written);
            assert_eq!(answer_of(written), Some(answer));
        }
        let refusals = [Refusal::Later(1500), Refusal::PromiseBroken, Refusal::NotAutomatic];
        let refusals = refusals.into_iter().chain([Refusal::OtherGeneration(lineage.clone()), Refusal::OldTerm]);
        for answer in std::iter::once(Ok(())).chain(refusals.map(Err)) {
            let written = Written::from(answer.clone());
            check(&written);
            assert_eq!(consent_of(written, &lineage), Some(answer));
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let lineage = Lineage::first(Id([0x11; 16]));
        let yielded = Some(Candidacy { generation: Id([0x22; 16]), term: 3 });
        let (lease_ms, said, last_term, released_term) = (10_000, 16, 3, 2);
        let record = Record { lineage, lease_ms, auto_promote: true, promised: false, said, yielded, last_term, released_term };
        let written = LeaseRecord::new("PRIMARY".into(), terms(), &record);
        let json = serde_json::to_string(&written).unwrap();
        assert!(crate::documented::FORMATS.contains(&json), "{json}");
        assert_eq!(serde_json::from_str::<LeaseRecord>(&json).unwrap().decoded(), Some(record));
    }
}
