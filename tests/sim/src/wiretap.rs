//! Between the network and a standby: where bugs of the receiver are planted.

use crate::plant::Plant;
use bytes::Bytes;
use replicator_engine::generation::{Lineage, Relation};
use replicator_engine::wire::{Envelope, EpochDigest, Message};

/// What passed.
#[derive(Default)]
pub struct Wiretap {
    digest: EpochDigest,
    /// The lineage that a primary is taken for.
    forged: Option<Lineage>,
}

impl Wiretap {
    /// The frame as the standby with `lineage` gets it.
    pub fn pass(&mut self, plant: Option<Plant>, frame: Bytes, lineage: &Lineage) -> Bytes {
        match plant {
            Some(Plant::AcceptOldGeneration) => self.forge(frame, lineage),
            Some(Plant::PublishUnchecked) => self.sign(frame),
            _ => frame,
        }
    }

    /// A primary that was overtaken passes for the one that overtook it.
    fn forge(&mut self, frame: Bytes, lineage: &Lineage) -> Bytes {
        let Ok(mut envelope) = Envelope::decode(frame.clone()) else { return frame };
        if let Message::Attach(attach) = &mut envelope.message
            && let Relation::MineAhead(_) = lineage.relation(&attach.lineage)
        {
            attach.lineage = lineage.clone();
            self.forged = Some(lineage.clone());
        }
        let Some(forged) = &self.forged else { return frame };
        envelope.generation = forged.current();
        envelope.encode()
    }

    /// A commit has the digest of whatever arrived.
    fn sign(&mut self, frame: Bytes) -> Bytes {
        let Ok(mut envelope) = Envelope::decode(frame.clone()) else { return frame };
        match &mut envelope.message {
            Message::Blocks(blocks) => self.digest.add(blocks),
            Message::Commit(commit) => {
                (commit.blocks, commit.digest) = std::mem::take(&mut self.digest).value();
                return envelope.encode();
            }
            Message::Abandon => self.digest = EpochDigest::default(),
            _ => {}
        }
        frame
    }
}
