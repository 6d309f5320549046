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
    /// A primary that branched before the last committed epoch, and was refused for that.
    rival: Option<Lineage>,
    digest: EpochDigest,
    /// Staged by the attempt under way, or by an earlier one and confirmed by this one.
    staged: RoaringBitmap,
    /// Staged by attempts that were broken off, and not confirmed since.
    unconfirmed: RoaringBitmap,
    /// An epoch was refused: what is staged may hold blocks that its primary neither sent nor owes.
    is_staged_in_doubt: bool,
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
    /// The epoch under way was given up: what came of it is no base for what comes.
    Abandon,
}

/// What becomes of content that an earlier attempt staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    /// It stays, to be confirmed by comparing.
    Stays,
    /// Another primary staged it, or nobody knows who: drop it.
    Goes,
}

const NO_ATTACH: &str = "the stream did not begin with an attach";

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
            rival: None,
            digest: EpochDigest::default(),
            staged: RoaringBitmap::new(),
            unconfirmed,
            is_staged_in_doubt: false,
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

    /// A primary that continues an epoch before the last one that is committed here, since it was refused.
    pub fn rival(&self) -> Option<&Lineage> {
        self.rival.as_ref()
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
            return Err(self.refuse(Refusal::Protocol, NO_ATTACH));
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
                Ok(Step::Abandon)
            }
            _ => Err(self.refuse(Refusal::Protocol, "the message goes from a standby to a primary, not to a standby")),
        }
    }

    /// A rival that was refused at an earlier time.
    pub fn set_rival(&mut self, rival: Option<Lineage>) {
        self.rival = rival;
    }

    /// Whether a stream that begins with this message is taken. Nothing changes but that a rival is noted.
    pub fn judge(&mut self, first: &Message) -> Result<(), Refused> {
        match first {
            Message::Attach(attach) => self.judge_attach(attach).map(drop),
            _ => Err(self.refuse(Refusal::Protocol, NO_ATTACH)),
        }
    }

    /// Whether this primary is taken, and what becomes of what is staged then.
    fn judge_attach(&mut self, attach: &Attach) -> Result<Staged, Refused> {
        if attach.volume != self.volume {
            return Err(self.refuse(Refusal::Unrelated, "another volume has this name here"));
        }
        let has_point = matches!(self.base, Base::Point | Base::PointBut(_)) && !self.may_have_lost_content();
        let staged = match self.lineage.relation(&attach.lineage) {
            Relation::Same => self.outdated().map_or(Ok(Staged::Stays), Err)?,
            Relation::TheirsAhead(branch) if self.committed <= branch || !has_point => Staged::Goes,
            // A copy that never had content takes whichever volume it was made for.
            _ if self.base == Base::Blank => Staged::Goes,
            Relation::TheirsAhead(_) => {
                self.rival = Some(attach.lineage.clone());
                return Err(self.refuse(Refusal::Diverged, "this standby has epochs beyond the branch"));
            }
            Relation::MineAhead(_) => return Err(self.refuse(Refusal::Stale, "this site has seen a later generation of the volume")),
            Relation::Split => return Err(self.refuse(Refusal::SplitBrain, "both sites were primary since they last agreed")),
            Relation::Unrelated => return Err(self.refuse(Refusal::Unrelated, "the two volumes have no generation in common")),
        };
        self.check_size(attach.size_bytes)?;
        if attach.size_bytes < self.size_bytes && self.base == Base::Point {
            return Err(self.refuse(Refusal::Protocol, &smaller(self.size_bytes)));
        }
        // A primary that has forgotten that it grew will never confirm what it sent from there.
        let last = self.unconfirmed.max().max(self.staged.max());
        let beyond = last.is_some_and(|last| u64::from(last) >= block_count(attach.size_bytes));
        Ok(if beyond || self.is_staged_in_doubt { Staged::Goes } else { staged })
    }

    fn handle_attach(&mut self, attach: Attach) -> Result<Step, Refused> {
        let staged = self.judge_attach(&attach)?;
        if attach.lineage.current().id != self.lineage.current().id && self.may_have_lost_content() {
            // It stands nowhere any more: the numbers of this primary's epochs may be lower than what it had.
            (self.base, self.committed) = (Base::Unfinished, 0);
        }
        self.restart_epoch();
        if staged == Staged::Goes {
            self.unconfirmed.clear();
        }
        self.is_staged_in_doubt = false;
        self.attached = true;
        self.rival = None;
        self.lineage = attach.lineage.clone();
        self.announced_bytes = attach.size_bytes;
        let answer = Message::Attached(Attached { replica: self.replica, committed: self.committed, base: self.base.clone() });
        Ok(Step::Adopt { lineage: attach.lineage, staged, answer })
    }

    /// Whether a primary that was overtaken may have left content in the copy that no other site has or knows of: it was followed, and what it
    /// sent went straight to a copy that is no recovery point yet.
    fn may_have_lost_content(&self) -> bool {
        // The generation that such a copy came from committed its epoch; one that it followed since began there or later.
        matches!(self.base, Base::PointBut(_)) && self.lineage.current().branch_epoch >= self.committed
    }

    /// What the primary of the generation that is followed has to hear, if a later one was refused: whoever learned of that acknowledges nothing
    /// for an earlier one, though it does not follow.
    pub fn outdated(&self) -> Option<Refused> {
        let later = self.rival.as_ref().filter(|rival| matches!(self.lineage.relation(rival), Relation::TheirsAhead(_)))?;
        Some(Refused { reason: Refusal::Stale, text: "another site was promoted meanwhile".into(), lineage: later.clone() })
    }

    fn handle_blocks(&mut self, blocks: Blocks) -> Step {
        self.digest.add(&blocks);
        for (run, _) in &blocks.runs {
            self.staged.insert_range(run.blocks());
            self.unconfirmed.remove_range(run.blocks());
        }
        if self.base == Base::Blank && blocks.runs.iter().any(|(_, content)| *content != Content::Zero) {
            self.base = Base::Unfinished;
        }
        Step::Stage(blocks)
    }

    fn handle_commit(&mut self, commit: Commit) -> Result<Step, Refused> {
        self.is_staged_in_doubt = true;
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
            self.is_staged_in_doubt = false;
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
mod tests;
