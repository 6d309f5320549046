//! The sites, their disks and clocks, and the messages between them.

use super::super::*;
use crate::generation::{Id, Lineage, Relation};

pub const A: usize = 0;
pub const B: usize = 1;
pub const W: usize = 2;
pub const LEASE_MS: u64 = 1_000;
/// After so long a standby stands: before the lease has run out, so that it has to wait for that.
pub const SILENCE_MS: u64 = 600;
/// In [`World::run`]: from sending to arrival.
const TRANSIT_MS: u64 = 20;
/// Messages that are under way at most; the oldest is lost.
const MAX_MESSAGES: usize = 64;

#[derive(Clone, Debug)]
enum Message {
    Request(Request),
    Answer(u64, Answer),
    Consent(Lineage, Candidacy),
    Consented(Candidacy, Result<(), Refusal>),
    Release(u64),
    Released(u64),
}

#[derive(Debug)]
enum Role {
    Primary(Holder),
    Standby(Standby),
    Witness(Grantor),
}

/// What outlives a site's death.
#[derive(Clone, Debug, Default)]
struct Disk {
    /// The site's own lineage while it is primary.
    primary: Option<Lineage>,
    grants: Option<Record>,
    /// Requests are numbered from here on.
    number: u64,
    broken: bool,
}

#[derive(Debug)]
struct Site {
    rate_ppm: i64,
    /// `None` while it is dead.
    role: Option<Role>,
    disk: Disk,
}

#[derive(Debug)]
pub struct World {
    now_us: u64,
    sites: [Site; 3],
    /// From, to, what.
    messages: Vec<(usize, usize, Message)>,
    cuts: [[bool; 3]; 3],
    /// Whether the primary wants to say that its promise holds.
    promised: bool,
    /// The generation that gave an acknowledgement which the standby may not have.
    weak: Option<Id>,
    minted: u128,
}

impl World {
    /// A is the primary, B its standby. Clocks are off by so many millionths.
    pub fn new(rates: [i64; 3]) -> Self {
        let lineage = Lineage::first(Id([1; 16]));
        let site = |rate_ppm, primary| Site { rate_ppm, role: None, disk: Disk { primary, ..Disk::default() } };
        let sites = [site(rates[0], Some(lineage)), site(rates[1], None), site(rates[2], None)];
        let (messages, cuts) = (Vec::new(), [[false; 3]; 3]);
        let mut world = Self { now_us: 1_000_000, sites, messages, cuts, promised: true, weak: None, minted: 1 };
        (0..3).for_each(|site| world.start(site));
        world
    }

    fn clock_ms(&self, site: usize) -> u64 {
        let ppm = u64::try_from(1_000_000 + self.sites[site].rate_ppm).unwrap();
        self.now_us / 1000 * ppm / 1_000_000
    }

    pub fn start(&mut self, site: usize) {
        if self.sites[site].role.is_some() {
            return;
        }
        let now_ms = self.clock_ms(site);
        let disk = &mut self.sites[site].disk;
        let role = match &disk.primary {
            _ if site == W => Role::Witness(Grantor::new(disk.grants.clone(), now_ms)),
            Some(_) if disk.broken => return,
            Some(lineage) => {
                disk.number += 1 << 32;
                Role::Primary(Holder::new(lineage.clone(), LEASE_MS, true, &[Party::Standby, Party::Witness], disk.number))
            }
            None => Role::Standby(Standby::new(disk.grants.clone(), Some(SILENCE_MS), now_ms)),
        };
        self.sites[site].role = Some(role);
        self.tell_promise(site);
        self.check();
    }

    pub fn kill(&mut self, site: usize) {
        self.sites[site].role = None;
    }

    pub fn set_disk(&mut self, site: usize, works: bool) {
        self.sites[site].disk.broken = !works;
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.cuts[from][to] = true;
    }

    /// Both ways.
    pub fn part(&mut self, one: usize, other: usize) {
        self.cut(one, other);
        self.cut(other, one);
    }

    pub fn heal(&mut self) {
        self.cuts = Default::default();
    }

    pub fn mend(&mut self) {
        self.heal();
        self.set_promised(true);
        for site in [A, B, W] {
            self.set_disk(site, true);
            self.start(site);
        }
    }

    /// The promise breaks, or all is at the standby and it holds.
    pub fn set_promised(&mut self, holds: bool) {
        self.promised = holds;
        if holds {
            self.weak = None;
        }
        (0..2).for_each(|site| self.tell_promise(site));
    }

    fn tell_promise(&mut self, site: usize) {
        let (promised, now_ms) = (self.promised, self.clock_ms(site));
        if let Some(Role::Primary(holder)) = &mut self.sites[site].role {
            holder.set_promised(promised, now_ms);
        }
    }

    /// Time passes; whoever has something to do does it.
    pub fn pass(&mut self, ms: u64) {
        self.now_us += ms * 1000;
        self.work();
    }

    /// Time passes in small steps, and messages that are not cut off arrive.
    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms / TRANSIT_MS {
            self.pass(TRANSIT_MS);
            let under_way = self.messages.len();
            (0..under_way).for_each(|_| self.deliver(0, false));
        }
    }

    fn work(&mut self) {
        (0..3).for_each(|site| while self.work_at(site) {});
        self.check();
    }

    fn work_at(&mut self, site: usize) -> bool {
        let now_ms = self.clock_ms(site);
        let other = 1 - site.min(1);
        match &mut self.sites[site].role {
            Some(Role::Primary(holder)) => {
                let Some(ask) = holder.poll(now_ms) else { return false };
                let to = if ask.to == Party::Standby { other } else { W };
                self.send(site, to, Message::Request(ask.request));
            }
            Some(Role::Standby(standby)) => {
                let Some(step) = standby.poll(now_ms) else { return false };
                self.take(site, step);
            }
            Some(Role::Witness(_)) | None => return false,
        }
        true
    }

    fn take(&mut self, site: usize, step: Step) {
        let now_ms = self.clock_ms(site);
        let generation = Id((self.minted + 1).to_le_bytes());
        let Some(Role::Standby(standby)) = &mut self.sites[site].role else { return };
        match step {
            Step::Stand => {
                self.minted += 1;
                if let Some(verdict) = standby.decide_to_stand(generation, 0, now_ms) {
                    self.settle(site, verdict);
                }
            }
            Step::Withdraw => {
                let verdict = standby.decide_to_withdraw();
                self.settle(site, verdict);
            }
            Step::AskWitness(candidacy) => {
                let Some(lineage) = standby.lineage().cloned() else { return };
                self.send(site, W, Message::Consent(lineage, candidacy));
            }
            Step::Release(term) => self.send(site, W, Message::Release(term)),
            Step::Promote(candidacy) => {
                let Some(lineage) = standby.lineage().cloned() else { return };
                if self.sites[site].disk.broken {
                    return;
                }
                assert_ne!(self.weak, Some(lineage.current().id), "what was acknowledged here alone is lost: {self:?}");
                let own_ms = standby.grantor().until_ms();
                self.sites[site].disk.primary = Some(lineage.promoted(candidacy.generation, 1));
                self.sites[site].role = None;
                self.start(site);
                if let Some(Role::Primary(holder)) = &mut self.sites[site].role {
                    holder.wait_until(own_ms);
                }
            }
        }
    }

    /// Records what was decided, if the disk works; says what to answer.
    fn settle<T>(&mut self, site: usize, verdict: Verdict<T>) -> Option<T> {
        let Site { role, disk, .. } = &mut self.sites[site];
        if let Some(record) = &verdict.record {
            if disk.broken {
                match role {
                    Some(Role::Standby(standby)) => standby.handle_failed(),
                    Some(Role::Witness(grantor)) => grantor.handle_failed(),
                    _ => {}
                }
                // Nobody knows whether it is there.
                if record.said % 2 == 0 {
                    disk.grants = Some(record.clone());
                }
                return None;
            }
            disk.grants = Some(record.clone());
        }
        match role {
            Some(Role::Standby(standby)) => Some(standby.accept(verdict)),
            Some(Role::Witness(grantor)) => Some(grantor.accept(verdict)),
            _ => None,
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if self.messages.len() == MAX_MESSAGES {
            self.messages.remove(0);
        }
        self.messages.push((from, to, message));
    }

    pub fn lose(&mut self, n: usize) {
        if n < self.messages.len() {
            self.messages.remove(n);
        }
    }

    pub fn deliver(&mut self, n: usize, twice: bool) {
        if n >= self.messages.len() {
            return;
        }
        let (from, to, message) = self.messages.remove(n);
        if twice {
            self.messages.push((from, to, message.clone()));
        }
        if !self.cuts[from][to] {
            self.receive(from, to, message);
        }
        self.check();
    }

    fn receive(&mut self, from: usize, to: usize, message: Message) {
        let now_ms = self.clock_ms(to);
        match (&mut self.sites[to].role, message) {
            (Some(Role::Standby(standby)), Message::Request(request)) => {
                let (number, verdict) = (request.number, standby.decide(&request, now_ms));
                let answer = self.settle(to, verdict);
                self.answer(to, from, number, answer);
            }
            (Some(Role::Witness(grantor)), Message::Request(request)) => {
                let (number, verdict) = (request.number, grantor.decide(&request, now_ms));
                let answer = self.settle(to, verdict);
                self.answer(to, from, number, answer);
            }
            (Some(Role::Primary(_)), Message::Request(request)) => self.meet_another_primary(from, to, &request),
            (Some(Role::Primary(holder)), Message::Answer(number, answer)) => {
                let party = if from == W { Party::Witness } else { Party::Standby };
                if let Some(theirs) = holder.handle_answer(party, number, answer, now_ms) {
                    self.follow(to, &theirs);
                }
            }
            (Some(Role::Witness(grantor)), Message::Consent(lineage, candidacy)) => {
                let verdict = grantor.decide_consent(&lineage, candidacy, now_ms);
                if let Some(answer) = self.settle(to, verdict) {
                    self.send(to, from, Message::Consented(candidacy, answer));
                }
            }
            (Some(Role::Standby(standby)), Message::Consented(candidacy, answer)) => standby.handle_consent(candidacy, answer),
            (Some(Role::Witness(grantor)), Message::Release(term)) => {
                let verdict = grantor.decide_release(term);
                if self.settle(to, verdict).is_some() {
                    self.send(to, from, Message::Released(term));
                }
            }
            (Some(Role::Standby(standby)), Message::Released(term)) => {
                let verdict = standby.decide_released(term);
                self.settle(to, verdict);
            }
            _ => {}
        }
    }

    fn answer(&mut self, from: usize, to: usize, number: u64, answer: Option<Answer>) {
        if let Some(answer) = answer {
            self.send(from, to, Message::Answer(number, answer));
        }
    }

    fn meet_another_primary(&mut self, from: usize, to: usize, request: &Request) {
        let Some(mine) = self.sites[to].disk.primary.clone() else { return };
        match mine.relation(&request.lineage) {
            Relation::TheirsAhead(_) => self.follow(to, &request.lineage),
            _ => self.answer(to, from, request.number, Some(Answer::Overtaken(mine))),
        }
    }

    /// Another site was promoted: this one becomes its standby, as the operator would have it.
    fn follow(&mut self, site: usize, theirs: &Lineage) {
        let is_behind =
            self.sites[site].disk.primary.as_ref().is_some_and(|mine| matches!(mine.relation(theirs), Relation::TheirsAhead(_)));
        assert!(is_behind, "a split: {self:?}");
        self.sites[site].disk.primary = None;
        self.sites[site].role = None;
        self.start(site);
    }

    pub fn acknowledges(&self, site: usize) -> bool {
        let now_ms = self.clock_ms(site);
        matches!(&self.sites[site].role, Some(Role::Primary(holder)) if holder.until_ms(now_ms) > now_ms)
    }

    pub fn is_standby(&self, site: usize) -> bool {
        matches!(self.sites[site].role, Some(Role::Standby(_)))
    }

    pub fn acknowledged_weakly(&self) -> bool {
        self.weak.is_some()
    }

    pub fn stage(&self, site: usize) -> Option<Stage> {
        if let Some(Role::Standby(standby)) = &self.sites[site].role { Some(standby.stage()) } else { None }
    }

    fn check(&mut self) {
        assert!(!(self.acknowledges(A) && self.acknowledges(B)), "both acknowledge: {self:?}");
        for site in [A, B] {
            if let Some(Role::Primary(holder)) = &self.sites[site].role
                && self.acknowledges(site)
                && holder.is_told_broken()
            {
                self.weak = self.sites[site].disk.primary.as_ref().map(|lineage| lineage.current().id);
            }
        }
    }
}
