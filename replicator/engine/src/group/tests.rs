use super::*;
use crate::tracker::Epoch;
use proptest::prelude::*;

fn cut(number: u64) -> Option<GroupCut> {
    Some(GroupCut { group: Id([1; 16]), number })
}

#[test]
fn a_point_of_the_group_is_one_that_every_member_has_of_the_same_cut() {
    let other = Some(GroupCut { group: Id([2; 16]), number: 3 });
    let members = [vec![cut(3), None, cut(5), cut(6)], vec![cut(2), cut(3), cut(5), cut(5)], vec![other, cut(3), cut(5), cut(7)]];
    assert_eq!(common_points(Id([1; 16]), &members), [(3, vec![0, 1, 1]), (5, vec![2, 2, 2])]);
}

#[test]
fn a_hold_that_takes_too_long_is_given_up() {
    assert!(may_cut(0) && may_cut(MAX_HOLD_MS - 1) && !may_cut(MAX_HOLD_MS));
}

#[test]
fn members_wait_for_each_other_and_for_one_that_is_away_nobody_does() {
    let mut rounds = Rounds::new(2);
    assert_eq!(rounds.ask(0, 0), Turn::Alone);
    rounds.set_able(1);
    assert_eq!(rounds.ask(0, 10), Turn::Wait);
    assert_eq!(rounds.awaited().collect::<Vec<_>>(), [1]);
    assert_eq!(rounds.ask(1, 20), Turn::Together);
    rounds.handle_cut();
    assert_eq!(rounds.ask(1, 30), Turn::Wait);
    rounds.set_away(0);
    assert_eq!(rounds.ask(1, 40), Turn::Alone);
}

#[test]
fn a_member_that_is_busy_is_waited_for_for_a_while_and_is_cut_with_the_others_again_once_it_is_ready() {
    let mut rounds = Rounds::new(2);
    rounds.set_able(1);
    assert_eq!(rounds.ask(0, 0), Turn::Wait);
    assert_eq!(rounds.ask(0, 1_999), Turn::Wait);
    assert_eq!((rounds.ask(0, 2_000), rounds.is_together(2_000)), (Turn::Alone, false));
    assert_eq!(rounds.ask(1, 60_000), Turn::Wait, "the other one comes again, once it has time");
    assert_eq!(rounds.ask(0, 60_010), Turn::Together);
}

#[test]
fn once_a_member_lags_no_cut_of_another_one_waits_for_it() {
    let mut rounds = Rounds::new(3);
    (0..3).for_each(|member| rounds.set_able(member));
    assert_eq!((rounds.ask(0, 0), rounds.ask(1, 10)), (Turn::Wait, Turn::Wait));
    for now_ms in [2_000, 2_100, 9_000] {
        assert_eq!((rounds.ask(0, now_ms), rounds.ask(1, now_ms)), (Turn::Alone, Turn::Alone), "at {now_ms}");
        rounds.set_able(1);
        assert_eq!([0, 1, 2].map(|member| rounds.lags(member, now_ms)), [false, false, true]);
    }
    rounds.set_away(2);
    assert_eq!(rounds.ask(0, 9_100), Turn::Alone);
    rounds.set_able(2);
    assert_eq!((rounds.ask(0, 9_200), rounds.ask(1, 9_200), rounds.ask(2, 9_300)), (Turn::Wait, Turn::Wait, Turn::Together));
}

#[test]
fn after_a_cut_that_does_not_count_the_next_one_waits_for_nobodys_clock() {
    let mut rounds = Rounds::new(2);
    (0..2).for_each(|member| rounds.set_able(member));
    assert!(!rounds.is_cut_owed());
    rounds.set_away(1);
    rounds.handle_void();
    assert!(!rounds.is_cut_owed(), "the others are cut alone meanwhile");
    rounds.set_able(1);
    assert!(rounds.is_cut_owed());
    assert_eq!((rounds.ask(0, 5), rounds.ask(1, 6)), (Turn::Wait, Turn::Together));
    rounds.handle_cut();
    assert!(!rounds.is_cut_owed());
}

#[test]
fn a_cut_that_a_broken_stream_may_have_lost_is_not_counted_and_the_next_one_is() {
    let mut ledger = Ledger::default();
    let made = |number: u64| Complete { number, unix_ms: number, epochs: vec![number - 1, number] };
    ledger.handle_cut(made(10));
    ledger.handle_cut(made(11));
    assert!(!ledger.handle_acked(0, 10));
    assert!(ledger.handle_acked(1, 10));
    assert_eq!((ledger.safe(0), ledger.safe(1), ledger.under_way()), (9, 10, 1));
    ledger.handle_broken(1);
    assert!(!ledger.handle_acked(1, 11));
    ledger.handle_cut(made(12));
    assert!(!ledger.handle_acked(1, 12) && ledger.handle_acked(0, 11));
    assert_eq!(ledger.complete(), Some(&made(12)));
}

proptest! {
    /// What the primary calls a point of the group is one at the standby, whatever becomes of the members' epochs on their way.
    #[test]
    fn what_is_counted_as_complete_is_common(events in proptest::collection::vec((0..4_u8, 0..3_usize), 0..200)) {
        const MEMBERS: usize = 3;
        let group = Id([1; 16]);
        let (mut ledger, mut next) = (Ledger::default(), [1_u64, 5, 9]);
        let mut under_way: Vec<Vec<(Epoch, Option<GroupCut>)>> = vec![Vec::new(); MEMBERS];
        let mut standby: Vec<Vec<(Epoch, Option<GroupCut>)>> = vec![Vec::new(); MEMBERS];
        for (event, member) in events {
            match event {
                0 => {
                    let number = *next.iter().max().unwrap();
                    ledger.handle_cut(Complete { number, unix_ms: 0, epochs: next.to_vec() });
                    for (sent, epoch) in under_way.iter_mut().zip(&mut next) {
                        sent.push((*epoch, Some(GroupCut { group, number })));
                        *epoch += 1;
                    }
                }
                1 if !under_way[member].is_empty() => {
                    let arrived = under_way[member].remove(0);
                    standby[member].push(arrived);
                    ledger.handle_acked(member, arrived.0);
                }
                // Broken off: what was under way may have arrived, and nobody heard of it.
                2 => {
                    ledger.handle_broken(member);
                    let arrived = under_way[member].len() / 2;
                    let lost = std::mem::take(&mut under_way[member]);
                    standby[member].extend(&lost[..arrived]);
                }
                3 => {
                    under_way[member].push((next[member], None));
                    next[member] += 1;
                }
                _ => {}
            }
            if let Some(complete) = ledger.complete() {
                let points: Vec<Vec<_>> = standby.iter().map(|of| of.iter().map(|(_, cut)| *cut).collect()).collect();
                let common = common_points(group, &points);
                let (_, parts) = common.iter().find(|(number, _)| *number == complete.number).expect("the standby has it");
                let epochs: Vec<_> = parts.iter().zip(&standby).map(|(place, of)| of[*place].0).collect();
                prop_assert_eq!(&epochs, &complete.epochs);
            }
        }
    }
}
