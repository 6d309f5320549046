//! Which promise is in force.

use super::Promise;
use crate::tracker::Epoch;

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The mode's promise.
    pub wanted: Promise,
    /// What to do when it cannot be kept.
    pub on_disconnect: OnDisconnect,
    /// How long a request may wait for the standby.
    pub ack_timeout_ms: u64,
}

/// What to do when the standby is gone, slow or full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDisconnect {
    /// Acknowledge locally as soon as the connection is gone.
    Continue,
    /// Acknowledge locally once a request has waited for the time-out.
    #[default]
    Degrade,
    /// Have requests wait for as long as it takes.
    Suspend,
}

/// What the policy goes by.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Now.
    pub now_ms: u64,
    /// Whether the standby takes what is sent.
    pub attached: bool,
    /// Whether, beyond that, it has a recovery point, and what is left to send fits the next epoch.
    pub converged: bool,
    /// The newest epoch that it has durably, with all before it.
    pub safe: Option<Epoch>,
    /// The epoch that collects changes.
    pub open: Epoch,
    /// Since when the first of the requests waits that wait now.
    pub waiting_since_ms: Option<u64>,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Record durably that this promise holds and no more, then call [`Policy::handle_recorded`]. If that fails, ask again later.
    Record(Promise),
    /// Put this promise in force, then call [`Policy::handle_enforced`] with the epoch that is open after that.
    Enforce(Promise),
}

/// How the mode's promise stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It holds.
    #[default]
    Held,
    /// It does not hold yet.
    CatchingUp,
    /// It was given up, until the standby keeps up again.
    Degraded,
    /// It holds, and requests wait for that.
    Suspended,
}

/// An epoch that is to show something by its arrival.
#[derive(Clone, Copy, Debug)]
struct Probe {
    epoch: Epoch,
    since_ms: u64,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Rules,
    in_force: Promise,
    /// At least this much is durably recorded, and at most that: they differ after a record that failed, of which nobody knows.
    recorded: Promise,
    may_be_recorded: Promise,
    /// While less is in force than is wanted: its arrival shows that the standby keeps up.
    probe: Option<Probe>,
    /// With its arrival all that was acknowledged before the promise came into force is there.
    proof: Option<Epoch>,
    /// Less than wanted is given because the standby did not keep up.
    given_up: bool,
    /// Whether requests wait for a record to be lowered.
    unrecorded: bool,
}

impl Policy {
    /// A policy that goes on from what is recorded: that is in force from the start.
    pub fn new(rules: Rules, recorded: Promise) -> Self {
        let (in_force, may_be_recorded) = (recorded, recorded);
        Self { rules, in_force, recorded, may_be_recorded, probe: None, proof: None, given_up: false, unrecorded: false }
    }

    /// The promise in force.
    pub fn in_force(&self) -> Promise {
        self.in_force
    }

    /// Whether there is nothing to watch: nothing is promised and nothing wanted.
    pub fn is_idle(&self) -> bool {
        self.rules.wanted.max(self.in_force).max(self.may_be_recorded) == Promise::Local
    }

    /// The operator wants something else.
    pub fn set_rules(&mut self, rules: Rules) {
        if rules.wanted != self.rules.wanted {
            (self.probe, self.proof, self.given_up) = (None, None, false);
        }
        self.rules = rules;
    }

    /// Whether the open epoch is to be cut, so that its arrival shows something.
    pub fn wants_cut(&self, open: Epoch) -> bool {
        let shows = self.probe.map(|probe| probe.epoch).max(self.proof);
        shows.is_some_and(|epoch| epoch >= open)
    }

    /// How the mode's promise stands.
    pub fn standing(&self, view: &View) -> Standing {
        if self.unrecorded {
            return Standing::Suspended;
        }
        if self.recorded < self.rules.wanted {
            return if self.given_up { Standing::Degraded } else { Standing::CatchingUp };
        }
        let stuck = !view.attached || self.is_overdue(view);
        let waits = self.rules.on_disconnect == OnDisconnect::Suspend && self.rules.wanted > Promise::Local && stuck;
        if waits { Standing::Suspended } else { Standing::Held }
    }

    /// What to do next; `None`: nothing, until something changes.
    pub fn poll(&mut self, view: &View) -> Option<Step> {
        let level = self.level(view);
        self.unrecorded = level < self.may_be_recorded;
        if self.unrecorded {
            return Some(Step::Record(level));
        }
        if level != self.in_force {
            return Some(Step::Enforce(level));
        }
        let is_shown = self.proof.is_some_and(|proof| view.safe.is_some_and(|safe| safe >= proof));
        if self.recorded == level || !is_shown {
            return None;
        }
        self.may_be_recorded = level;
        Some(Step::Record(level))
    }

    /// The record is durable.
    pub fn handle_recorded(&mut self, promise: Promise) {
        (self.recorded, self.may_be_recorded, self.unrecorded, self.proof) = (promise, promise, false, None);
    }

    /// Requests that become done from now on meet this promise; `open` is the epoch that is open now.
    pub fn handle_enforced(&mut self, promise: Promise, open: Epoch) {
        // Whatever was told before is in that epoch or in an earlier one.
        self.proof = (promise > self.recorded).then_some(open);
        self.in_force = promise;
    }

    /// What is to be in force now.
    fn level(&mut self, view: &View) -> Promise {
        let (wanted, is_raising) = (self.rules.wanted, self.in_force > self.recorded);
        if is_raising && self.proof.is_none() {
            // The record is lowered already: so is what is in force, whatever has changed since.
            return self.recorded.min(wanted);
        }
        if self.in_force > Promise::Local && self.gives_up(view) {
            (self.probe, self.given_up) = (None, true);
            return if is_raising { self.recorded.min(wanted) } else { Promise::Local };
        }
        if self.in_force >= wanted { wanted } else { self.raised(view) }
    }

    fn gives_up(&self, view: &View) -> bool {
        match self.rules.on_disconnect {
            // It is another copy, or has lost what it had: there is nothing left to keep.
            _ if view.attached && view.safe.is_none() => true,
            // Nothing has been promised yet.
            _ if self.in_force > self.recorded => !view.attached || self.is_overdue(view),
            OnDisconnect::Continue => !view.attached || self.is_overdue(view),
            OnDisconnect::Degrade => self.is_overdue(view),
            OnDisconnect::Suspend => false,
        }
    }

    fn is_overdue(&self, view: &View) -> bool {
        view.waiting_since_ms.is_some_and(|since| view.now_ms.saturating_sub(since) >= self.rules.ack_timeout_ms)
    }

    /// More than is in force now, once the standby has shown that it is close, and quick enough.
    fn raised(&mut self, view: &View) -> Promise {
        if !view.attached || !view.converged {
            self.probe = None;
            return self.in_force;
        }
        let probe = *self.probe.get_or_insert(Probe { epoch: view.open, since_ms: view.now_ms });
        if view.safe.is_none_or(|safe| safe < probe.epoch) {
            return self.in_force;
        }
        let took_ms = view.now_ms.saturating_sub(probe.since_ms);
        self.probe = None;
        if took_ms > self.rules.ack_timeout_ms / 2 {
            return self.in_force;
        }
        self.given_up = false;
        self.rules.wanted
    }
}
