//! Where the content lies that came lately over the connection: a block that is written again may come as what differs from it.
//!
//! Invariant: an entry is what came for its block last, in this connection and in a piece of a stream. As long as there is one, what the copy has of
//! the block in the order of the stream is that content: in the journal where it was appended or, once that is folded and gone, in the image.

use super::{Standby, StandbyError, WRITE_BLOCKS};
use crate::codec::{Bases, BasesMemory, PayloadError, exclusive_or};
use crate::disk::{Pages, SegmentFiles};
use crate::journal::Position;
use bytes::BytesMut;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use replicator_engine::wire::{Blocks, Content, MAX_BASE_AGE_BLOCKS};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries are thrown out only so often: there may be so many that are too old.
const SWEEP_BLOCKS: u64 = MAX_BASE_AGE_BLOCKS / 4;
/// How often memory is looked after.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Arrived {
    /// Where each came, and how many blocks of content had come by then.
    places: BTreeMap<BlockNumber, (Place, u64)>,
    count: u64,
    /// The content of some of them.
    memory: Bases,
    /// When memory was looked after.
    looked: Option<Instant>,
}

/// Of one block's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Straight to the image.
    Image,
    Journal(Position),
}

impl Arrived {
    pub fn new(memory: Arc<BasesMemory>) -> Self {
        Self { memory: Bases::new(memory), ..Self::default() }
    }

    /// Another connection begins, or another attempt.
    pub fn clear(&mut self) {
        self.places.clear();
        self.count = 0;
        self.memory.clear();
    }

    /// What the copy has of these blocks is, or will be, something else.
    pub fn forget(&mut self, run: Run) {
        self.places.extract_if(run.blocks(), |_, _| true).for_each(drop);
        self.memory.forget(run);
    }

    /// Gives memory back that nothing came for; says when to ask again.
    pub fn forget_idle(&mut self) -> Duration {
        if self.memory.is_empty() {
            return Duration::MAX;
        }
        let elapsed = self.looked.get_or_insert_with(Instant::now).elapsed();
        if elapsed < LOOK_INTERVAL {
            return LOOK_INTERVAL - elapsed;
        }
        self.looked = Some(Instant::now());
        self.memory.forget_idle();
        LOOK_INTERVAL
    }

    /// A piece of a stream was taken in as this message, whose content lies one block after the other from `at` on.
    pub fn add(&mut self, blocks: &Blocks, at: Option<Position>) {
        let mut content = blocks.payload.chunks_exact(BLOCK_BYTES).enumerate();
        for (run, kind) in &blocks.runs {
            if *kind == Content::Zero {
                self.forget(*run);
                continue;
            }
            for (block, (index, content)) in run.blocks().zip(content.by_ref()) {
                let place = at.map_or(Place::Image, |at| Place::Journal(at.beyond((index * BLOCK_BYTES) as u64)));
                self.count += 1;
                self.places.insert(block, (place, self.count));
                self.memory.put(block, content);
                if self.count.is_multiple_of(SWEEP_BLOCKS) {
                    let count = self.count;
                    self.places.retain(|_, (_, number)| count - *number < MAX_BASE_AGE_BLOCKS);
                }
            }
        }
    }
}

/// A difference whose base is not in memory: which block it is of, and which of the message's blocks of content.
type Missing = (Place, BlockNumber, usize);

impl<F: SegmentFiles> Standby<F> {
    /// A piece of a stream with content in the place of its differences: what it says if they lead there, or an error.
    pub(super) fn resolve(&self, blocks: Blocks) -> Result<Blocks, StandbyError> {
        let mut content = blocks.payload.try_into_mut().unwrap_or_else(|payload| BytesMut::from(&payload[..]));
        let (mut missing, mut in_image) = (Vec::new(), Vec::new());
        let with_content = blocks.runs.iter().filter(|(_, kind)| *kind != Content::Zero);
        let with_content = with_content.flat_map(|(run, kind)| run.blocks().map(|block| (block, *kind)));
        for (index, (block, _)) in with_content.enumerate().filter(|(_, (_, kind))| *kind == Content::Delta) {
            let (place, _) = self.arrived.places.get(&block).ok_or(PayloadError::NoBase(block))?;
            match self.arrived.memory.get(block) {
                Some(base) => exclusive_or(base, block_of(&mut content, index)),
                None => missing.push((self.now_at(*place), block, index)),
            }
        }
        missing.sort_unstable();
        for pieces in missing.chunk_by(is_next).flat_map(|pieces| pieces.chunks(WRITE_BLOCKS as usize)) {
            let bases = self.read_bases(pieces)?;
            for ((place, block, index), base) in pieces.iter().zip(bases.chunks_exact(BLOCK_BYTES)) {
                exclusive_or(base, block_of(&mut content, *index));
                in_image.extend((*place == Place::Image).then_some(*block));
            }
        }
        if blake3::hash(&content).as_bytes() != &blocks.digest {
            // It may be the disk's doing: what it has lost, the primary is asked for.
            if let Some(checked) = &self.checked {
                in_image.iter().for_each(|block| checked.check(Run { start: *block, len: 1 }));
            }
            return Err(PayloadError::Base.into());
        }
        let runs = blocks.runs.iter().map(|(run, kind)| (*run, kind.resolved())).collect();
        Ok(Blocks { runs, payload: content.freeze(), ..blocks })
    }

    /// Where that content lies by now.
    fn now_at(&self, place: Place) -> Place {
        match place {
            Place::Journal(at) if self.journal.holds(at) => place,
            _ => Place::Image,
        }
    }

    fn read_bases(&self, pieces: &[Missing]) -> io::Result<Pages> {
        let mut content = Pages::new(pieces.len() as u32);
        match pieces[0] {
            (Place::Journal(at), ..) => self.journal.read_content(at, &mut content)?,
            (Place::Image, start, _) => {
                let mut rest = content.chunks_exact_mut(BLOCK_BYTES);
                let run = Run { start, len: pieces.len() as u32 };
                self.read_pieces(run, |_, content| rest.by_ref().take(1).for_each(|base| base.copy_from_slice(content)))?;
            }
        }
        Ok(content)
    }
}

/// Whether the base of one difference lies right behind that of another.
fn is_next((place, block, _): &Missing, (next_place, next_block, _): &Missing) -> bool {
    match (place, next_place) {
        (Place::Journal(at), Place::Journal(next)) => at.beyond(BLOCK_BYTES as u64) == *next,
        (Place::Image, Place::Image) => block + 1 == *next_block,
        _ => false,
    }
}

fn block_of(content: &mut [u8], index: usize) -> &mut [u8] {
    &mut content[index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES]
}

#[cfg(test)]
mod tests;
