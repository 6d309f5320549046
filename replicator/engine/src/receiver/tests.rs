use super::*;
use crate::wire::Encoding;
use bytes::Bytes;

fn lineage() -> Lineage {
    Lineage::first(Id([1; 16]))
}

fn receiver(base: Base, committed: Epoch) -> Receiver {
    Receiver::new(Id([7; 16]), Id([8; 16]), lineage(), 1 << 20, committed, base, RoaringBitmap::new())
}

fn send(receiver: &mut Receiver, lineage: &Lineage, message: Message) -> Result<Step, Refusal> {
    receiver.handle_message(Envelope { generation: lineage.current(), message }).map_err(|refused| refused.reason)
}

fn attach(receiver: &mut Receiver, lineage: &Lineage) -> Result<Step, Refusal> {
    send(receiver, lineage, Message::Attach(Attach { volume: Id([7; 16]), size_bytes: 1 << 20, lineage: lineage.clone() }))
}

fn blocks(start: u32) -> Blocks {
    let runs = vec![(Run::new(start, 1).unwrap(), Content::Data)];
    Blocks { runs, encoding: Encoding::Plain, digest: [start as u8; 32], payload: Bytes::from(vec![0; 4096]) }
}

fn commit(epoch: Epoch, sent: &[&Blocks]) -> Message {
    let mut digest = EpochDigest::default();
    sent.iter().for_each(|blocks| digest.add(blocks));
    let (blocks, digest) = digest.value();
    Message::Commit(Commit { epoch, blocks, digest, size_bytes: 1 << 20, cut_unix_ms: 0, group: None })
}

#[test]
fn an_epoch_with_a_missing_message_is_not_committed() {
    let mut receiver = receiver(Base::Point, 5);
    attach(&mut receiver, &lineage()).unwrap();
    send(&mut receiver, &lineage(), Message::Blocks(blocks(1))).unwrap();
    assert_eq!(send(&mut receiver, &lineage(), commit(6, &[&blocks(1), &blocks(2)])), Err(Refusal::Protocol));
    assert!(matches!(send(&mut receiver, &lineage(), commit(6, &[&blocks(1)])), Ok(Step::Commit(_))));
}

#[test]
fn a_block_of_a_broken_attempt_must_come_again_before_a_commit() {
    let mut receiver = receiver(Base::Point, 5);
    attach(&mut receiver, &lineage()).unwrap();
    send(&mut receiver, &lineage(), Message::Blocks(blocks(1))).unwrap();
    receiver.handle_disconnected();
    attach(&mut receiver, &lineage()).unwrap();
    assert_eq!(send(&mut receiver, &lineage(), commit(7, &[])), Err(Refusal::Protocol));
    receiver.handle_compared(Against::Epoch, &[Run::new(1, 1).unwrap()]);
    assert!(matches!(send(&mut receiver, &lineage(), commit(7, &[])), Ok(Step::Commit(_))));
}

#[test]
fn what_was_confirmed_in_a_broken_attempt_must_be_confirmed_again() {
    let mut receiver = receiver(Base::Point, 5);
    attach(&mut receiver, &lineage()).unwrap();
    send(&mut receiver, &lineage(), Message::Blocks(blocks(1))).unwrap();
    for _ in 0..2 {
        receiver.handle_disconnected();
        attach(&mut receiver, &lineage()).unwrap();
        assert_eq!(send(&mut receiver, &lineage(), commit(7, &[])), Err(Refusal::Protocol));
        receiver.handle_compared(Against::Epoch, &[Run::new(0, 4).unwrap()]);
        assert!(matches!(send(&mut receiver, &lineage(), commit(7, &[])), Ok(Step::Commit(_))));
    }
}

#[test]
fn a_block_that_its_primary_neither_sent_nor_owes_stops_one_stream_and_not_the_next_one() {
    let mut receiver = receiver(Base::Point, 5);
    attach(&mut receiver, &lineage()).unwrap();
    send(&mut receiver, &lineage(), Message::Blocks(blocks(2))).unwrap();
    assert_eq!(send(&mut receiver, &lineage(), commit(6, &[&blocks(1)])), Err(Refusal::Protocol));
    receiver.handle_disconnected();
    assert!(matches!(attach(&mut receiver, &lineage()), Ok(Step::Adopt { staged: Staged::Goes, .. })));
    send(&mut receiver, &lineage(), Message::Blocks(blocks(1))).unwrap();
    assert!(matches!(send(&mut receiver, &lineage(), commit(7, &[&blocks(1)])), Ok(Step::Commit(_))));
}

/// Lesson: generations come first, both ways (ceph#17979).
#[test]
fn an_old_generation_is_refused_before_anything_else() {
    let new = lineage().promoted(Id([2; 16]), 5);
    let mut receiver = receiver(Base::Point, 5);
    attach(&mut receiver, &new).unwrap();
    assert_eq!(attach(&mut receiver, &lineage()), Err(Refusal::Stale));
    assert_eq!(send(&mut receiver, &lineage(), Message::Blocks(blocks(1))), Err(Refusal::Stale));
    assert_eq!(attach(&mut receiver, &lineage().promoted(Id([3; 16]), 5)), Err(Refusal::SplitBrain));
}

#[test]
fn an_old_generation_of_a_smaller_volume_is_told_that_it_is_old() {
    let new = lineage().promoted(Id([2; 16]), 5);
    let mut receiver = Receiver::new(Id([7; 16]), Id([8; 16]), new, 2 << 20, 6, Base::Point, RoaringBitmap::new());
    assert_eq!(attach(&mut receiver, &lineage()), Err(Refusal::Stale));
}

#[test]
fn epochs_beyond_the_branch_are_not_overwritten_silently() {
    assert_eq!(attach(&mut receiver(Base::Point, 6), &lineage().promoted(Id([2; 16]), 5)), Err(Refusal::Diverged));
    assert!(attach(&mut receiver(Base::Point, 5), &lineage().promoted(Id([2; 16]), 5)).is_ok());
}

#[test]
fn a_copy_that_followed_a_primary_which_was_overtaken_in_the_middle_is_compared_whole() {
    let mut receiver = receiver(Base::PointBut(RoaringBitmap::from_iter([1])), 5);
    let base_told = |step| match step {
        Ok(Step::Adopt { answer: Message::Attached(attached), .. }) => attached.base,
        other => panic!("{other:?}"),
    };
    let first = lineage().promoted(Id([2; 16]), 5);
    for _ in 0..2 {
        assert!(matches!(base_told(attach(&mut receiver, &first)), Base::PointBut(_)));
        send(&mut receiver, &first, Message::Blocks(blocks(3))).unwrap();
        receiver.handle_disconnected();
    }
    assert_eq!(base_told(attach(&mut receiver, &first.promoted(Id([3; 16]), 9))), Base::Unfinished);
}

/// It had taken on the generation of one that was promoted at 5, and nothing of its content, when it was promoted itself.
#[test]
fn a_copy_that_is_compared_whole_takes_epochs_of_any_number() {
    let mut receiver = receiver(Base::PointBut(RoaringBitmap::new()), 5);
    let first = lineage().promoted(Id([2; 16]), 5);
    attach(&mut receiver, &first).unwrap();
    let second = first.promoted(Id([3; 16]), 2);
    let Ok(Step::Adopt { answer: Message::Attached(attached), .. }) = attach(&mut receiver, &second) else { panic!("it is taken") };
    assert_eq!((attached.committed, attached.base), (0, Base::Unfinished));
    assert!(matches!(send(&mut receiver, &second, commit(3, &[])), Ok(Step::Commit(_))));
}

#[test]
fn a_size_that_no_image_can_have_is_refused_before_it_is_recorded() {
    for size_bytes in [0, u64::MAX, (MAX_BLOCKS + 1) * BLOCK_BYTES as u64, (1 << 20) + 512] {
        let mut receiver = receiver(Base::Point, 5);
        let wrong = Attach { volume: Id([7; 16]), size_bytes, lineage: lineage() };
        assert_eq!(send(&mut receiver, &lineage(), Message::Attach(wrong)), Err(Refusal::Protocol));
        attach(&mut receiver, &lineage()).unwrap();
        let Message::Commit(right) = commit(6, &[]) else { unreachable!() };
        assert_eq!(send(&mut receiver, &lineage(), Message::Commit(Commit { size_bytes, ..right })), Err(Refusal::Protocol));
    }
}

#[test]
fn a_commit_names_a_size_that_has_all_blocks_and_is_not_smaller_than_before() {
    let mut receiver = receiver(Base::Point, 5);
    attach(&mut receiver, &lineage()).unwrap();
    assert!(send(&mut receiver, &lineage(), Message::Blocks(blocks(256))).is_ok());
    let Message::Commit(right) = commit(6, &[&blocks(256)]) else { unreachable!() };
    let sized = |size_bytes| Message::Commit(Commit { size_bytes, ..right.clone() });
    assert_eq!(send(&mut receiver, &lineage(), sized(1 << 20)), Err(Refusal::Protocol));
    let Ok(Step::Commit(grown)) = send(&mut receiver, &lineage(), sized((1 << 20) + 4096)) else { panic!("it grew") };
    receiver.handle_committed(&grown);
    assert_eq!(send(&mut receiver, &lineage(), commit(7, &[])), Err(Refusal::Protocol));
    assert_eq!(attach(&mut receiver, &lineage()), Err(Refusal::Protocol));
}

#[test]
fn what_was_staged_beyond_the_end_of_a_primary_that_forgot_its_growth_goes() {
    let begins_again: [fn(&mut Receiver); 2] = [Receiver::handle_disconnected, |_| {}];
    for begin_again in begins_again {
        let mut receiver = receiver(Base::Point, 5);
        attach(&mut receiver, &lineage()).unwrap();
        send(&mut receiver, &lineage(), Message::Blocks(blocks(256))).unwrap();
        begin_again(&mut receiver);
        assert!(matches!(attach(&mut receiver, &lineage()), Ok(Step::Adopt { staged: Staged::Goes, .. })));
        assert!(matches!(send(&mut receiver, &lineage(), commit(6, &[])), Ok(Step::Commit(_))));
    }
}
