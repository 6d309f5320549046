//! Bugs that are planted are found, each within so many seeds. Panics are what is waited for, so they are not printed.

use sim::{Plant, Trace, run, run_with};
use std::panic::{catch_unwind, set_hook};

const SEEDS: u64 = 500;

fn is_found(plant: Plant) {
    set_hook(Box::new(|_| {}));
    for seed in 0..SEEDS {
        if let Err(panic) = catch_unwind(|| run_with(seed, Some(plant), Trace::Off)) {
            assert!(catch_unwind(|| run(seed)).is_ok(), "seed {seed} breaks a rule without the bug");
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref().map(|text: &&str| (*text).to_owned()));
            return println!("{plant:?}: found by seed {seed}: {}", text.unwrap_or_default());
        }
    }
    panic!("{plant:?} is not found within {SEEDS} seeds");
}

#[test]
fn a_commit_that_is_answered_before_it_is_durable_is_found() {
    is_found(Plant::AcknowledgeBeforeCommit);
}

#[test]
fn an_extent_that_cools_before_the_local_flush_is_found() {
    is_found(Plant::CoolBeforeFlush);
}

#[test]
fn a_fold_out_of_order_is_found() {
    is_found(Plant::FoldOutOfOrder);
}

#[test]
fn an_activity_log_that_is_not_written_is_found() {
    is_found(Plant::SkipActivityLog);
}

/// Lesson: a dirty bit is cleared by the acknowledgement of that write only (drbd#145).
#[test]
fn a_dirty_bit_that_is_forgotten_at_a_cut_is_found() {
    is_found(Plant::ForgetDirtyBit);
}

/// Lesson: generations come first, both ways (ceph#17979).
#[test]
fn an_old_generation_that_is_taken_is_found() {
    is_found(Plant::AcceptOldGeneration);
}

#[test]
fn an_epoch_that_is_published_unchecked_is_found() {
    is_found(Plant::PublishUnchecked);
}

#[test]
fn a_torn_journal_that_loses_its_tail_is_found() {
    is_found(Plant::LoseTornTail);
}

#[test]
fn a_request_that_is_acknowledged_before_the_standby_has_it_is_found() {
    is_found(Plant::AcknowledgeBeforeArrival);
}

#[test]
fn a_promise_that_stays_recorded_when_less_is_promised_is_found() {
    is_found(Plant::KeepPromise);
}

#[test]
fn digests_that_are_not_durable_when_their_blocks_are_are_found() {
    is_found(Plant::ForgetDigests);
}

#[test]
fn what_is_forgotten_in_the_lanes_of_others_at_a_cut_is_found() {
    is_found(Plant::ForgetInOtherLane);
}

#[test]
fn a_history_that_is_forgotten_at_a_second_failover_is_found() {
    is_found(Plant::ForgetHistory);
}

#[test]
fn a_copy_that_is_taken_over_in_the_middle_of_a_resync_is_found_if_it_passes_for_whole() {
    is_found(Plant::KeepBase);
}

#[test]
fn a_history_without_the_blocks_that_were_found_equal_is_found() {
    is_found(Plant::ForgetFoundEqual);
}

#[test]
fn an_epoch_beyond_the_one_that_is_handed_over_is_found() {
    is_found(Plant::CutAfterLast);
}

#[test]
fn a_stream_that_goes_on_with_what_another_one_brought_is_found() {
    is_found(Plant::KeepSentContent);
}
