//! The standby's side of one replica: which messages may change its copy, and when an epoch may become visible.
//!
//! The receiver decides; its shell stages content, makes it durable, and tells it. Invariants:
//! - Nothing is looked at before the sender's generation is.
//! - An epoch is committed only if its count and digest are those of the messages since the last commit, and if every block staged by an
//!   attempt that was broken off has been sent or confirmed again: such a block changed since the last commit, so the primary owes it.
//! - A volume may grow under a stream: blocks beyond its end as it was announced are staged, and the commit must name a size that has them.

use crate::block::{BLOCK_BYTES, MAX_BLOCKS, Run, block_count};
use crate::generation::{Id, Lineage, Relation};
use crate::tracker::Epoch;
use crate::wire::{Against, Attach, Attached, Base, Blocks, Commit, Compare, Content, Envelope, EpochDigest, Message, Refusal, Refused};
use roaring::RoaringBitmap;

/// See the module's documentation.
#[derive(Debug)]
pub struct Receiver {
    volume: Id,
    replica: Id,
    lineage: Lineage,
    committed: Epoch,
    base: Base,
    /// Size at the last commit.
    size_bytes: u64,
    /// Size that the attached primary began with.
    announced_bytes: u64,
    attached: bool,
    digest: EpochDigest,
    /// Staged by the attempt under way, or by an earlier one and confirmed by this one.
    staged: RoaringBitmap,
    /// Staged by attempts that were broken off, and not confirmed since.
    unconfirmed: RoaringBitmap,
}

/// What the shell has to do for a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Record `lineage` durably, drop what is staged if `restart` says so, then answer.
    Adopt {
        /// The primary's lineage.
        lineage: Lineage,
        /// What to do with content that was staged before.
        staged: Staged,
        /// To be sent then.
        answer: Message,
    },
    /// Stage the blocks, after checking their content.
    Stage(Blocks),
    /// Compare, call [`Receiver::handle_compared`], answer.
    Compare(Compare),
    /// Make the epoch durable, call [`Receiver::handle_committed`], answer [`Message::Committed`].
    Commit(Commit),
    /// Nothing.
    Nothing,
}

/// What becomes of content that an earlier attempt staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    /// It stays, to be confirmed by comparing.
    Stays,
    /// Another primary staged it: drop it.
    Goes,
}

impl Receiver {
    /// A receiver of `volume`, whose copy `replica` stands at `committed` with `base`; `unconfirmed` is what earlier attempts staged.
    pub fn new(
        volume: Id,
        replica: Id,
        lineage: Lineage,
        size_bytes: u64,
        committed: Epoch,
        base: Base,
        unconfirmed: RoaringBitmap,
    ) -> Self {
        Self {
            volume,
            replica,
            lineage,
            committed,
            base,
            size_bytes,
            announced_bytes: size_bytes,
            attached: false,
            digest: EpochDigest::default(),
            staged: RoaringBitmap::new(),
            unconfirmed,
        }
    }

    /// The last committed epoch.
    pub fn committed(&self) -> Epoch {
        self.committed
    }

    /// What the copy holds.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The lineage that was last adopted.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Size of the volume that the attached primary began with.
    pub fn announced_bytes(&self) -> u64 {
        self.announced_bytes
    }

    /// The blocks of the epoch that the next commit closes.
    pub fn staged(&self) -> &RoaringBitmap {
        &self.staged
    }

    /// Whether a primary is attached.
    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// Whether content goes to the journal first: before the first recovery point there is nothing to protect.
    pub fn needs_journal(&self) -> bool {
        self.base == Base::Point
    }

    /// The stream broke.
    pub fn handle_disconnected(&mut self) {
        self.attached = false;
        self.restart_epoch();
    }

    /// A message came.
    pub fn handle_message(&mut self, envelope: Envelope) -> Result<Step, Refused> {
        if let Message::Attach(attach) = envelope.message {
            return self.handle_attach(attach);
        }
        if !self.attached {
            return Err(self.refuse(Refusal::Protocol, "the stream did not begin with an attach"));
        }
        if envelope.generation != self.lineage.current() {
            return Err(self.refuse(Refusal::Stale, "the message is of another generation than the stream"));
        }
        match envelope.message {
            Message::Blocks(blocks) => Ok(self.handle_blocks(blocks)),
            Message::Compare(compare) => Ok(Step::Compare(compare)),
            Message::Commit(commit) => self.handle_commit(commit),
            Message::Abandon => {
                self.restart_epoch();
                Ok(Step::Nothing)
            }
            _ => Err(self.refuse(Refusal::Protocol, "the message goes from a standby to a primary, not to a standby")),
        }
    }

    fn handle_attach(&mut self, attach: Attach) -> Result<Step, Refused> {
        if attach.volume != self.volume {
            return Err(self.refuse(Refusal::Unrelated, "another volume has this name here"));
        }
        let staged = match self.lineage.relation(&attach.lineage) {
            Relation::Same => Staged::Stays,
            Relation::TheirsAhead(branch) if self.committed <= branch || !matches!(self.base, Base::Point | Base::PointBut(_)) => {
                Staged::Goes
            }
            // A copy that never had content takes whichever volume it was made for.
            _ if self.base == Base::Blank => Staged::Goes,
            Relation::TheirsAhead(_) => return Err(self.refuse(Refusal::Diverged, "this standby has epochs beyond the branch")),
            Relation::MineAhead(_) => return Err(self.refuse(Refusal::Stale, "this site has seen a later generation of the volume")),
            Relation::Split => return Err(self.refuse(Refusal::SplitBrain, "both sites were primary since they last agreed")),
            Relation::Unrelated => return Err(self.refuse(Refusal::Unrelated, "the two volumes have no generation in common")),
        };
        self.check_size(attach.size_bytes)?;
        if attach.size_bytes < self.size_bytes && self.base == Base::Point {
            return Err(self.refuse(Refusal::Protocol, &smaller(self.size_bytes)));
        }
        self.restart_epoch();
        // A primary that has forgotten that it grew will never confirm what it sent from there.
        let beyond = self.unconfirmed.max().is_some_and(|last| u64::from(last) >= block_count(attach.size_bytes));
        let staged = if beyond { Staged::Goes } else { staged };
        if staged == Staged::Goes {
            self.unconfirmed.clear();
        }
        self.attached = true;
        self.lineage = attach.lineage.clone();
        self.announced_bytes = attach.size_bytes;
        let answer = Message::Attached(Attached { replica: self.replica, committed: self.committed, base: self.base.clone() });
        Ok(Step::Adopt { lineage: attach.lineage, staged, answer })
    }

    fn handle_blocks(&mut self, blocks: Blocks) -> Step {
        self.digest.add(&blocks);
        for (run, _) in &blocks.runs {
            self.staged.insert_range(run.blocks());
            self.unconfirmed.remove_range(run.blocks());
        }
        if self.base == Base::Blank && blocks.runs.iter().any(|(_, content)| *content == Content::Data) {
            self.base = Base::Unfinished;
        }
        Step::Stage(blocks)
    }

    fn handle_commit(&mut self, commit: Commit) -> Result<Step, Refused> {
        self.check_size(commit.size_bytes)?;
        let problem = if commit.epoch <= self.committed {
            "the epoch is not after the last committed one"
        } else if (commit.blocks, commit.digest) != self.digest.value() {
            "the epoch's count or digest is not that of what arrived"
        } else if !self.unconfirmed.is_empty() {
            "blocks of an attempt that was broken off were not sent again"
        } else if commit.size_bytes < self.announced_bytes {
            "the volume shrank"
        } else if self.staged.max().is_some_and(|last| u64::from(last) >= block_count(commit.size_bytes)) {
            "blocks beyond the end of the volume"
        } else {
            return Ok(Step::Commit(commit));
        };
        Err(self.refuse(Refusal::Protocol, problem))
    }

    /// The epoch is durable.
    pub fn handle_committed(&mut self, commit: &Commit) {
        self.committed = commit.epoch;
        self.size_bytes = commit.size_bytes;
        self.announced_bytes = commit.size_bytes;
        self.base = Base::Point;
        self.staged.clear();
        self.digest = EpochDigest::default();
    }

    /// The blocks of a comparison with the epoch that were found equal.
    pub fn handle_compared(&mut self, against: Against, equal: &[Run]) {
        if against == Against::Epoch {
            let mut confirmed = RoaringBitmap::new();
            equal.iter().for_each(|run| _ = confirmed.insert_range(run.blocks()));
            confirmed &= &self.unconfirmed;
            self.unconfirmed -= &confirmed;
            self.staged |= confirmed;
        }
    }

    fn check_size(&self, size_bytes: u64) -> Result<(), Refused> {
        if size_bytes > 0 && size_bytes.is_multiple_of(BLOCK_BYTES as u64) && block_count(size_bytes) <= MAX_BLOCKS {
            Ok(())
        } else {
            Err(self.refuse(Refusal::Protocol, "no volume can have that size"))
        }
    }

    fn restart_epoch(&mut self) {
        self.unconfirmed |= std::mem::take(&mut self.staged);
        if !self.needs_journal() {
            // Content went straight to a copy that is no recovery point yet: the primary compares what it does not send again.
            self.unconfirmed.clear();
        }
        self.digest = EpochDigest::default();
    }

    fn refuse(&self, reason: Refusal, text: &str) -> Refused {
        Refused { reason, text: text.into(), lineage: self.lineage.clone() }
    }
}

fn smaller(size_bytes: u64) -> String {
    format!("the volume is smaller than its copy, which has {size_bytes} bytes: `tern volume resize` it to at least that")
}

#[cfg(test)]
mod tests {
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
        let mut receiver = receiver(Base::Point, 5);
        attach(&mut receiver, &lineage()).unwrap();
        send(&mut receiver, &lineage(), Message::Blocks(blocks(256))).unwrap();
        receiver.handle_disconnected();
        assert!(matches!(attach(&mut receiver, &lineage()), Ok(Step::Adopt { staged: Staged::Goes, .. })));
        assert!(matches!(send(&mut receiver, &lineage(), commit(6, &[])), Ok(Step::Commit(_))));
    }
}
