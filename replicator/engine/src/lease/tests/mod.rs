//! Three sites whose clocks run at different rates, whose messages are lost, late and doubled, and which start again at any moment.

mod model;

use super::*;
use crate::generation::Id;
use model::{A, B, LEASE_MS, SILENCE_MS, W, World};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Event {
    Pass(u64),
    /// The same, and what is not cut off arrives soon.
    Run(u64),
    /// The n-th message under way arrives, once or twice.
    Deliver(usize, bool),
    Lose(usize),
    /// One way.
    Cut(usize, usize),
    /// Nothing gets to a site any more, nor from it.
    Isolate(usize),
    Heal,
    Kill(usize),
    Start(usize),
    /// The disk of a site fails, or works again.
    Disk(usize, bool),
    /// The primary's promise holds, or does not.
    Promise(bool),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let site = 0..3_usize;
    let event = prop_oneof![
        8 => (1..LEASE_MS / 3).prop_map(Event::Pass),
        8 => (1..3 * LEASE_MS).prop_map(Event::Run),
        12 => (0..4_usize, prop::bool::weighted(0.2)).prop_map(|(n, twice)| Event::Deliver(n, twice)),
        2 => (0..4_usize).prop_map(Event::Lose),
        2 => (site.clone(), site.clone()).prop_map(|(from, to)| Event::Cut(from, to)),
        2 => site.clone().prop_map(Event::Isolate),
        3 => Just(Event::Heal),
        2 => site.clone().prop_map(Event::Kill),
        4 => site.clone().prop_map(Event::Start),
        1 => (site, prop::bool::weighted(0.7)).prop_map(|(site, works)| Event::Disk(site, works)),
        2 => prop::bool::weighted(0.7).prop_map(Event::Promise),
    ];
    prop::collection::vec(event, 1..150)
}

fn play(world: &mut World, event: Event) {
    match event {
        Event::Pass(ms) => world.pass(ms),
        Event::Run(ms) => world.run(ms),
        Event::Isolate(site) => (0..3).filter(|other| *other != site).for_each(|other| world.part(site, other)),
        Event::Deliver(n, twice) => world.deliver(n, twice),
        Event::Lose(n) => world.lose(n),
        Event::Cut(from, to) => world.cut(from, to),
        Event::Heal => world.heal(),
        Event::Kill(site) => world.kill(site),
        Event::Start(site) => world.start(site),
        Event::Disk(site, works) => world.set_disk(site, works),
        Event::Promise(holds) => world.set_promised(holds),
    }
}

proptest! {
    /// The model looks after each event: never two that acknowledge, never a promotion by itself after a weaker acknowledgement.
    #[test]
    fn never_two_acknowledge_at_once_whatever_happens(events in events(), rates in prop::array::uniform3(-10_000..=10_000_i64)) {
        let mut world = World::new(rates);
        events.into_iter().for_each(|event| play(&mut world, event));
        // Whatever it was, it ends: everything works again, and somebody is served.
        world.mend();
        world.run(10 * LEASE_MS);
        prop_assert!(world.acknowledges(A) != world.acknowledges(B), "{:?}", world);
    }
}

#[test]
fn a_primary_that_nobody_hears_stops_and_the_standby_follows_by_itself() {
    let mut world = World::new([-10_000, 10_000, 10_000]);
    world.run(SILENCE_MS);
    assert!(world.acknowledges(A) && !world.acknowledges(B));
    world.part(A, B);
    world.part(A, W);
    world.run(LEASE_MS + LEASE_MS / 10);
    assert!(!world.acknowledges(A) && !world.acknowledges(B));
    world.run(4 * LEASE_MS);
    assert!(!world.acknowledges(A) && world.acknowledges(B));
    world.heal();
    world.run(LEASE_MS);
    assert!(world.is_standby(A), "it has learnt of the promotion");
}

#[test]
fn where_only_the_two_do_not_hear_each_other_the_primary_stays_it() {
    let mut world = World::new([0, 0, 0]);
    world.run(SILENCE_MS);
    world.part(A, B);
    world.run(20 * LEASE_MS);
    assert!(world.acknowledges(A) && !world.acknowledges(B));
    world.heal();
    world.run(2 * LEASE_MS);
    world.kill(W);
    world.run(20 * LEASE_MS);
    assert!(world.acknowledges(A), "it has its standby again");
    world.kill(A);
    world.run(20 * LEASE_MS);
    assert!(!world.acknowledges(B), "nothing promotes without the witness");
}

#[test]
fn after_a_weaker_acknowledgement_nobody_is_promoted_without_the_operator() {
    let mut world = World::new([0, 0, 0]);
    world.run(SILENCE_MS);
    world.set_promised(false);
    world.run(LEASE_MS);
    assert!(world.acknowledged_weakly(), "the witness was told");
    world.kill(A);
    world.run(20 * LEASE_MS);
    assert!(!world.acknowledges(B));
    let stage = world.stage(B);
    assert_eq!(stage, Some(Stage::Standing(Some(Refusal::PromiseBroken))));
    world.start(A);
    world.run(2 * SILENCE_MS);
    assert!(world.acknowledges(A));
}

#[test]
fn a_primary_gives_no_weaker_acknowledgement_before_the_witness_knows() {
    let mut world = World::new([0, 0, 0]);
    world.run(SILENCE_MS);
    world.kill(W);
    world.set_promised(false);
    world.run(20 * LEASE_MS);
    assert!(world.acknowledges(A) && !world.acknowledged_weakly());
    world.start(W);
    world.run(SILENCE_MS);
    assert!(world.acknowledged_weakly());
}

#[test]
fn a_grantor_that_starts_again_takes_it_that_it_granted_just_before() {
    let lineage = Lineage::first(Id([1; 16]));
    let request = |number, lease_ms| Request { lineage: lineage.clone(), number, lease_ms, auto_promote: true, promised: true, said: 1 };
    let mut grantor = Grantor::new(None, 0);
    for (number, lease_ms) in [(1, 60_000), (2, 10_000)] {
        let verdict = grantor.decide(&request(number, lease_ms), 1_000);
        assert_eq!(grantor.accept(verdict), Answer::Granted);
    }
    let recorded = grantor.record().cloned();
    assert_eq!(recorded.as_ref().map(|record| record.lease_ms), Some(60_000), "a lease of a minute may be valid still");
    let again = Grantor::new(recorded, 2_000);
    let candidacy = Candidacy { generation: Id([2; 16]), term: 1 };
    assert!(matches!(again.decide_consent(&lineage, candidacy, 61_000).answer, Err(Refusal::Later(_))));
    assert_eq!(again.decide_consent(&lineage, candidacy, 2_000 + wait_of_ms(60_000)).answer, Ok(()));
    let verdict = grantor.decide(&request(3, 10_000), 60_000);
    assert_eq!(verdict.record.as_ref().map(|record| record.lease_ms), Some(10_000));
}

#[test]
fn what_was_withdrawn_is_not_agreed_to_when_it_arrives_late() {
    let lineage = Lineage::first(Id([1; 16]));
    let request = Request { lineage: lineage.clone(), number: 1, lease_ms: 1_000, auto_promote: true, promised: true, said: 1 };
    let mut witness = Grantor::new(None, 0);
    let verdict = witness.decide(&request, 0);
    witness.accept(verdict);
    let verdict = witness.decide_release(1);
    witness.accept(verdict);
    let late = Candidacy { generation: Id([2; 16]), term: 1 };
    assert_eq!(witness.decide_consent(&lineage, late, 60_000).answer, Err(Refusal::OldTerm));
}

#[test]
fn a_word_that_was_overtaken_does_not_count_after_a_restart_either() {
    let request = |number, promised, said| {
        let (lineage, lease_ms) = (Lineage::first(Id([1; 16])), LEASE_MS);
        Request { lineage, number, lease_ms, auto_promote: true, promised, said }
    };
    let mut witness = Grantor::new(None, 0);
    // The one with number 2, which says that the promise holds, is late.
    for (number, said) in [(1, 1), (3, 3)] {
        let verdict = witness.decide(&request(number, false, said), 0);
        assert_eq!(witness.accept(verdict), Answer::Granted);
    }
    let again = Grantor::new(witness.record().cloned(), 0);
    assert_eq!(again.decide(&request(2, true, 2), 0).answer, Answer::Old);
}

#[test]
fn a_lease_on_the_slowest_clock_has_run_out_when_the_fastest_one_says_so() {
    for lease_ms in [1, 10, 999, 1_000, 10_000, 30_000, MAX_LEASE_MS] {
        // A clock that is slow by d shows L after L / (1 - d), one that is fast shows W after W / (1 + d).
        let valid = lease_ms * (100 + MAX_DRIFT_PERCENT);
        let waited = wait_of_ms(lease_ms) * (100 - MAX_DRIFT_PERCENT);
        assert!(waited > valid, "{lease_ms} ms");
    }
}
