//! The policy beside a model of everything around it: a guest, a standby, a record that may fail.

use super::*;
use proptest::prelude::*;

const TIMEOUT_MS: u64 = 1000;

/// A primary with its policy, and what each side has.
struct Model {
    policy: Policy,
    rules: Rules,
    now_ms: u64,
    attached: bool,
    open: Epoch,
    committed: Epoch,
    /// What the disk says, and whether it can be written.
    record: Promise,
    disk_works: bool,
    waiting: Vec<(Done, u64)>,
    acknowledged: Vec<Done>,
}

fn rules(wanted: Promise, on_disconnect: OnDisconnect) -> Rules {
    Rules { wanted, on_disconnect, ack_timeout_ms: TIMEOUT_MS }
}

impl Model {
    fn new(rules: Rules) -> Self {
        let (waiting, acknowledged) = Default::default();
        let (policy, record) = (Policy::new(rules, Promise::Local), Promise::Local);
        Self { policy, rules, now_ms: 0, attached: true, open: 1, committed: 0, record, disk_works: true, waiting, acknowledged }
    }

    fn view(&self) -> View {
        View {
            now_ms: self.now_ms,
            attached: self.attached,
            converged: self.attached,
            safe: Some(self.committed),
            open: self.open,
            waiting_since_ms: self.waiting.iter().map(|(_, since_ms)| *since_ms).min(),
        }
    }

    fn standing(&self) -> Standing {
        self.policy.standing(&self.view())
    }

    /// A request is done locally.
    fn finish(&mut self, kind: Kind) {
        let done = Done { kind, epoch: self.open };
        if self.policy.in_force().completes(done, None) {
            self.acknowledged.push(done);
        } else {
            self.waiting.push((done, self.now_ms));
        }
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..16 {
            match self.policy.poll(&self.view()) {
                None => break,
                Some(Step::Record(promise)) if self.disk_works => {
                    self.record = promise;
                    self.policy.handle_recorded(promise);
                }
                // Nobody knows whether it is there.
                Some(Step::Record(promise)) => {
                    self.record = self.record.max(promise);
                    break;
                }
                Some(Step::Enforce(promise)) => {
                    assert!(promise >= self.record, "{promise:?} in force, {:?} recorded", self.record);
                    self.policy.handle_enforced(promise, self.open);
                }
            }
        }
        let in_force = self.policy.in_force();
        let (done, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(done, _)| in_force.completes(*done, Some(self.committed)));
        self.waiting = waiting;
        self.acknowledged.extend(Vec::from_iter(done as Vec<(Done, u64)>).into_iter().map(|(done, _)| done));
        self.check();
    }

    fn check(&self) {
        let lost = self.acknowledged.iter().find(|done| self.record.covers(done.kind) && done.epoch > self.committed);
        assert!(lost.is_none(), "{:?} is recorded, and {lost:?} is not at the standby, which has {}", self.record, self.committed);
        assert!(self.policy.in_force() >= self.record);
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.settle();
    }

    /// What is open is cut and arrives.
    fn commit(&mut self) {
        self.open += 1;
        self.committed = self.open - 1;
        self.settle();
    }

    fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        self.policy.set_rules(rules);
        self.settle();
    }

    /// Whatever the policy waits for arrives.
    fn catch_up(&mut self) {
        self.settle();
        for _ in 0..4 {
            // As the shell does: for the policy, and for whoever waits.
            if self.policy.wants_cut(self.open) || self.waiting.iter().any(|(done, _)| done.epoch >= self.open) {
                self.commit();
            }
        }
    }

    /// The process dies; its guest's requests die with it.
    fn restart(&mut self) {
        self.waiting.clear();
        self.open += 1;
        self.attached = false;
        self.policy = Policy::new(self.rules, self.record);
        self.settle();
    }
}

fn held(wanted: Promise, on_disconnect: OnDisconnect) -> Model {
    let mut model = Model::new(rules(wanted, on_disconnect));
    model.catch_up();
    assert_eq!((model.standing(), model.record), (Standing::Held, wanted));
    model
}

#[test]
fn each_promise_covers_what_its_mode_says() {
    let done = |kind| Done { kind, epoch: 5 };
    for (promise, write, durable) in [(Promise::Local, true, true), (Promise::Barrier, true, false), (Promise::Sync, false, false)] {
        assert_eq!(promise.completes(done(Kind::Write), Some(4)), write, "{promise:?}");
        assert_eq!(promise.completes(done(Kind::Durable), None), durable, "{promise:?}");
        assert!(promise.completes(done(Kind::Durable), Some(5)));
        assert_eq!(Promise::from_number(promise as u8), Some(promise));
    }
}

#[test]
fn towards_safety_the_guest_waits_only_once_the_backlog_is_gone() {
    let mut model = Model::new(rules(Promise::Sync, OnDisconnect::Degrade));
    model.finish(Kind::Write);
    assert_eq!((model.acknowledged.len(), model.standing()), (1, Standing::CatchingUp));
    model.commit();
    model.finish(Kind::Write);
    assert_eq!((model.waiting.len(), model.standing()), (1, Standing::CatchingUp));
    model.commit();
    assert_eq!((model.waiting.len(), model.standing(), model.record), (0, Standing::Held, Promise::Sync));
}

#[test]
fn it_degrades_after_the_time_out_records_that_first_and_returns_by_itself() {
    let mut model = held(Promise::Barrier, OnDisconnect::Degrade);
    model.attached = false;
    model.pass(10 * TIMEOUT_MS);
    assert_eq!(model.standing(), Standing::Held, "nobody was told anything that is not there");
    model.finish(Kind::Durable);
    model.pass(TIMEOUT_MS - 1);
    assert_eq!((model.waiting.len(), model.record), (1, Promise::Barrier));
    model.pass(1);
    assert_eq!((model.waiting.len(), model.record, model.standing()), (0, Promise::Local, Standing::Degraded));
    model.attached = true;
    model.catch_up();
    assert_eq!((model.record, model.standing()), (Promise::Barrier, Standing::Held));
}

#[test]
fn where_the_record_fails_requests_wait() {
    let mut model = held(Promise::Barrier, OnDisconnect::Degrade);
    (model.attached, model.disk_works) = (false, false);
    model.finish(Kind::Durable);
    model.pass(TIMEOUT_MS);
    assert_eq!((model.waiting.len(), model.standing()), (1, Standing::Suspended));
    model.disk_works = true;
    model.pass(1);
    assert_eq!((model.waiting.len(), model.standing()), (0, Standing::Degraded));
}

#[test]
fn suspend_never_gives_up_and_continue_does_at_once() {
    let mut model = held(Promise::Sync, OnDisconnect::Suspend);
    model.attached = false;
    model.finish(Kind::Write);
    model.pass(100 * TIMEOUT_MS);
    assert_eq!((model.waiting.len(), model.standing()), (1, Standing::Suspended));
    let mut model = held(Promise::Sync, OnDisconnect::Continue);
    model.attached = false;
    model.finish(Kind::Write);
    assert_eq!((model.waiting.len(), model.standing()), (0, Standing::Degraded));
}

#[test]
fn a_standby_that_answers_too_late_is_not_waited_for_again_and_again() {
    let mut model = held(Promise::Sync, OnDisconnect::Degrade);
    model.finish(Kind::Write);
    model.pass(TIMEOUT_MS);
    for _ in 0..10 {
        model.finish(Kind::Write);
        assert_eq!((model.waiting.len(), model.standing()), (0, Standing::Degraded));
        model.pass(TIMEOUT_MS);
        model.commit();
    }
    model.catch_up();
    assert_eq!(model.standing(), Standing::Held);
}

#[test]
fn a_weaker_mode_is_recorded_before_it_is_in_force_and_a_stronger_one_is_proved() {
    let mut model = held(Promise::Sync, OnDisconnect::Degrade);
    model.set_rules(rules(Promise::Barrier, OnDisconnect::Degrade));
    assert_eq!((model.record, model.policy.in_force(), model.standing()), (Promise::Barrier, Promise::Barrier, Standing::Held));
    model.finish(Kind::Write);
    model.set_rules(rules(Promise::Sync, OnDisconnect::Degrade));
    assert_eq!((model.record, model.standing()), (Promise::Barrier, Standing::CatchingUp));
    model.catch_up();
    assert_eq!((model.record, model.standing()), (Promise::Sync, Standing::Held));
    model.set_rules(rules(Promise::Local, OnDisconnect::Degrade));
    assert!(model.record == Promise::Local && model.policy.is_idle());
}

#[derive(Clone, Debug)]
enum Event {
    Write,
    Flush,
    Pass(u64),
    Cut,
    Commit,
    Link(bool),
    Disk(bool),
    Rules(Promise, OnDisconnect),
    Restart,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let promise = prop_oneof![Just(Promise::Local), Just(Promise::Barrier), Just(Promise::Sync)];
    let policy = prop_oneof![Just(OnDisconnect::Continue), Just(OnDisconnect::Degrade), Just(OnDisconnect::Suspend)];
    let event = prop_oneof![
        4 => Just(Event::Write),
        4 => Just(Event::Flush),
        2 => (1..2 * TIMEOUT_MS).prop_map(Event::Pass),
        2 => Just(Event::Cut),
        4 => Just(Event::Commit),
        2 => any::<bool>().prop_map(Event::Link),
        1 => prop::bool::weighted(0.7).prop_map(Event::Disk),
        1 => (promise, policy).prop_map(|(promise, policy)| Event::Rules(promise, policy)),
        1 => Just(Event::Restart),
    ];
    prop::collection::vec(event, 1..200)
}

proptest! {
    #[test]
    fn what_is_recorded_holds_whatever_happens(events in events()) {
        let mut model = Model::new(rules(Promise::Barrier, OnDisconnect::Degrade));
        for event in events {
            match event {
                Event::Write => model.finish(Kind::Write),
                Event::Flush => model.finish(Kind::Durable),
                Event::Pass(ms) => model.pass(ms),
                Event::Cut => model.open += 1,
                Event::Commit if model.attached => {
                    model.committed = (model.committed + 1).min(model.open - 1);
                    model.settle();
                }
                Event::Commit => {}
                Event::Link(up) => {
                    model.attached = up;
                    model.settle();
                }
                Event::Disk(works) => model.disk_works = works,
                Event::Rules(promise, policy) => model.set_rules(rules(promise, policy)),
                Event::Restart => model.restart(),
            }
        }
        // Whatever it was, it ends: both sides work again, and the mode's promise holds.
        (model.attached, model.disk_works) = (true, true);
        model.committed = model.open - 1;
        model.catch_up();
        model.catch_up();
        prop_assert!(model.waiting.is_empty());
        prop_assert_eq!(model.record, model.rules.wanted);
    }
}
