//! A member's copy: what is staged, and every recovery point with its content.

use super::BLOCKS;
use replicator_engine::block::BLOCK_BYTES;
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::group::GroupCut;
use replicator_engine::receiver::{Receiver, Staged, Step};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Base, Blocks, Compare, Compared, Envelope, Message};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;

/// Bytes that a block's content has here.
pub const CONTENT_BYTES: usize = 8;

/// A recovery point, which is kept for ever.
#[derive(Clone)]
pub struct Point {
    pub epoch: Epoch,
    pub group: Option<GroupCut>,
    pub content: Vec<u64>,
}

/// See the module's documentation.
pub struct Standby {
    volume: Id,
    pub replica: Id,
    receiver: Receiver,
    staged: BTreeMap<u32, u64>,
    pub points: Vec<Point>,
}

impl Standby {
    pub fn new(volume: Id, lineage: &Lineage, committed: Epoch) -> Self {
        let replica = Id([volume.0[0] + 100; 16]);
        let receiver = receiver(volume, replica, lineage.clone(), committed);
        let points = vec![Point { epoch: committed, group: None, content: vec![0; BLOCKS as usize] }];
        Self { volume, replica, receiver, staged: BTreeMap::new(), points }
    }

    fn newest(&self) -> &Point {
        self.points.last().expect("it began with one")
    }

    /// What is not committed is gone.
    pub fn crash(&mut self) {
        self.staged.clear();
        self.receiver = receiver(self.volume, self.replica, self.receiver.lineage().clone(), self.newest().epoch);
    }

    /// The stream broke.
    pub fn disconnect(&mut self) {
        self.receiver.handle_disconnected();
    }

    /// Its answer to a message.
    pub fn handle(&mut self, envelope: Envelope) -> Option<Message> {
        match self.receiver.handle_message(envelope).unwrap_or_else(|refused| panic!("the standby refuses: {}", refused.text)) {
            Step::Adopt { staged, answer, .. } => {
                if staged == Staged::Goes {
                    self.staged.clear();
                }
                Some(answer)
            }
            Step::Stage(blocks) => {
                self.stage(&blocks);
                None
            }
            Step::Compare(compare) => Some(self.compare(&compare)),
            Step::Commit(commit) => {
                let mut content = self.newest().content.clone();
                for block in self.receiver.staged() {
                    content[block as usize] = self.staged[&block];
                }
                self.staged.clear();
                self.points.push(Point { epoch: commit.epoch, group: commit.group, content });
                self.receiver.handle_committed(&commit);
                Some(Message::Committed(commit.epoch))
            }
            Step::Abandon => None,
        }
    }

    fn stage(&mut self, blocks: &Blocks) {
        let all = blocks.runs.iter().flat_map(|(run, _)| run.blocks());
        for (block, content) in all.zip(blocks.payload.chunks_exact(CONTENT_BYTES)) {
            self.staged.insert(block, u64::from_le_bytes(content.try_into().expect("eight bytes")));
        }
    }

    fn compare(&mut self, compare: &Compare) -> Message {
        let (mut equal, mut different) = (RoaringBitmap::new(), RoaringBitmap::new());
        let all = compare.runs.iter().flat_map(|(run, _)| run.blocks());
        for (block, asked) in all.zip(&compare.fingerprints) {
            let content = self.staged.get(&block).copied().unwrap_or(self.newest().content[block as usize]);
            if fingerprint(content) == *asked {
                self.staged.insert(block, content);
                equal.insert(block);
            } else {
                different.insert(block);
            }
        }
        let runs = |blocks: &RoaringBitmap| replicator_engine::block::runs(blocks).collect::<Vec<_>>();
        self.receiver.handle_compared(compare.against, &runs(&equal));
        Message::Compared(Compared { ticket: compare.ticket, different: runs(&different) })
    }
}

/// Content is short enough to be its own.
pub fn fingerprint(content: u64) -> replicator_engine::wire::Fingerprint {
    let mut fingerprint = replicator_engine::wire::Fingerprint::default();
    fingerprint[..CONTENT_BYTES].copy_from_slice(&content.to_le_bytes());
    fingerprint
}

fn receiver(volume: Id, replica: Id, lineage: Lineage, committed: Epoch) -> Receiver {
    Receiver::new(volume, replica, lineage, u64::from(BLOCKS) * BLOCK_BYTES as u64, committed, Base::Point, RoaringBitmap::new())
}
