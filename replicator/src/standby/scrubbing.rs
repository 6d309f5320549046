//! When a standby's image is looked through: by whom, at which pace, and who is told.

use super::scrub::{Round, Step};
use super::service::{Progress, Shell};
use super::{Health, Standby, checked};
use crate::clock::unix_ms;
use crate::disk::SegmentFiles;
use replicator_engine::wire::{MAX_RUNS, Message};
use roaring::RoaringBitmap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Before the first round of a copy, and of one of which nobody knows when the last one was.
const FIRST_AFTER: Duration = Duration::from_secs(3600);
/// From a step that was not possible to the next attempt.
const RETRY: Duration = Duration::from_secs(1);
/// From a step that failed to the next attempt: a path to the disk may come back.
const RETRY_FAILED: Duration = Duration::from_secs(10);
/// Attempts until what cannot be read is given up.
const ATTEMPTS: u32 = 3;
/// How often it is recorded how far a round has come.
const REMEMBER_INTERVAL: Duration = Duration::from_secs(10);
/// Damaged blocks that the primary is asked for at once, and how long until the next ones: 1 MiB a second.
const REPAIR_BLOCKS: usize = 256;
const REPAIR_INTERVAL: Duration = Duration::from_secs(1);
/// Somebody who asks where no round is made by itself gets one at this pace.
const ASKED_BYTES_PER_SECOND: u64 = 10 << 20;

/// How often, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPace {
    /// A round begins when the last one ended so long ago; `None`: only when asked.
    pub every: Option<Duration>,
    /// What is read in a second, at most, by all that share a [`ScrubBudget`].
    pub bytes_per_second: u64,
}

/// What all standbys of a site may read together: each one's step takes its time from it.
#[derive(Clone, Default)]
pub struct ScrubBudget(Arc<Mutex<Option<Instant>>>);

impl ScrubBudget {
    /// So much was read; when the next step may be.
    fn take(&self, read_bytes: u64, bytes_per_second: u64, now: Instant) -> Instant {
        let nanos = u128::from(read_bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
        let mut taken_until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = taken_until.map_or(now, |until| until.max(now)) + Duration::from_nanos(nanos as u64);
        *taken_until = Some(until);
        until
    }
}

impl Default for ScrubPace {
    fn default() -> Self {
        Self { every: None, bytes_per_second: ASKED_BYTES_PER_SECOND }
    }
}

/// Somebody who waits for a round.
pub(super) type Asked = oneshot::Sender<io::Result<Health>>;

/// Where it stands.
pub(super) struct Scrub {
    pace: ScrubPace,
    budget: ScrubBudget,
    /// `None`: resting.
    round: Option<Round>,
    /// No step before.
    not_before: Instant,
    /// Attempts at the next step that failed.
    failed: u32,
    remembered: Instant,
    asked: Vec<Asked>,
    /// Damaged blocks that the attached primary was told of.
    told: RoaringBitmap,
    /// It is told of no more before; `None` if it was told of all.
    tell_not_before: Option<Instant>,
}

impl Scrub {
    pub fn new(pace: ScrubPace, budget: ScrubBudget) -> Self {
        let now = Instant::now();
        let (asked, told) = Default::default();
        Self { pace, budget, round: None, not_before: now, failed: 0, remembered: now, asked, told, tell_not_before: None }
    }

    /// Another primary, or none: it was told of nothing.
    pub fn handle_disconnected(&mut self) {
        self.told.clear();
        self.tell_not_before = None;
    }

    /// Where the round is that is under way.
    pub fn round(&self) -> Option<Round> {
        self.round
    }

    /// The copy was opened: a round that was under way goes on; the first one waits a little.
    pub fn handle_opened<F: SegmentFiles>(&mut self, standby: &Standby<F>) {
        let now = Instant::now();
        self.round = standby.is_scrub_begun().then_some(Round::Image);
        self.not_before = match (self.pace.every, standby.health()) {
            (Some(every), Some(health)) if self.round.is_none() => now + until_due(every, health.ended_unix_ms),
            _ => now,
        };
    }

    /// A round now; one that is under way goes on, whoever began it, and over restarts, too.
    pub fn handle_asked<F: SegmentFiles>(&mut self, standby: &mut Standby<F>, asked: Asked) {
        if self.round.is_none() {
            standby.begin_scrub();
            self.round = Some(Round::Image);
        }
        (self.not_before, self.failed) = (Instant::now(), 0);
        self.asked.retain(|asked| !asked.is_closed());
        self.asked.push(asked);
    }

    /// How long there is nothing to do.
    pub fn wait(&self) -> Duration {
        let rests = self.round.is_none() && self.pace.every.is_none();
        let step = (!rests).then_some(self.not_before);
        let next = step.into_iter().chain(self.tell_not_before).min();
        next.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    fn is_step_due(&self) -> bool {
        let rests = self.round.is_none() && self.pace.every.is_none();
        !rests && Instant::now() >= self.not_before
    }

    /// Does a step if one is due.
    fn step<F: SegmentFiles>(&mut self, standby: &mut Standby<F>) {
        if !self.is_step_due() {
            return;
        }
        if !standby.can_scrub() {
            return self.put_off(standby);
        }
        let round = *self.round.get_or_insert(Round::Image);
        match standby.scrub_one(round, unix_ms()) {
            Ok(Step { next: Round::Ended, .. }) => self.end(standby),
            Ok(Step { next, read_bytes }) => {
                (self.round, self.failed) = (Some(next), 0);
                self.not_before = self.budget.take(read_bytes, self.pace.bytes_per_second, Instant::now());
            }
            Err(error) => self.handle_failed(standby, round, &error),
        }
        if self.remembered.elapsed() >= REMEMBER_INTERVAL {
            self.remember(standby);
        }
    }

    fn handle_failed<F: SegmentFiles>(&mut self, standby: &mut Standby<F>, round: Round, error: &io::Error) {
        tracing::warn!(%error, ?round, "the image, or what leads back, cannot be looked through: it is tried again");
        self.failed += 1;
        self.not_before = Instant::now() + RETRY_FAILED;
        if self.failed == ATTEMPTS {
            (self.round, self.failed) = (Some(standby.give_up_unreadable(round, error)), 0);
            if self.round == Some(round) {
                self.asked.drain(..).for_each(|asked| drop(asked.send(Err(io::Error::new(error.kind(), error.to_string())))));
            }
        }
    }

    /// Nothing may be looked at now: whoever waits for a step waits a little longer.
    fn rest(&mut self) {
        if self.is_step_due() {
            self.not_before = Instant::now() + RETRY;
        }
    }

    /// There is nothing that could be looked through yet.
    fn put_off<F: SegmentFiles>(&mut self, standby: &Standby<F>) {
        self.rest();
        if standby.health().is_none_or(|health| health.void.is_some()) {
            let why = || io::Error::other("the image's blocks are not known by digests: see the log");
            self.asked.drain(..).for_each(|asked| drop(asked.send(Err(why()))));
        }
    }

    fn end<F: SegmentFiles>(&mut self, standby: &Standby<F>) {
        self.round = None;
        self.not_before = Instant::now() + self.pace.every.unwrap_or_default();
        self.remember(standby);
        let health = standby.health().unwrap_or_default();
        self.asked.drain(..).for_each(|asked| drop(asked.send(Ok(health.clone()))));
        tracing::info!(damaged = health.damaged, unknown = health.unknown, "a scrub has ended");
    }

    pub fn remember<F: SegmentFiles>(&mut self, standby: &Standby<F>) {
        self.remembered = Instant::now();
        standby.remember_health();
    }

    /// What the attached primary is to be told of now: a little at a time, so that a repair does not keep it from its promise.
    fn news<F: SegmentFiles>(&mut self, standby: &Standby<F>) -> Option<Message> {
        let now = Instant::now();
        if self.tell_not_before.is_some_and(|at| now < at) {
            return None;
        }
        let damaged = standby.damaged();
        self.told &= &damaged;
        let rest = damaged - &self.told;
        let fresh: RoaringBitmap = rest.iter().take(REPAIR_BLOCKS).collect();
        self.tell_not_before = (fresh != rest).then_some(now + REPAIR_INTERVAL);
        let runs = checked::told(&fresh, MAX_RUNS);
        runs.iter().for_each(|run| _ = self.told.insert_range(run.blocks()));
        (!runs.is_empty()).then_some(Message::Damaged(runs))
    }
}

fn until_due(every: Duration, ended_unix_ms: u64) -> Duration {
    if ended_unix_ms == 0 {
        return every.min(FIRST_AFTER);
    }
    // A clock that was set back makes nobody wait for longer than that.
    every.saturating_sub(Duration::from_millis(unix_ms().saturating_sub(ended_unix_ms)))
}

impl<F: SegmentFiles + 'static> Shell<F> {
    /// Looks at some of the image if that is due, and asks the primary for what was found.
    pub(super) fn scrub(&mut self) {
        match self.standby.as_mut().filter(|_| !self.settled) {
            Some(standby) => self.scrub.step(standby),
            None => self.scrub.rest(),
        }
        self.ask_for_repair();
    }

    /// Tells an attached primary of damaged blocks that it does not know of.
    pub(super) fn ask_for_repair(&mut self) {
        let Some(standby) = self.standby.as_ref().filter(|_| self.progress >= Progress::Attached) else {
            return self.scrub.handle_disconnected();
        };
        if let Some(message) = self.scrub.news(standby) {
            self.scrub.remember(standby);
            self.answer(message);
        }
    }

    /// Somebody wants to know now.
    pub(super) fn scrub_now(&mut self, asked: Asked) {
        match self.reopen() {
            Ok(()) => drop(self.standby.as_mut().map(|standby| self.scrub.handle_asked(standby, asked))),
            Err(error) => drop(asked.send(Err(io::Error::other(error)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standbys_that_share_a_budget_read_no_more_together() {
        let (budget, now) = (ScrubBudget::default(), Instant::now());
        let next = [1, 2, 1].map(|mib| budget.clone().take(mib << 20, 1 << 20, now));
        assert_eq!(next, [1, 3, 4].map(|seconds| now + Duration::from_secs(seconds)));
        let later = now + Duration::from_secs(60);
        assert_eq!(budget.take(1 << 20, 1 << 20, later), later + Duration::from_secs(1), "what was not read is not saved up");
    }
}
