//! The primary's side: asks for leases, and knows until when it may acknowledge.

use super::{Answer, Request};
use crate::generation::Lineage;

/// Requests go out so many times within a lease.
const ASKS_A_LEASE: u64 = 4;

/// Who grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// The standby.
    Standby,
    /// The witness.
    Witness,
}

/// Something to send now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whom.
    pub to: Party,
    /// What.
    pub request: Request,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    number: u64,
    sent_ms: u64,
    /// Which word on the promise it had.
    said: u64,
}

#[derive(Clone, Copy, Debug)]
struct Grantor {
    party: Party,
    next_ask_ms: u64,
    /// The request that was sent last, unless it was answered or lost.
    asked: Option<Asked>,
    /// The lease that it granted last ends then.
    until_ms: u64,
    /// Why it did not grant, when asked last.
    refused: bool,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Holder {
    lineage: Lineage,
    lease_ms: u64,
    auto_promote: bool,
    promised: bool,
    grantors: Vec<Grantor>,
    number: u64,
    /// Of the request that said so first; `None`: the next one does.
    said: Option<u64>,
    /// Which word the witness has recorded.
    told: Option<u64>,
    /// Leases that this site granted itself, before it was promoted, have run out then.
    not_before_ms: u64,
}

impl Holder {
    /// A primary without any lease yet. Its requests are numbered from `first_number` on, which no earlier run of it has used.
    pub fn new(lineage: Lineage, lease_ms: u64, auto_promote: bool, parties: &[Party], first_number: u64) -> Self {
        let idle = |party: &Party| Grantor { party: *party, next_ask_ms: 0, asked: None, until_ms: 0, refused: false };
        Self {
            lineage,
            lease_ms,
            auto_promote,
            promised: false,
            grantors: parties.iter().map(idle).collect(),
            number: first_number,
            said: None,
            told: None,
            not_before_ms: 0,
        }
    }

    /// Acknowledges nothing before that.
    pub fn wait_until(&mut self, not_before_ms: u64) {
        self.not_before_ms = not_before_ms;
    }

    /// What to say of the promise from now on. Where it holds, all that it covers must be at the standby by now.
    pub fn set_promised(&mut self, promised: bool, now_ms: u64) {
        if promised == self.promised {
            return;
        }
        (self.promised, self.said) = (promised, None);
        self.grantors.iter_mut().for_each(|grantor| grantor.next_ask_ms = now_ms);
    }

    /// Whether the witness has recorded that the promise does not hold, or nobody has to: then weaker acknowledgements may be given.
    pub fn is_told_broken(&self) -> bool {
        !self.promised && (self.is_told() || !self.auto_promote)
    }

    /// Whether the witness has recorded that the promise holds: then the standby is promoted if this site is lost.
    pub fn is_told_held(&self) -> bool {
        self.promised && self.auto_promote && self.is_told()
    }

    fn is_told(&self) -> bool {
        self.said.is_some() && self.told == self.said
    }

    /// Until when it may acknowledge, by its own clock; 0: not at all.
    pub fn until_ms(&self, now_ms: u64) -> u64 {
        let longest = self.grantors.iter().map(|grantor| grantor.until_ms).max().unwrap_or(0);
        if now_ms < self.not_before_ms { 0 } else { longest }
    }

    /// Until when that party has granted.
    pub fn granted_by_ms(&self, party: Party) -> u64 {
        self.grantors.iter().find(|grantor| grantor.party == party).map_or(0, |grantor| grantor.until_ms)
    }

    /// Whether that party answered, and granted nothing.
    pub fn is_refused_by(&self, party: Party) -> bool {
        self.grantors.iter().any(|grantor| grantor.party == party && grantor.refused)
    }

    /// How long an answer is waited for.
    pub fn patience_ms(&self) -> u64 {
        self.lease_ms / 2
    }

    /// What to send now.
    pub fn poll(&mut self, now_ms: u64) -> Option<Ask> {
        let patience_ms = self.patience_ms();
        let Self { lineage, lease_ms, auto_promote, promised, grantors, number, said, .. } = self;
        for grantor in &mut *grantors {
            grantor.asked.take_if(|asked| now_ms >= asked.sent_ms + patience_ms);
        }
        let grantor = grantors.iter_mut().find(|grantor| grantor.asked.is_none() && now_ms >= grantor.next_ask_ms)?;
        *number += 1;
        let said = *said.get_or_insert(*number);
        grantor.asked = Some(Asked { number: *number, sent_ms: now_ms, said });
        grantor.next_ask_ms = now_ms + *lease_ms / ASKS_A_LEASE;
        let (lineage, number, lease_ms) = (lineage.clone(), *number, *lease_ms);
        Some(Ask {
            to: grantor.party,
            request: Request { lineage, number, lease_ms, auto_promote: *auto_promote, promised: *promised, said },
        })
    }

    /// When there is something to send next, unless something happens before.
    pub fn next_ms(&self) -> Option<u64> {
        let patience_ms = self.patience_ms();
        self.grantors.iter().map(|grantor| grantor.asked.map_or(grantor.next_ask_ms, |asked| asked.sent_ms + patience_ms)).min()
    }

    /// The answer to a request. Returns the lineage that has overtaken this one, if it tells of one.
    pub fn handle_answer(&mut self, party: Party, number: u64, answer: Answer, now_ms: u64) -> Option<Lineage> {
        let grantor = self.grantors.iter_mut().find(|grantor| grantor.party == party)?;
        let Asked { sent_ms, said, .. } = grantor.asked.take_if(|asked| asked.number == number)?;
        grantor.refused = answer != Answer::Granted;
        match answer {
            Answer::Granted => {
                grantor.until_ms = sent_ms + self.lease_ms;
                if party == Party::Witness {
                    self.told = self.told.max(Some(said));
                }
            }
            Answer::Later(ms) => grantor.next_ask_ms = grantor.next_ask_ms.min(now_ms.saturating_add(ms.max(1))),
            Answer::Overtaken(lineage) => return Some(lineage),
            Answer::Yielded | Answer::Old => {}
        }
        None
    }

    /// There will be no answer.
    pub fn handle_lost(&mut self, party: Party, number: u64) {
        if let Some(grantor) = self.grantors.iter_mut().find(|grantor| grantor.party == party) {
            grantor.asked.take_if(|asked| asked.number == number);
        }
    }
}
