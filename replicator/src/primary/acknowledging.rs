//! Between the acknowledgement policy and the requests that wait: what the policy goes by, and what it asks for.

use super::memory::store_promise;
use super::shell::Shell;
use replicator_engine::acknowledgement::{Policy, Promise, Rules, Spread, Standing, Step, View};
use replicator_engine::sender::Phase;
use replicator_engine::tracker::Epoch;
use std::io;

/// How the mode's promise stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromiseStatus {
    /// What the mode promises.
    pub wanted: Promise,
    /// What is asked of requests now.
    pub in_force: Promise,
    /// How it stands.
    pub standing: Standing,
    /// Requests that wait for the standby.
    pub waiting: usize,
}

/// The policy, and what it is told of beside the sender.
pub(super) struct Acknowledging {
    rules: Rules,
    policy: Policy,
    spread: Spread,
    /// There may be more that the guest can be told.
    pub(super) is_telling: bool,
    pub(super) status: PromiseStatus,
    /// The last record failed, and that is in the log.
    failing: bool,
}

impl Acknowledging {
    pub(super) fn new(rules: Rules, recorded: Promise) -> Self {
        let policy = Policy::new(rules, recorded);
        let standing = if rules.wanted <= recorded { Standing::Held } else { Standing::CatchingUp };
        let status = PromiseStatus { wanted: rules.wanted, in_force: recorded, standing, waiting: 0 };
        Self { rules, policy, spread: Spread::default(), is_telling: false, status, failing: false }
    }

    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.policy.set_rules(rules);
        self.rules = rules;
    }
}

impl Shell {
    /// Lets requests go that need not wait any more, and does what the policy asks for. Nothing in mode `async` without a lease.
    pub(super) fn acknowledge(&mut self, now_ms: u64) {
        let lane = self.setup.lane;
        if self.acknowledging.policy.is_idle() {
            if self.acknowledging.status.wanted > Promise::Local {
                self.stand(PromiseStatus::default());
            }
            self.setup.told.hold();
            let held = self.setup.intake.held();
            if held.lease().is_needed() {
                held.let_go(lane, self.sender.safe());
                self.acknowledging.status.waiting = held.look(lane).requests;
            }
            return;
        }
        let intake = self.setup.intake.clone();
        let (tracker, held) = (self.tracker.clone(), intake.held());
        let waiting = held.look(lane);
        let attached = *self.sender.phase() == Phase::Online;
        let mut view = View {
            now_ms,
            attached,
            converged: attached && self.is_converged(now_ms),
            safe: self.safe(),
            open: tracker.open_epoch(),
            waiting_since_ms: waiting.since.map(|since| now_ms.saturating_sub(since.elapsed().as_millis() as u64)),
        };
        while let Some(step) = self.acknowledging.policy.poll(&view) {
            match step {
                Step::Enforce(promise) => {
                    held.enforce(lane, promise);
                    view.open = tracker.open_epoch();
                    self.acknowledging.policy.handle_enforced(promise, view.open);
                    self.tell(promise);
                }
                // Requests wait until the witness knows.
                Step::Record(promise) if promise < self.acknowledging.rules.wanted && !self.setup.told.weaken() => break,
                Step::Record(promise) => {
                    if let Err(error) = store_promise(&*self.setup.catalogue, &self.setup.promise_key, promise) {
                        self.record_failed(&error);
                        break;
                    }
                    self.acknowledging.failing = false;
                    self.acknowledging.policy.handle_recorded(promise);
                }
            }
        }
        self.tell_guest(view.safe);
        let policy = &self.acknowledging.policy;
        match policy.standing(&view) {
            Standing::Held => self.setup.told.hold(),
            Standing::CatchingUp | Standing::Degraded => drop(self.setup.told.weaken()),
            // It holds, or is given up only once the witness knows.
            Standing::Suspended => {}
        }
        // Epochs before that one are on their way to this standby, or there.
        let first_open = tracker.first_open();
        if policy.wants_cut(first_open) || waiting.newest.is_some_and(|newest| newest >= first_open) {
            self.sender.request_cut();
        }
        let (wanted, in_force, standing) = (self.acknowledging.rules.wanted, policy.in_force(), policy.standing(&view));
        self.stand(PromiseStatus { wanted, in_force, standing, waiting: held.look(lane).requests });
    }

    /// Lets requests go that the standby has, not too many at once.
    fn tell_guest(&mut self, safe: Option<Epoch>) {
        let Acknowledging { policy, spread, status, .. } = &mut self.acknowledging;
        let (round_trip_ms, now_us) = (self.round_trip.as_millis() as u64, self.started.elapsed().as_micros() as u64);
        let allowed = spread.allows(policy.in_force(), round_trip_ms, status.waiting, now_us);
        let told = self.setup.intake.held().let_some_go(self.setup.lane, safe, allowed);
        spread.handle_acknowledged(told);
        self.acknowledging.is_telling = told == allowed;
    }

    fn stand(&mut self, status: PromiseStatus) {
        let before = std::mem::replace(&mut self.acknowledging.status, status);
        if before.standing != status.standing {
            (self.setup.on_standing)(status.standing);
        }
    }

    /// Loudly: what is acknowledged from now on means something else.
    fn tell(&self, promise: Promise) {
        let (volume, wanted) = (&self.setup.volume, self.acknowledging.rules.wanted);
        if promise < wanted {
            tracing::error!(%volume, ?wanted, in_force = ?promise, "replication: the standby does not keep up; the mode's promise no longer holds");
        } else if promise == Promise::Local {
            tracing::info!(%volume, "replication: no request waits for the standby");
        } else {
            tracing::info!(%volume, in_force = ?promise, "replication: requests wait for the standby as the mode says");
        }
    }

    fn record_failed(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.acknowledging.failing, true) {
            tracing::error!(volume = %self.setup.volume, %error, "replication: the promise cannot be recorded; requests wait");
        }
    }
}
