//! When a standby's image is looked through: by whom, at which pace, and who is told.

use super::scrub::{Round, Step};
use super::service::{Progress, Shell};
use super::{Health, Standby, checked};
use crate::clock::unix_ms;
use crate::disk::SegmentFiles;
use replicator_engine::wire::{MAX_RUNS, Message};
use roaring::RoaringBitmap;
use std::io;
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
/// Somebody who asks where no round is made by itself gets one at this pace.
const ASKED_BYTES_PER_SECOND: u64 = 10 << 20;

/// How often, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPace {
    /// A round begins when the last one ended so long ago; `None`: only when asked.
    pub every: Option<Duration>,
    /// What is read in a second, at most.
    pub bytes_per_second: u64,
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
}

impl Scrub {
    pub fn new(pace: ScrubPace) -> Self {
        let now = Instant::now();
        Self { pace, round: None, not_before: now, failed: 0, remembered: now, asked: Vec::new(), told: RoaringBitmap::new() }
    }

    /// Another primary, or none: it was told of nothing.
    pub fn handle_disconnected(&mut self) {
        self.told.clear();
    }

    /// Whether a round is under way.
    pub fn is_under_way(&self) -> bool {
        self.round.is_some()
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

    /// A round from the beginning, now.
    pub fn handle_asked<F: SegmentFiles>(&mut self, standby: &mut Standby<F>, asked: Asked) {
        standby.begin_scrub();
        (self.round, self.not_before, self.failed) = (Some(Round::Image), Instant::now(), 0);
        self.asked.retain(|asked| !asked.is_closed());
        self.asked.push(asked);
    }

    /// How long there is nothing to do.
    pub fn wait(&self) -> Duration {
        let rests = self.round.is_none() && self.pace.every.is_none();
        if rests { Duration::MAX } else { self.not_before.saturating_duration_since(Instant::now()) }
    }

    /// Does a step if one is due.
    fn step<F: SegmentFiles>(&mut self, standby: &mut Standby<F>) {
        if !self.wait().is_zero() {
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
                let nanos = u128::from(read_bytes) * 1_000_000_000 / u128::from(self.pace.bytes_per_second.max(1));
                self.not_before = Instant::now() + Duration::from_nanos(nanos as u64);
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
        if self.wait().is_zero() {
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

    /// What the attached primary is to be told of.
    fn news<F: SegmentFiles>(&mut self, standby: &Standby<F>) -> Option<Message> {
        let damaged = standby.damaged();
        self.told &= &damaged;
        let fresh = damaged - &self.told;
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
        let Some(standby) = self.standby.as_ref().filter(|_| self.progress >= Progress::Attached) else { return };
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
