//! Answering which of the primary's blocks differ here.

use super::checked::Checked;
use super::staged::StagedContent;
use super::{Standby, StandbyError, WRITE_BLOCKS};
use crate::codec::{fingerprint, is_zero};
use crate::disk::{Pages, SegmentFiles};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run, block_count, runs};
use replicator_engine::wire::{Against, Compare, Compared, Content};
use roaring::RoaringBitmap;
use std::io;

impl<F: SegmentFiles> Standby<F> {
    pub(super) fn compare(&mut self, compare: &Compare) -> Result<Compared, StandbyError> {
        while self.fold_one()? {}
        if compare.against == Against::Epoch && self.staged.is_none() && self.receiver.needs_journal() {
            self.staged = Some(StagedContent::read(&self.journal, &mut self.decoder)?);
        }
        let staged = self.staged.as_ref().filter(|_| compare.against == Against::Epoch);
        let (mut different, checked) = (RoaringBitmap::new(), self.checked.clone());
        let mut fingerprints = compare.fingerprints.iter();
        let zero = fingerprint(&[0; BLOCK_BYTES]);
        for (run, content) in &compare.runs {
            match content {
                Content::Data | Content::Delta => self.read_pieces(*run, |block, content| {
                    let from_journal = staged.and_then(|staged| staged.fingerprint(block));
                    let here = from_journal.unwrap_or_else(|| fingerprint(content));
                    if fingerprints.next() != Some(&here) {
                        different.insert(block);
                    } else if let (Some(checked), None) = (&checked, from_journal) {
                        checked.confirm(block, &here, content);
                    }
                })?,
                Content::Zero => {
                    let mut from = run.start;
                    while let Some(data) = self.image.allocated(from)?.filter(|data| data.start < run.end()) {
                        let (start, end) = (data.start.max(from), data.end().min(run.end()));
                        self.read_pieces(Run { start, len: end - start }, |block, content| {
                            if !is_zero(content) {
                                different.insert(block);
                            }
                        })?;
                        from = end;
                    }
                    if let Some(staged) = staged {
                        // What is staged takes the place of what the image has.
                        for (block, here) in staged.range(run.blocks()) {
                            if here == zero {
                                different.remove(block)
                            } else {
                                different.insert(block)
                            };
                        }
                    }
                }
            }
        }
        let mut equal = RoaringBitmap::new();
        for (run, _) in &compare.runs {
            equal.insert_range(run.blocks());
        }
        equal -= &different;
        if compare.against == Against::Epoch {
            self.found_equal |= &equal;
            compare.runs.iter().for_each(|(run, _)| self.arrived.forget(*run));
        }
        let equal: Vec<Run> = runs(&equal).collect();
        if let Some(checked) = &checked {
            self.learn(checked, compare, &different);
        }
        self.receiver.handle_compared(compare.against, &equal);
        Ok(Compared { ticket: compare.ticket, different: runs(&different).collect() })
    }

    /// What a question says of the image: where it has zeroes as the primary has, and where perhaps its disk has lost something.
    fn learn(&self, checked: &Checked, compare: &Compare, different: &RoaringBitmap) {
        for (run, _) in compare.runs.iter().filter(|(_, content)| *content == Content::Zero) {
            let mut zeroes = RoaringBitmap::new();
            zeroes.insert_range(run.blocks());
            zeroes -= different;
            if let Some(staged) = &self.staged {
                staged.range(run.blocks()).for_each(|(block, _)| _ = zeroes.remove(block));
            }
            runs(&zeroes).for_each(|run| checked.confirm_zeroes(run));
        }
        if compare.against == Against::Point {
            runs(different).for_each(|run| checked.check(run));
        }
    }

    /// Shows each block of `run` as it is in the image; beyond its end are zeroes.
    pub(super) fn read_pieces(&self, run: Run, mut see: impl FnMut(BlockNumber, &[u8])) -> io::Result<()> {
        let end = block_count(self.image.size_bytes()) as BlockNumber;
        for start in run.blocks().step_by(WRITE_BLOCKS as usize) {
            let piece = Run { start, len: WRITE_BLOCKS.min(run.end() - start) };
            let mut content = Pages::new(piece.len);
            if let Some(inside) = Run::new(start, end.clamp(start, piece.end()) - start) {
                self.image.read(inside, &mut content[..inside.len_bytes() as usize])?;
            }
            piece.blocks().zip(content.chunks_exact(BLOCK_BYTES)).for_each(|(block, content)| see(block, content));
        }
        Ok(())
    }
}
