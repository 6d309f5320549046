//! Whoever grants leases for one volume: a standby, or a witness.

use super::{Answer, Candidacy, Record, Request, wait_of_ms};
use crate::generation::{Id, Lineage, Relation};

/// A decision. What is to be recorded must be durable before [`Grantor::accept`] is called and the answer leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a decision counts once it is accepted"]
pub struct Verdict<T> {
    /// What to record; `None`: nothing changed.
    pub record: Option<Record>,
    /// What to say.
    pub answer: T,
    number: u64,
    until_ms: u64,
}

/// Why a witness does not agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Leases that it granted may be valid for so many milliseconds: the primary was alive then.
    Later(u64),
    /// The primary said that the standby does not have what its mode promises.
    PromiseBroken,
    /// The primary did not ask for automatic promotion, or nobody ever asked for anything.
    NotAutomatic,
    /// The candidate knows another generation than the witness.
    OtherGeneration(Lineage),
    /// The term is over.
    OldTerm,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Grantor {
    record: Option<Record>,
    /// Whatever was granted has run out then.
    until_ms: u64,
    number: u64,
    /// A record failed: what is on disk is not known.
    in_doubt: bool,
}

impl Grantor {
    /// One that starts with what is recorded.
    pub fn new(record: Option<Record>, now_ms: u64) -> Self {
        let until_ms = record.as_ref().map_or(0, |record| now_ms + wait_of_ms(record.lease_ms));
        Self { number: record.as_ref().map_or(0, |record| record.said), record, until_ms, in_doubt: false }
    }

    /// What is recorded.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// When whatever was granted has run out.
    pub fn until_ms(&self) -> u64 {
        self.until_ms
    }

    /// A primary asks for a lease.
    pub fn decide(&self, request: &Request, now_ms: u64) -> Verdict<Answer> {
        let Some(old) = &self.record else { return self.grant(first(request), request, now_ms) };
        let moves = match old.lineage.relation(&request.lineage) {
            Relation::Same if request.number <= self.number || request.said < old.said => return self.only(Answer::Old),
            Relation::Same => false,
            Relation::TheirsAhead(_) => true,
            // After a split the operator's choice has a higher counter than both.
            Relation::Split if request.lineage.current().counter > old.lineage.current().counter => true,
            Relation::MineAhead(_) | Relation::Split | Relation::Unrelated => {
                return self.only(Answer::Overtaken(old.lineage.clone()));
            }
        };
        let became = |candidacy: Candidacy| request.lineage.generations().iter().any(|of| of.id == candidacy.generation);
        if old.yielded.is_some_and(|candidacy| !became(candidacy)) {
            return self.only(Answer::Yielded);
        }
        if moves && now_ms < self.until_ms {
            return self.only(Answer::Later(self.until_ms - now_ms));
        }
        let is_longest = self.until_ms <= now_ms + wait_of_ms(request.lease_ms);
        let lease_ms = if is_longest { request.lease_ms } else { request.lease_ms.max(old.lease_ms) };
        let Record { last_term, released_term, .. } = *old;
        self.grant(Record { lease_ms, last_term, released_term, ..first(request) }, request, now_ms)
    }

    fn grant(&self, record: Record, request: &Request, now_ms: u64) -> Verdict<Answer> {
        let until_ms = self.until_ms.max(now_ms + wait_of_ms(request.lease_ms));
        let same = self.record.as_ref() == Some(&record);
        let record = (!same || self.in_doubt).then_some(record);
        Verdict { record, answer: Answer::Granted, number: request.number, until_ms }
    }

    /// A candidate asks a witness to agree to its promotion; `lineage` is what it knows of the primary.
    pub fn decide_consent(&self, lineage: &Lineage, candidacy: Candidacy, now_ms: u64) -> Verdict<Result<(), Refusal>> {
        let Some(record) = &self.record else { return self.only(Err(Refusal::NotAutomatic)) };
        if record.yielded == Some(candidacy) && !self.in_doubt {
            return self.only(Ok(()));
        }
        let refusal = if record.lineage.relation(lineage) != Relation::Same {
            Refusal::OtherGeneration(record.lineage.clone())
        } else if candidacy.term <= record.last_term && record.yielded != Some(candidacy) {
            Refusal::OldTerm
        } else if !record.auto_promote {
            Refusal::NotAutomatic
        } else if now_ms < self.until_ms {
            Refusal::Later(self.until_ms - now_ms)
        } else if !record.promised {
            Refusal::PromiseBroken
        } else {
            return self.yields(record, candidacy);
        };
        self.only(Err(refusal))
    }

    /// Grants nothing any more, for the sake of a candidate.
    fn yields(&self, record: &Record, candidacy: Candidacy) -> Verdict<Result<(), Refusal>> {
        let record = Record { yielded: Some(candidacy), last_term: candidacy.term, ..record.clone() };
        Verdict { record: Some(record), ..self.only(Ok(())) }
    }

    /// A standby stops granting, to be promoted itself; `None` if nobody ever asked it for a lease.
    pub fn decide_to_stand(&self, generation: Id, least_term: u64) -> Option<Verdict<Result<(), Refusal>>> {
        let record = self.record.as_ref()?;
        Some(self.yields(record, Candidacy { generation, term: least_term.max(record.last_term + 1) }))
    }

    /// All that it granted has run out, and it grants nothing now: there is nothing to wait for after a restart. `None`: not so, or known.
    pub fn decide_run_out(&self, now_ms: u64) -> Option<Verdict<()>> {
        let record = self.record.as_ref().filter(|record| now_ms >= self.until_ms && record.lease_ms > 0)?;
        Some(Verdict { record: Some(Record { lease_ms: 0, ..record.clone() }), ..self.only(()) })
    }

    /// The candidate has withdrawn this term, and all before it.
    pub fn decide_release(&self, term: u64) -> Verdict<()> {
        let changed = |old: &Record| {
            let yielded = old.yielded.filter(|candidacy| candidacy.term > term);
            let record = Record { yielded, last_term: old.last_term.max(term), ..old.clone() };
            (record != *old || self.in_doubt).then_some(record)
        };
        Verdict { record: self.record.as_ref().and_then(changed), ..self.only(()) }
    }

    /// A standby: the witness knows that this term is withdrawn.
    pub fn decide_released(&self, term: u64) -> Verdict<()> {
        let record = self.record.as_ref().map(|old| Record { released_term: old.released_term.max(term), ..old.clone() });
        Verdict { record, ..self.only(()) }
    }

    fn only<T>(&self, answer: T) -> Verdict<T> {
        Verdict { record: None, answer, number: self.number, until_ms: self.until_ms }
    }

    /// What was decided is recorded, durably.
    pub fn accept<T>(&mut self, verdict: Verdict<T>) -> T {
        if let Some(record) = verdict.record {
            (self.record, self.in_doubt) = (Some(record), false);
        }
        (self.number, self.until_ms) = (verdict.number, verdict.until_ms);
        verdict.answer
    }

    /// The record failed: it may be there, or not. The next one is written whatever it says.
    pub fn handle_failed(&mut self) {
        self.in_doubt = true;
    }
}

/// The record that a request makes.
fn first(request: &Request) -> Record {
    let Request { lineage, lease_ms, auto_promote, promised, said, .. } = request.clone();
    Record { lineage, lease_ms, auto_promote, promised, said, yielded: None, last_term: 0, released_term: 0 }
}
