//! Reading what is to be sent.

use crate::codec::add_content;
use crate::disk::{BlockDevice, Pages};
use crate::intake::KeptBlocks;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use replicator_engine::tracker::Tracker;
use replicator_engine::wire::Compare;
use roaring::RoaringBitmap;
use std::io;

/// The blocks of `runs`, one after the other.
pub fn open(image: &dyn BlockDevice, runs: &[Run]) -> io::Result<Pages> {
    let mut content = Pages::new(runs.iter().map(|run| run.len).sum());
    let mut rest = &mut content[..];
    for run in runs {
        let (part, after) = rest.split_at_mut(run.len_bytes() as usize);
        image.read(*run, part)?;
        rest = after;
    }
    Ok(content)
}

/// The blocks of `runs` as they were when the epoch closed: content that was kept goes before the image's.
pub fn frozen(image: &dyn BlockDevice, tracker: &Tracker, kept: &KeptBlocks, runs: &[Run]) -> io::Result<Pages> {
    let mut content = open(image, runs)?;
    let frozen = tracker.frozen();
    for (block, content) in runs.iter().flat_map(|run| run.blocks()).zip(content.chunks_exact_mut(BLOCK_BYTES)) {
        // Whoever finds the bit set first has the block: if it is still set, nobody has overwritten what was read.
        if !frozen.clear(block) && !kept.take(block, content)? && !kept.overflowed() {
            return Err(io::Error::other(format!("block {block} of the frozen epoch is neither in the image nor kept")));
        }
    }
    Ok(content)
}

/// Asks whether the standby has the blocks of `runs` too. Holes are not read, and cost no fingerprint.
pub fn ask(image: &dyn BlockDevice, question: &mut Compare, runs: &[Run]) -> io::Result<()> {
    let mut data = 0..0;
    for run in runs {
        let mut at = run.start;
        while at < run.end() {
            if data.end <= at {
                data = image.allocated(at)?.map_or(BlockNumber::MAX..BlockNumber::MAX, Run::blocks);
            }
            let start = data.start.clamp(at, run.end());
            if start > at {
                question.add_zeroes(Run { start: at, len: start - at });
            }
            let end = data.end.clamp(start, run.end());
            if end > start {
                let piece = Run { start, len: end - start };
                add_content(question, piece.blocks(), &open(image, &[piece])?);
            }
            at = end;
        }
    }
    Ok(())
}

/// The blocks that may hold something other than zeroes.
pub fn allocated(image: &dyn BlockDevice) -> io::Result<RoaringBitmap> {
    let mut blocks = RoaringBitmap::new();
    let mut from: BlockNumber = 0;
    while let Some(run) = image.allocated(from)? {
        blocks.insert_range(run.blocks());
        from = run.end();
    }
    Ok(blocks)
}
