//! The standby's side: grants leases, and stands for promotion when it has not heard its primary for long enough.

use super::{Answer, Candidacy, Grantor, Record, Refusal, Request, Verdict};
use crate::generation::{Id, Lineage};

/// From one attempt at something to the next.
const RETRY_MS: u64 = 500;

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Call [`Standby::decide_to_stand`], record what it says, then [`Standby::accept`].
    Stand,
    /// Ask the witness, then call [`Standby::handle_consent`]; without an answer nothing.
    AskWitness(Candidacy),
    /// Call [`Standby::decide_to_withdraw`], record what it says, then [`Standby::accept`].
    Withdraw,
    /// Promote the copy to this generation. It is no standby then.
    Promote(Candidacy),
    /// Tell the witness that this term is withdrawn, then call [`Standby::decide_released`], and record and accept that.
    Release(u64),
}

/// How far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Follows.
    Following,
    /// Grants nothing any more; with what the witness said last.
    Standing(Option<Refusal>),
    /// The witness has agreed.
    Agreed,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Standby {
    grantor: Grantor,
    auto_promote_ms: Option<u64>,
    heard_ms: u64,
    /// When it last stood.
    stood_ms: u64,
    retry_ms: u64,
    agreed: Option<u64>,
    refusal: Option<Refusal>,
}

impl Standby {
    /// One that starts with what is recorded. `auto_promote_ms`: how long it hears nothing before it stands.
    pub fn new(record: Option<Record>, auto_promote_ms: Option<u64>, now_ms: u64) -> Self {
        let grantor = Grantor::new(record, now_ms);
        Self { grantor, auto_promote_ms, heard_ms: now_ms, stood_ms: now_ms, retry_ms: 0, agreed: None, refusal: None }
    }

    /// The grantor in it.
    pub fn grantor(&self) -> &Grantor {
        &self.grantor
    }

    /// How long it hears nothing before it stands; `None`: it never does.
    pub fn set_auto_promote(&mut self, auto_promote_ms: Option<u64>) {
        self.auto_promote_ms = auto_promote_ms;
    }

    /// This site is no standby: silence counts from the moment at which it is one.
    pub fn handle_not_standby(&mut self, now_ms: u64) {
        (self.heard_ms, self.agreed) = (now_ms, None);
    }

    /// When it last heard its primary.
    pub fn heard_ms(&self) -> u64 {
        self.heard_ms
    }

    fn candidacy(&self) -> Option<Candidacy> {
        self.grantor.record()?.yielded
    }

    /// How far it has come.
    pub fn stage(&self) -> Stage {
        match self.candidacy() {
            None => Stage::Following,
            Some(candidacy) if self.agreed == Some(candidacy.term) => Stage::Agreed,
            Some(_) => Stage::Standing(self.refusal.clone()),
        }
    }

    /// The primary asks for a lease.
    pub fn decide(&mut self, request: &Request, now_ms: u64) -> Verdict<Answer> {
        let verdict = self.grantor.decide(request, now_ms);
        if !matches!(verdict.answer, Answer::Overtaken(_) | Answer::Old) {
            self.heard_ms = now_ms;
        }
        verdict
    }

    /// What was decided is recorded, durably.
    pub fn accept<T>(&mut self, verdict: Verdict<T>) -> T {
        self.grantor.accept(verdict)
    }

    /// The record failed.
    pub fn handle_failed(&mut self) {
        self.grantor.handle_failed();
    }

    /// What to do now.
    pub fn poll(&mut self, now_ms: u64) -> Option<Step> {
        let record = self.grantor.record()?;
        if now_ms < self.retry_ms {
            return None;
        }
        let step = match record.yielded {
            Some(candidacy) if self.agreed == Some(candidacy.term) => Some(Step::Promote(candidacy)),
            // It is there after all, or nobody wants this any more.
            Some(_) if self.heard_ms > self.stood_ms || self.auto_promote_ms.is_none() => Some(Step::Withdraw),
            Some(candidacy) => (now_ms >= self.grantor.until_ms()).then_some(Step::AskWitness(candidacy)),
            None if record.released_term < record.last_term => Some(Step::Release(record.last_term)),
            None => {
                let silent = self.auto_promote_ms.is_some_and(|limit| now_ms.saturating_sub(self.heard_ms) >= limit);
                (silent && record.auto_promote).then_some(Step::Stand)
            }
        };
        if step.is_some() {
            self.retry_ms = now_ms + RETRY_MS;
        }
        step
    }

    /// Stands, to become this generation. `least_term`: larger than any that a witness may remember of a copy that was here before.
    pub fn decide_to_stand(&mut self, generation: Id, least_term: u64, now_ms: u64) -> Option<Verdict<Result<(), Refusal>>> {
        (self.agreed, self.refusal, self.stood_ms) = (None, None, now_ms);
        self.grantor.decide_to_stand(generation, least_term)
    }

    /// Follows again.
    pub fn decide_to_withdraw(&mut self) -> Verdict<()> {
        self.agreed = None;
        self.grantor.decide_release(self.candidacy().map_or(0, |candidacy| candidacy.term))
    }

    /// The witness knows.
    pub fn decide_released(&self, term: u64) -> Verdict<()> {
        self.grantor.decide_released(term)
    }

    /// What the witness said to this candidacy.
    pub fn handle_consent(&mut self, candidacy: Candidacy, answer: Result<(), Refusal>) {
        if self.candidacy() != Some(candidacy) {
            return;
        }
        match answer {
            Ok(()) => (self.agreed, self.retry_ms) = (Some(candidacy.term), 0),
            Err(refusal) => self.refusal = Some(refusal),
        }
    }

    /// The primary's lineage, as far as this standby was told.
    pub fn lineage(&self) -> Option<&Lineage> {
        self.grantor.record().map(|record| &record.lineage)
    }
}
