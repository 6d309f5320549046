//! Between the guest's requests and the real acknowledgement policy, as the replica's thread has it.

use crate::standby::VOLUME;
use crate::storage::Storage;
use replicator::catalogue::Catalogue;
use replicator::primary::memory;
use replicator_engine::acknowledgement::{Done, Policy, Promise, Rules, Step, View};
use replicator_engine::tracker::Epoch;
use std::io;

/// A request that is done here. The guest is told when the standby has it, or when that is not promised.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub done: Done,
    /// The newest epoch that has something of what it covers.
    pub covers: Epoch,
    pub since_ms: u64,
}

/// See the module's documentation.
pub struct Acknowledging {
    policy: Policy,
    waiting: Vec<Request>,
}

/// What the policy had its shell do.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The guest is told of these.
    pub told: Vec<Request>,
    /// The open epoch is to be cut.
    pub wants_cut: bool,
}

fn promise_key() -> Vec<u8> {
    memory::promise_key(VOLUME, "SITE")
}

/// The promise that is recorded.
pub fn recorded(catalogue: &dyn Catalogue) -> io::Result<Promise> {
    memory::load_promise(catalogue, &promise_key())
}

impl Acknowledging {
    /// Goes on from what is recorded.
    pub fn resume(storage: &Storage, rules: Rules) -> io::Result<Self> {
        Ok(Self { policy: Policy::new(rules, recorded(&*storage.catalogue)?), waiting: Vec::new() })
    }

    pub fn set_rules(&mut self, rules: Rules) {
        self.policy.set_rules(rules);
    }

    pub fn in_force(&self) -> Promise {
        self.policy.in_force()
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Since when the first of them does.
    pub fn waiting_since_ms(&self) -> Option<u64> {
        self.waiting.iter().map(|request| request.since_ms).min()
    }

    /// A request is done here. Gives it back if its guest may be told at once.
    pub fn ask(&mut self, request: Request) -> Option<Request> {
        if !self.policy.in_force().covers(request.done.kind) {
            return Some(request);
        }
        self.waiting.push(request);
        None
    }

    /// Does what the policy asks for. `arrived` is what the waiting requests are held against.
    pub fn run(&mut self, view: View, arrived: Option<Epoch>, catalogue: &dyn Catalogue) -> Outcome {
        let mut outcome = Outcome::default();
        if self.policy.is_idle() {
            return outcome;
        }
        while let Some(step) = self.policy.poll(&view) {
            match step {
                Step::Enforce(promise) => self.policy.handle_enforced(promise, view.open),
                Step::Record(promise) if memory::store_promise(catalogue, &promise_key(), promise).is_ok() => {
                    self.policy.handle_recorded(promise);
                }
                Step::Record(_) => break,
            }
        }
        let in_force = self.policy.in_force();
        outcome.told = self.waiting.extract_if(.., |request| in_force.completes(request.done, arrived)).collect();
        outcome.wants_cut = self.policy.wants_cut(view.open) || self.waiting.iter().any(|request| request.done.epoch >= view.open);
        outcome
    }
}
