//! The sender against a tracker, message by message.

use super::*;
use crate::block::Run;
use crate::tracker::Begun;
use crate::wire::{Content, Encoding};
use bytes::Bytes;

fn id(value: u8) -> Id {
    Id([value; 16])
}

fn run(start: u32, len: u32) -> Run {
    Run::new(start, len).unwrap()
}

fn write(tracker: &Tracker, start: u32, len: u32) {
    match tracker.begin_write(run(start, len)) {
        Begun::Clear(write) | Begun::Frozen(write) => tracker.finish_write(write),
    }
}

/// A sender that is online, with its base at epoch 4, and a tracker whose open epoch is 5.
fn online() -> (Sender, Tracker) {
    let tracker = Tracker::new(5);
    let known = Known { replica: Some(id(8)), acked: 4 };
    let mut sender = Sender::new(Settings::default(), id(7), 1 << 30, Lineage::first(id(1)), Some(known), RoaringBitmap::new());
    attach(&mut sender, &tracker, 4);
    (sender, tracker)
}

fn attach(sender: &mut Sender, tracker: &Tracker, committed: Epoch) {
    sender.handle_connected(0);
    assert!(matches!(sender.poll(tracker, 0), Action::Send(Message::Attach(_))));
    let attached = Attached { replica: id(8), committed, base: Base::Point };
    sender.handle_message(tracker, Message::Attached(attached), 0).unwrap();
}

fn shipped(sender: &mut Sender, runs: &[Run]) {
    let runs = runs.iter().map(|run| (*run, Content::Data)).collect();
    let blocks = Blocks { runs, encoding: Encoding::Plain, digest: [0; 32], payload: Bytes::new() };
    sender.handle_shipped(&blocks, 0);
}

/// Takes the sender through a cut and its freeze.
fn cut(sender: &mut Sender, tracker: &Tracker, now_ms: u64) {
    assert_eq!(sender.poll(tracker, now_ms), Action::Cut);
    sender.handle_cut(tracker.cut(), now_ms);
    assert_eq!(sender.poll(tracker, now_ms), Action::Freeze);
    sender.handle_frozen(tracker, tracker.frozen().snapshot(), 0);
}

fn ship_frozen(sender: &mut Sender, tracker: &Tracker, now_ms: u64) -> Vec<Run> {
    let Action::ShipFrozen(runs) = sender.poll(tracker, now_ms) else { panic!("expected frozen blocks") };
    for block in runs.iter().flat_map(|run| run.blocks()) {
        assert!(tracker.frozen().clear(block));
    }
    shipped(sender, &runs);
    runs
}

/// Lesson: whether a standby has everything is computed, never stored (drbd#30).
#[test]
fn a_small_epoch_is_cut_when_due_shipped_and_committed() {
    let (mut sender, tracker) = online();
    write(&tracker, 10, 2);
    assert_eq!(sender.poll(&tracker, 100), Action::Wait(1250));
    cut(&mut sender, &tracker, 1250);
    assert_eq!(ship_frozen(&mut sender, &tracker, 1250), [run(10, 2)]);
    assert!(matches!(sender.poll(&tracker, 1250), Action::Send(Message::Commit(commit)) if commit.epoch == 5 && commit.blocks == 2));
    assert!(!sender.is_drained(&tracker));
    sender.handle_message(&tracker, Message::Committed(5), 1300).unwrap();
    assert!(sender.is_drained(&tracker));
    assert_eq!(sender.known(), Some(Known { replica: Some(id(8)), acked: 5 }));
}

#[test]
fn blocks_that_the_standbys_disk_has_lost_go_with_the_next_epoch() {
    let (mut sender, tracker) = online();
    sender.handle_message(&tracker, Message::Damaged(vec![run(10, 2), run(1 << 18, 7)]), 0).unwrap();
    assert_eq!(tracker.open().len(), 2, "none is beyond the volume's end");
    cut(&mut sender, &tracker, 1250);
    assert_eq!(ship_frozen(&mut sender, &tracker, 1250), [run(10, 2)]);
    let whole = run(0, u32::MAX - 1);
    assert!(sender.handle_message(&tracker, Message::Damaged(vec![whole, whole]), 0).is_err());
}

/// Lesson: a dirty bit is cleared by the acknowledgement of that write only (drbd#145).
#[test]
fn a_write_while_its_block_is_under_way_leaves_it_dirty() {
    let (mut sender, tracker) = online();
    write(&tracker, 10, 1);
    cut(&mut sender, &tracker, 1250);
    ship_frozen(&mut sender, &tracker, 1250);
    write(&tracker, 10, 1);
    let _ = sender.poll(&tracker, 1250);
    sender.handle_message(&tracker, Message::Committed(5), 1300).unwrap();
    assert!(!sender.is_drained(&tracker));
    assert!(tracker.open().contains(10));
}

/// Lesson: an unacknowledged request failed (libnbd CVE-2022-0485).
#[test]
fn what_a_broken_stream_carried_is_dirty_again_unless_it_was_committed() {
    let (mut sender, tracker) = online();
    for (epoch, block) in [(5, 10), (6, 20)] {
        write(&tracker, block, 1);
        cut(&mut sender, &tracker, 1250 * epoch);
        ship_frozen(&mut sender, &tracker, 1250 * epoch);
        assert!(matches!(sender.poll(&tracker, 1250 * epoch), Action::Send(Message::Commit(_))));
    }
    sender.handle_disconnected(&tracker);
    assert_eq!(sender.unacknowledged(), RoaringBitmap::from_iter([10, 20]));
    attach(&mut sender, &tracker, 5);
    assert_eq!(tracker.open().snapshot(), RoaringBitmap::from_iter([20]));
}

#[test]
fn an_epoch_that_closes_after_the_stream_broke_is_thawed() {
    let (mut sender, tracker) = online();
    let Begun::Clear(in_flight) = tracker.begin_write(run(10, 1)) else { panic!("nothing is frozen") };
    assert_eq!(sender.poll(&tracker, 1250), Action::Cut);
    sender.handle_cut(tracker.cut(), 1250);
    sender.handle_disconnected(&tracker);
    assert_eq!(sender.poll(&tracker, 1250), Action::Wait(1251));
    tracker.finish_write(in_flight);
    assert_eq!(sender.poll(&tracker, 1251), Action::Freeze);
    sender.handle_frozen(&tracker, tracker.frozen().snapshot(), 0);
    assert!(tracker.frozen().is_empty());
    assert_eq!(tracker.open().snapshot(), RoaringBitmap::from_iter([10]));
}

#[test]
fn a_blank_copy_gets_the_allocated_blocks_and_a_foreign_one_is_compared() {
    for (base, compared) in [(Base::Blank, false), (Base::Unfinished, true), (Base::Point, true)] {
        let tracker = Tracker::new(5);
        let mut sender = Sender::new(Settings::default(), id(7), 100 * 4096, Lineage::first(id(1)), None, RoaringBitmap::new());
        sender.handle_connected(0);
        let _ = sender.poll(&tracker, 0);
        sender.handle_message(&tracker, Message::Attached(Attached { replica: id(8), committed: 0, base }), 0).unwrap();
        assert_eq!(sender.poll(&tracker, 0), Action::FindAllocated);
        sender.handle_allocated(&tracker, &RoaringBitmap::from_iter([3, 4]));
        if compared {
            let Action::Send(Message::Blocks(zeroes)) = sender.poll(&tracker, 0) else { panic!("holes come first") };
            assert_eq!(zeroes.runs, [(run(0, 3), Content::Zero), (run(5, 95), Content::Zero)]);
            assert_eq!(sender.poll(&tracker, 5000), Action::Ask(0, vec![run(3, 2)]));
            sender.handle_message(&tracker, Message::Compared(Compared { ticket: 0, different: vec![run(4, 1)] }), 0).unwrap();
            assert_eq!(tracker.open().snapshot(), RoaringBitmap::from_iter([4]));
        }
        assert_eq!(sender.poll(&tracker, 5000), Action::Cut);
    }
}

#[test]
fn holes_are_told_again_when_the_epoch_they_belong_to_is_given_up() {
    let tracker = Tracker::new(5);
    let mut sender = Sender::new(Settings::default(), id(7), 100 * 4096, Lineage::first(id(1)), None, RoaringBitmap::new());
    attach(&mut sender, &tracker, 4);
    assert_eq!(sender.poll(&tracker, 0), Action::FindAllocated);
    sender.handle_allocated(&tracker, &RoaringBitmap::new());
    let told = sender.poll(&tracker, 0);
    assert!(matches!(&told, Action::Send(Message::Blocks(zeroes)) if zeroes.runs == [(run(0, 100), Content::Zero)]));
    cut(&mut sender, &tracker, 5000);
    sender.handle_overflow(&tracker);
    assert_eq!(sender.poll(&tracker, 5000), Action::Send(Message::Abandon));
    // The standby takes no commit before everything that it staged has come again.
    assert_eq!(sender.poll(&tracker, 5000), told);
    cut(&mut sender, &tracker, 10_000);
    assert!(matches!(sender.poll(&tracker, 10_000), Action::Send(Message::Commit(commit)) if commit.blocks == 100));
    write(&tracker, 3, 1);
    cut(&mut sender, &tracker, 15_000);
    sender.handle_overflow(&tracker);
    assert_eq!(sender.poll(&tracker, 15_000), Action::Send(Message::Abandon));
    assert!(matches!(sender.poll(&tracker, 20_000), Action::Cut), "what was committed is not told again");
}

#[test]
fn a_large_backlog_is_shipped_before_it_is_frozen() {
    let (mut sender, tracker) = online();
    write(&tracker, 0, 1000);
    let mut early = 0;
    while let Action::ShipOpen(runs) = sender.poll(&tracker, 5000) {
        early += runs.iter().map(|run| run.len).sum::<u32>();
        shipped(&mut sender, &runs);
    }
    assert!((700..1000).contains(&early), "{early} blocks early");
    cut(&mut sender, &tracker, 5000);
    while let Action::ShipFrozen(_) = sender.poll(&tracker, 5000) {}
    assert_eq!(sender.unacknowledged().len(), 1000);
}

/// Lesson: generations come first, both ways (ceph#17979).
#[test]
fn a_later_generation_at_the_standby_supersedes_the_sender() {
    let (mut sender, tracker) = online();
    let lineage = Lineage::first(id(1)).promoted(id(2), 4);
    let refused = Refused { reason: Refusal::Stale, text: String::new(), lineage };
    sender.handle_message(&tracker, Message::Refused(refused), 0).unwrap();
    assert!(sender.is_superseded());
}

#[test]
fn answers_that_were_not_asked_for_break_the_protocol() {
    let (mut sender, tracker) = online();
    assert!(sender.handle_message(&tracker, Message::Committed(9), 0).is_err());
    assert!(sender.handle_message(&tracker, Message::Compared(Compared { ticket: 1, different: vec![] }), 0).is_err());
    assert!(sender.handle_message(&tracker, Message::Abandon, 0).is_err());
}

/// Lesson: a dirty bit is cleared by the acknowledgement of that write only (drbd#145).
#[test]
fn a_wrong_answer_leaves_no_block_clean() {
    let (mut sender, tracker) = online();
    write(&tracker, 10, 1);
    cut(&mut sender, &tracker, 1250);
    ship_frozen(&mut sender, &tracker, 1250);
    assert!(matches!(sender.poll(&tracker, 1250), Action::Send(Message::Commit(_))));
    assert!(sender.handle_message(&tracker, Message::Committed(6), 1300).is_err());
    sender.handle_disconnected(&tracker);
    attach(&mut sender, &tracker, 4);
    assert_eq!(tracker.open().snapshot(), RoaringBitmap::from_iter([10]));

    let Action::Ask(ticket, runs) = sender.poll(&tracker, 1300) else { panic!("what may be there already is asked about") };
    assert_eq!(runs, [run(10, 1)]);
    let different = vec![run(10, 2)];
    assert!(sender.handle_message(&tracker, Message::Compared(Compared { ticket, different }), 1300).is_err());
    sender.handle_disconnected(&tracker);
    assert_eq!(tracker.open().snapshot(), RoaringBitmap::from_iter([10]));
}

#[test]
fn blocks_beyond_the_end_of_the_volume_are_no_concern() {
    let tracker = Tracker::new(5);
    let known = Known { replica: None, acked: 4 };
    let mut sender = Sender::new(Settings::default(), id(7), 100 * 4096, Lineage::first(id(1)), Some(known), RoaringBitmap::new());
    sender.handle_connected(0);
    let _ = sender.poll(&tracker, 0);
    let base = Base::PointBut(RoaringBitmap::from_iter([99, 100, u32::MAX]));
    sender.handle_message(&tracker, Message::Attached(Attached { replica: id(8), committed: 4, base }), 0).unwrap();
    assert_eq!(tracker.open().snapshot(), RoaringBitmap::from_iter([99]));
    assert_eq!(sender.poll(&tracker, 5000), Action::Ask(0, vec![run(99, 1)]));
}

/// Epochs of several standbys are cut in one order, and freeze in any: a later one is not of a smaller volume.
#[test]
fn an_epoch_has_the_size_that_the_volume_had_when_it_was_cut() {
    let (mut sender, tracker) = online();
    sender.request_cut();
    assert_eq!(sender.poll(&tracker, 1300), Action::Cut);
    sender.handle_cut(tracker.cut(), 1300);
    sender.handle_resized(2 << 30);
    sender.handle_frozen(&tracker, RoaringBitmap::new(), 0);
    assert!(matches!(sender.poll(&tracker, 1300), Action::Send(Message::Commit(commit)) if commit.size_bytes == 1 << 30));
    assert_eq!(sender.poll(&tracker, 1300), Action::Cut, "the next one follows at once");
}

#[test]
fn a_volume_that_grew_is_committed_at_once_even_if_nothing_is_written() {
    let (mut sender, tracker) = online();
    let commit = |sender: &mut Sender| match sender.poll(&tracker, 1300) {
        Action::Send(Message::Commit(commit)) => (commit.epoch, commit.size_bytes, commit.blocks),
        other => panic!("{other:?}"),
    };
    sender.handle_resized(2 << 30);
    cut(&mut sender, &tracker, 10);
    assert_eq!(commit(&mut sender), (5, 2 << 30, 0));
    sender.handle_resized(1 << 30);
    assert!(matches!(sender.poll(&tracker, 60_000), Action::Wait(_)), "all is told");

    // An epoch that was under way when it grew has the size that it was cut at; the next one follows at once.
    sender.request_cut();
    cut(&mut sender, &tracker, 60_000);
    sender.handle_resized(3 << 30);
    assert_eq!(commit(&mut sender), (6, 2 << 30, 0));
    cut(&mut sender, &tracker, 60_000);
    assert_eq!(commit(&mut sender), (7, 3 << 30, 0));

    // The stream broke before the standby had it.
    sender.handle_disconnected(&tracker);
    attach(&mut sender, &tracker, 6);
    cut(&mut sender, &tracker, 90_000);
    assert_eq!(commit(&mut sender), (8, 3 << 30, 0));
}

#[test]
fn no_more_questions_are_asked_than_may_be_open() {
    let tracker = Tracker::new(5);
    let mut suspects = RoaringBitmap::new();
    suspects.insert_range(0..1 << 20);
    tracker.mark(&suspects, None);
    let known = Some(Known { replica: Some(id(8)), acked: 4 });
    let mut sender = Sender::new(Settings::default(), id(7), 1 << 40, Lineage::first(id(1)), known, suspects);
    attach(&mut sender, &tracker, 4);
    let mut asked = 0;
    while let Action::Ask(..) = sender.poll(&tracker, 0) {
        asked += 1;
    }
    assert_eq!(asked, MAX_OPEN_QUESTIONS);
    sender.handle_message(&tracker, Message::Compared(Compared { ticket: 3, different: vec![] }), 0).unwrap();
    assert!(matches!(sender.poll(&tracker, 0), Action::Ask(..)));
    assert!(matches!(sender.poll(&tracker, 0), Action::Wait(_)));
}

#[test]
fn epochs_are_cut_on_demand_without_waiting_for_those_under_way_and_are_safe_in_order() {
    let (mut sender, tracker) = online();
    assert_eq!(sender.safe(), Some(4));
    cut(&mut sender, &tracker, 2_000);
    assert!(matches!(sender.poll(&tracker, 2_000), Action::Send(Message::Commit(_))));
    for epoch in 6..6 + MAX_PENDING_EPOCHS as Epoch - 1 {
        write(&tracker, epoch as u32, 1);
        assert!(matches!(sender.poll(&tracker, 2_000), Action::Wait(_)), "not due");
        sender.request_cut();
        cut(&mut sender, &tracker, 2_000);
        ship_frozen(&mut sender, &tracker, 2_000);
        assert!(matches!(sender.poll(&tracker, 2_000), Action::Send(Message::Commit(commit)) if commit.epoch == epoch));
    }
    // What comes now shares the next epoch.
    sender.request_cut();
    assert!(matches!(sender.poll(&tracker, 2_000), Action::Wait(_)), "as many as may be are under way");
    assert!(sender.handle_message(&tracker, Message::Committed(6), 2_001).is_err(), "out of order");
    sender.handle_message(&tracker, Message::Committed(5), 2_001).unwrap();
    assert_eq!(sender.safe(), Some(5));
    assert_eq!(sender.poll(&tracker, 2_001), Action::Cut);
}

/// The same as [`online`], but cut only when asked for, and with a backlog that is too large to be frozen otherwise.
fn asked() -> (Sender, Tracker) {
    let (mut sender, tracker) = online();
    sender.set_settings(Settings { cuts: Cuts::Asked, ..Settings::default() });
    write(&tracker, 0, 100_000);
    (sender, tracker)
}

#[test]
fn where_cuts_are_asked_for_there_are_no_others_and_any_backlog_is_frozen() {
    let (mut sender, tracker) = asked();
    for now_ms in [0, 10_000, 10_000_000] {
        assert!(matches!(sender.poll(&tracker, now_ms), Action::Wait(until) if until > now_ms));
    }
    assert!(sender.is_converged(&tracker, 10_000_000));
    sender.request_cut();
    assert!(!sender.is_converged(&tracker, 10_000_000));
    cut(&mut sender, &tracker, 10_000_000);
    assert!(matches!(sender.poll(&tracker, 10_000_000), Action::ShipFrozen(_)));
}

#[test]
fn a_cut_that_was_asked_for_and_given_up_is_taken_anew_and_after_two_what_is_left_is_shipped_before() {
    let (mut sender, tracker) = asked();
    sender.request_cut();
    for _ in 0..2 {
        cut(&mut sender, &tracker, 0);
        ship_frozen(&mut sender, &tracker, 0);
        sender.handle_overflow(&tracker);
        assert_eq!(sender.poll(&tracker, 0), Action::Send(Message::Abandon));
    }
    let Action::ShipOpen(runs) = sender.poll(&tracker, 0) else { panic!("expected open blocks") };
    shipped(&mut sender, &runs);
    tracker.open().clear_all();
    assert_eq!(sender.poll(&tracker, 0), Action::Cut);
}

#[test]
fn a_cut_that_the_link_broke_is_taken_anew_unless_it_is_there() {
    for arrived in [false, true] {
        let (mut sender, tracker) = asked();
        tracker.open().clear_all();
        write(&tracker, 0, 2);
        sender.request_cut();
        cut(&mut sender, &tracker, 0);
        ship_frozen(&mut sender, &tracker, 0);
        assert!(matches!(sender.poll(&tracker, 0), Action::Send(Message::Commit(commit)) if commit.epoch == 5));
        sender.handle_disconnected(&tracker);
        attach(&mut sender, &tracker, if arrived { 5 } else { 4 });
        let next = sender.poll(&tracker, 0);
        assert_eq!(matches!(next, Action::Wait(_)), arrived, "{next:?}");
        assert_eq!(sender.cut_requested, !arrived);
    }
}
