//! What an attempt that was broken off left in the journal: it need not be sent again if it is still right.

use crate::codec::{Decoder, fingerprint};
use crate::disk::SegmentFiles;
use crate::journal::Journal;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber};
use replicator_engine::wire::{Blocks, Content, Fingerprint, Message};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

/// The fingerprints of the journal's staged blocks. Bounded by the journal's quota: 16 bytes, and the map's overhead, for 4 KiB.
#[derive(Debug, Default)]
pub(super) struct StagedContent {
    fingerprints: BTreeMap<BlockNumber, Fingerprint>,
    zeroes: RoaringBitmap,
}

/// Adds the blocks of a staged message to `blocks`.
pub(super) fn add_blocks(blocks: &mut RoaringBitmap, message: &Message) {
    if let Message::Blocks(message) = message {
        for (run, _) in &message.runs {
            blocks.insert_range(run.blocks());
        }
    }
}

impl StagedContent {
    /// Reads what is staged.
    pub fn read<F: SegmentFiles>(journal: &Journal<F>, decoder: &mut Decoder) -> io::Result<Self> {
        let mut staged = Self::default();
        let mut problem = None;
        journal.for_each_staged(|message| {
            if let Message::Blocks(blocks) = message
                && let Err(error) = staged.add(&blocks, decoder)
            {
                problem = Some(error);
            }
        })?;
        match problem {
            Some(error) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("journal: a staged record: {error}"))),
            None => Ok(staged),
        }
    }

    /// Adds a message; what it holds takes the place of what was staged before.
    pub fn add(&mut self, blocks: &Blocks, decoder: &mut Decoder) -> Result<(), crate::codec::PayloadError> {
        let mut content = decoder.decode(blocks)?.chunks_exact(BLOCK_BYTES);
        for (run, kind) in &blocks.runs {
            if *kind == Content::Zero {
                self.zeroes.insert_range(run.blocks());
                self.fingerprints.extract_if(run.blocks(), |_, _| true).for_each(drop);
                continue;
            }
            self.zeroes.remove_range(run.blocks());
            self.fingerprints.extend(run.blocks().zip(content.by_ref().map(fingerprint)));
        }
        Ok(())
    }

    /// The staged blocks of a range and their fingerprints.
    pub fn range(&self, blocks: Range<BlockNumber>) -> impl Iterator<Item = (BlockNumber, Fingerprint)> {
        let zero = fingerprint(&[0; BLOCK_BYTES]);
        let data = self.fingerprints.range(blocks.clone()).map(|(block, fingerprint)| (*block, *fingerprint));
        self.zeroes.range(blocks).map(move |block| (block, zero)).chain(data)
    }

    /// The fingerprint of a staged block.
    pub fn fingerprint(&self, block: BlockNumber) -> Option<Fingerprint> {
        if self.zeroes.contains(block) {
            return Some(fingerprint(&[0; BLOCK_BYTES]));
        }
        self.fingerprints.get(&block).copied()
    }
}
