//! The thread that fills an image: clients' requests first, then the plan.
//!
//! What cannot be had is looked for block by block, set aside, and tried again while nothing else is to be done: it keeps neither clients nor the rest
//! of the plan waiting.

use super::{Ask, Filled, Kind, Missing, Source, Trouble, Unfilled, pieces, touched};
use crate::request::{Op, Request};
use crate::store::Image;
use replicator::disk::BlockDevice;
use replicator_engine::block::{BlockNumber, Run, runs};
use replicator_engine::tracker::DirtyMap;
use roaring::RoaringBitmap;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// Blocks that are fetched together, so that a client that reads on finds them there.
const AHEAD_BLOCKS: u32 = 16;
/// Requests that are answered together: they share a record.
const MAX_BATCH: usize = 64;
/// Blocks of a plan that are recorded together.
const RECORD_BLOCKS: u64 = 2048;
/// From a failure to the next attempt to go on with a plan.
const RETRY: Duration = Duration::from_secs(5);

/// How a piece of a plan went.
#[derive(PartialEq, Eq)]
enum Went {
    On,
    /// What is left cannot be had now.
    Nowhere,
}

pub(super) struct Filler<S> {
    missing: Arc<Missing>,
    image: Image,
    source: S,
    kind: Kind,
    /// What is left of it.
    plan: VecDeque<Run>,
    /// How many of its first runs the source is prepared for.
    prepared: usize,
    /// Filled by the plan, and not recorded yet.
    filled: RoaringBitmap,
}

impl<S: Source> Filler<S> {
    pub fn new(missing: Arc<Missing>, image: Image, source: S, kind: Kind, plan: VecDeque<Run>) -> Self {
        Self { missing, image, source, kind, plan, prepared: 0, filled: RoaringBitmap::new() }
    }

    pub fn serve(mut self, asked: &mpsc::Receiver<Ask>) {
        let mut not_before = None;
        loop {
            let goes_on = match self.kind {
                Kind::Scratch => false,
                Kind::Lasting => !self.missing.is_finished.load(SeqCst),
                Kind::Guarded => !self.plan.is_empty() || !self.filled.is_empty(),
            };
            let is_due = goes_on && not_before.is_none_or(|at| Instant::now() >= at);
            let next = match (goes_on, is_due) {
                (_, true) => asked.try_recv().map_err(|error| error == TryRecvError::Disconnected),
                (true, false) => asked.recv_timeout(RETRY).map_err(|error| error == RecvTimeoutError::Disconnected),
                (false, false) => asked.recv().map_err(|_| true),
            };
            match next {
                Ok(first) => {
                    self.answer(std::iter::once(first).chain(asked.try_iter().take(MAX_BATCH)).collect());
                    // What is left may be another.
                    not_before = not_before.filter(|_| !self.plan.is_empty());
                }
                Err(true) => return,
                Err(false) if is_due => {
                    let went = self.go_on().map_err(|error| self.image.note_error(error));
                    not_before = (!matches!(went, Ok(Went::On))).then(|| Instant::now() + RETRY);
                    self.missing.trouble().failure = went.err().map(|error| error.to_string());
                }
                Err(false) => {}
            }
        }
    }

    /// Reads are answered before anything is recorded.
    fn answer(&mut self, batch: Vec<Ask>) {
        let (mut to_record, mut waiting): (_, Vec<Filled>) = (RoaringBitmap::new(), Vec::new());
        for ask in batch {
            let (request, filled) = match ask {
                Ask::Fetch(request, filled) => (request, filled),
                // Whoever asked may be gone.
                Ask::GiveUp(blocks, reply) => {
                    let _ = reply.send(self.give_up(&blocks));
                    continue;
                }
            };
            match self.fill(request).map_err(|error| self.image.note_error(error.into())) {
                Ok(()) if !self.missing.has(request) => {
                    let around = touched(request).map(|run| self.around(run));
                    to_record |= around.map_or_else(RoaringBitmap::new, |around| self.missing.loose.within(around));
                    waiting.push(filled);
                }
                done => filled(done),
            }
        }
        if waiting.is_empty() {
            return;
        }
        // Neighbours may not be there.
        let absent: RoaringBitmap = to_record.iter().filter(|block| self.missing.absent.contains(*block)).collect();
        let recorded = self.record(&(to_record - absent)).map_err(|error| self.image.note_error(error));
        for filled in waiting {
            filled(match &recorded {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            });
        }
    }

    fn fill(&mut self, request: Request) -> Result<(), Unfilled> {
        let Some(run) = touched(request) else { return Ok(()) };
        if self.kind == Kind::Scratch && matches!(request.op, Op::Discard | Op::WriteZeroes(..)) {
            self.skip_zeroed(request);
        }
        if self.missing.absent.intersects(run) {
            // A neighbour that cannot be had is none of the client's business.
            return self.fetch(self.around(run)).or_else(|_| self.fetch(run));
        }
        Ok(())
    }

    /// Carries out a piece of the plan.
    fn go_on(&mut self) -> io::Result<Went> {
        if self.prepared == 0 {
            self.prepare()?;
        }
        let went = if let Some(run) = self.plan.front().copied() { self.fill_planned(run)? } else { Went::On };
        if self.filled.len() >= RECORD_BLOCKS || self.plan.len() as u64 == self.missing.trouble().lost.len() {
            self.record(&self.filled.clone())?;
            self.filled.clear();
        }
        if self.kind == Kind::Lasting && self.plan.is_empty() && self.missing.is_recorded() {
            self.source.finish()?;
            self.missing.is_finished.store(true, SeqCst);
        }
        Ok(went)
    }

    /// Fills the first run of the plan. What cannot be had does not keep the rest: it is halved until it is a block, which comes last.
    fn fill_planned(&mut self, run: Run) -> io::Result<Went> {
        self.prepared = self.prepared.saturating_sub(1);
        self.plan.rotate_left(1);
        match self.fetch(run) {
            Ok(()) => {
                self.plan.pop_back();
                self.filled |= self.missing.loose.within(run);
                Ok(Went::On)
            }
            Err(Unfilled::Disk(error)) => Err(error),
            Err(Unfilled::Lost(_)) if run.len > 1 => {
                self.plan.pop_back();
                let half = run.len / 2;
                self.plan.push_front(Run { start: run.start + half, len: run.len - half });
                self.plan.push_front(Run { start: run.start, len: half });
                self.prepared += 2;
                Ok(Went::On)
            }
            Err(Unfilled::Lost(error)) => {
                let mut trouble = self.missing.trouble();
                trouble.why_lost = error.to_string();
                Ok(if trouble.lost.insert(run.start) { Went::On } else { Went::Nowhere })
            }
        }
    }

    /// What the next record will have, or the first of it.
    fn prepare(&mut self) -> io::Result<()> {
        let (mut next, mut count) = (RoaringBitmap::new(), 0);
        for run in &self.plan {
            if next.len() >= RECORD_BLOCKS {
                break;
            }
            next |= self.missing.absent.within(*run);
            count += 1;
        }
        self.source.prepare(&self.image, &next)?;
        self.prepared = count;
        Ok(())
    }

    fn fetch(&mut self, run: Run) -> Result<(), Unfilled> {
        for run in pieces(run).flat_map(|piece| runs(&self.missing.absent.within(piece)).collect::<Vec<_>>()).collect::<Vec<_>>() {
            self.source.fill(&self.image, run)?;
            clear(&self.missing.absent, run.blocks());
            if self.kind == Kind::Scratch {
                clear(&self.missing.loose, run.blocks());
            } else {
                self.missing.trouble().lost.remove_range(run.blocks());
            }
        }
        Ok(())
    }

    /// Nobody wants what is lost of these blocks any more: zeroes are there instead.
    fn give_up(&mut self, blocks: &RoaringBitmap) -> io::Result<RoaringBitmap> {
        let lost = &self.missing.trouble().lost & blocks;
        self.source.prepare(&self.image, &lost)?;
        for run in runs(&lost) {
            BlockDevice::zero(&self.image, run)?;
        }
        self.record(&lost)?;
        clear(&self.missing.absent, lost.iter());
        self.plan.retain(|run| !lost.contains_range(run.blocks()));
        self.prepared = 0;
        let Trouble { lost: all, .. } = &mut *self.missing.trouble();
        *all -= &lost;
        Ok(lost)
    }

    /// Blocks that are filled.
    fn record(&mut self, filled: &RoaringBitmap) -> io::Result<()> {
        let fresh: RoaringBitmap = filled.iter().filter(|block| self.missing.loose.contains(*block)).collect();
        if !fresh.is_empty() {
            self.source.record(&self.image, &fresh)?;
            clear(&self.missing.loose, fresh.iter());
        }
        Ok(())
    }

    /// What is zeroed as a whole need not be fetched: it reads as zeroes already.
    fn skip_zeroed(&self, request: Request) {
        let touched = Run::covering(request.offset, request.len_bytes);
        let whole = |run: &Run| run.offset() >= request.offset && run.offset() + run.len_bytes() <= request.offset + request.len_bytes;
        let blocks = touched.into_iter().flat_map(|run| run.blocks());
        for block in blocks.filter(|start| whole(&Run { start: *start, len: 1 })) {
            self.missing.absent.clear(block);
            self.missing.loose.clear(block);
        }
    }

    fn around(&self, run: Run) -> Run {
        let start = run.start / AHEAD_BLOCKS * AHEAD_BLOCKS;
        let all = Run::covering(0, self.image.size_bytes()).map_or(run.end(), |all| all.end());
        let end = run.end().next_multiple_of(AHEAD_BLOCKS).min(all).max(run.end());
        Run { start, len: end - start }
    }
}

fn clear(map: &DirtyMap, blocks: impl Iterator<Item = BlockNumber>) {
    blocks.for_each(|block| _ = map.clear(block));
}
