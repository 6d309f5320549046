//! Content that comes into an image while the image is served already.
//!
//! ```text
//!   admit ──► all of it is there ──► (the request)
//!         └─► the origin's thread: source ──► image ──► there ──► (a read)
//!                                                └──► recorded ──► (a change)
//! ```
//!
//! One thread fills, and nothing touches a block before it is there: content that is filled in never overwrites a client's. Where what was
//! filled outlives the daemon, a block may be changed only once it is recorded: after a crash, whatever is not is filled again.

use crate::request::{Op, Request};
use crate::store::Image;
use replicator_engine::block::{BlockNumber, Run, runs};
use replicator_engine::tracker::{DirtyMap, Epoch};
use roaring::RoaringBitmap;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Blocks that are fetched together, so that a client that reads on finds them there.
const AHEAD_BLOCKS: u32 = 16;
/// Most blocks that are fetched at once.
const FETCH_BLOCKS: u32 = 256;
/// Requests that are answered together: they share a record.
const MAX_BATCH: usize = 64;
/// Blocks of a plan that are recorded together.
const RECORD_BLOCKS: u64 = 2048;
/// From a failure to the next attempt to go on with a plan.
const RETRY: Duration = Duration::from_secs(5);

/// Where the content comes from.
pub trait Source: Send + 'static {
    /// These blocks of a plan are filled next.
    fn prepare(&mut self, _image: &Image, _blocks: &RoaringBitmap) -> io::Result<()> {
        Ok(())
    }

    /// Puts the content of `run` into the image. Blocks.
    fn fill(&mut self, image: &Image, run: Run) -> io::Result<()>;

    /// Has it outlive a crash that these blocks were filled: clients may change them from now on.
    fn record(&mut self, _image: &Image, _filled: &RoaringBitmap) -> io::Result<()> {
        Ok(())
    }

    /// Everything of the plan is filled and recorded.
    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is not in an image.
pub enum Wanted {
    /// Nothing is, and it reads as zeroes. It comes when it is asked for, and need not be recorded.
    All,
    /// These runs, which are fetched in this order while nobody asks for another, and recorded.
    Plan(Vec<Run>),
    /// The same for the runs of a plan, but without an end: all that is guarded may be changed only once it is recorded.
    Guarded {
        /// What is fetched.
        plan: Vec<Run>,
        /// What may not be changed yet, the plan included.
        guarded: Vec<Run>,
    },
}

/// Is called, once, when all of a request's blocks are there, or cannot be had.
pub type Filled = Box<dyn FnOnce(io::Result<()>) + Send>;

/// See the module's documentation. Dropped, it gives its source up.
pub struct Origin {
    /// The recovery point that the content is of.
    pub point: Epoch,
    kind: Kind,
    missing: Arc<Missing>,
    total_blocks: u64,
    wanted: Option<mpsc::Sender<(Request, Filled)>>,
    thread: Option<JoinHandle<()>>,
}

/// What is not there yet.
#[derive(Default)]
struct Missing {
    /// Blocks that are to be filled.
    absent: DirtyMap,
    /// Those, and blocks that are filled and not recorded.
    loose: DirtyMap,
    is_finished: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Missing {
    fn has(&self, request: Request) -> bool {
        let map = if request.op.changes() { &self.loose } else { &self.absent };
        touched(request).is_none_or(|run| !map.intersects(run))
    }

    fn is_recorded(&self) -> bool {
        self.loose.is_empty()
    }

    fn set_failure(&self, failure: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

impl Origin {
    /// What is `wanted` of `image`, which serves `point`, comes from `source`.
    pub fn start(image: Image, point: Epoch, source: impl Source, wanted: Wanted) -> io::Result<Self> {
        let missing = Arc::new(Missing::default());
        let (absent, guarded, kind) = match wanted {
            Wanted::All => (Run::covering(0, image.size_bytes()).into_iter().collect(), Vec::new(), Kind::Scratch),
            Wanted::Plan(plan) => (plan, Vec::new(), Kind::Lasting),
            Wanted::Guarded { plan, guarded } => (plan, guarded, Kind::Guarded),
        };
        absent.iter().for_each(|run| missing.absent.set(*run));
        absent.iter().chain(&guarded).for_each(|run| missing.loose.set(*run));
        let total_blocks = missing.absent.len();
        let plan = if kind == Kind::Scratch { VecDeque::new() } else { absent.into_iter().flat_map(pieces).collect() };
        let (asked, requests) = mpsc::channel();
        let filler = Filler { missing: missing.clone(), image, source, kind, plan, prepared: 0, filled: RoaringBitmap::new() };
        let thread = std::thread::Builder::new().name("tern-origin".into()).spawn(move || filler.serve(&requests))?;
        Ok(Self { point, kind, missing, total_blocks, wanted: Some(asked), thread: Some(thread) })
    }

    /// Whether the request finds everything there that it reads or changes.
    pub fn has(&self, request: Request) -> bool {
        self.missing.has(request)
    }

    /// Whether a plan is carried out, and nobody needs this any more.
    pub fn is_finished(&self) -> bool {
        self.missing.is_finished.load(SeqCst)
    }

    /// Whether some of a plan is still to be done.
    pub fn is_under_way(&self) -> bool {
        !self.is_finished() && (self.kind == Kind::Lasting || !self.missing.absent.is_empty())
    }

    /// Blocks that are not there for good yet, and of how many.
    pub fn left(&self) -> (u64, u64) {
        let left = if self.kind == Kind::Guarded { &self.missing.absent } else { &self.missing.loose };
        (left.len(), self.total_blocks)
    }

    /// Why the plan does not go on.
    pub fn failure(&self) -> Option<String> {
        self.missing.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first block at or after `from` that is to be filled.
    pub(super) fn next_absent(&self, from: BlockNumber) -> Option<BlockNumber> {
        self.missing.absent.next(from)
    }

    /// Fetches what the request needs, then calls `filled`.
    pub fn fetch(&self, request: Request, filled: Filled) {
        let sent = match &self.wanted {
            Some(wanted) => wanted.send((request, filled)).map_err(|mpsc::SendError((_, filled))| filled),
            None => Err(filled),
        };
        if let Err(filled) = sent {
            filled(Err(io::Error::other("the thread that fetches content has ended")));
        }
    }

    /// The same, and waits.
    pub fn fetch_now(&self, request: Request) -> io::Result<()> {
        if self.has(request) {
            return Ok(());
        }
        let (done, told) = mpsc::sync_channel(1);
        self.fetch(request, Box::new(move |filled| drop(done.send(filled))));
        told.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that fetches content has ended")))
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.wanted = None;
        let thread = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id());
        // One that panicked has said so.
        thread.into_iter().for_each(|thread| _ = thread.join());
    }
}

fn touched(request: Request) -> Option<Run> {
    let Request { op, offset, len_bytes } = request;
    if op.moves_data() || op.changes() { Run::covering(offset, len_bytes) } else { None }
}

fn pieces(run: Run) -> impl Iterator<Item = Run> {
    run.blocks().step_by(FETCH_BLOCKS as usize).map(move |start| Run { start, len: FETCH_BLOCKS.min(run.end() - start) })
}

/// What an image is that content comes into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It begins with zeroes, and ends with the daemon.
    Scratch,
    /// It holds other content, and stays.
    Lasting,
    /// The same, and whoever changes it is followed to the end.
    Guarded,
}

struct Filler<S> {
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
    fn serve(mut self, requests: &mpsc::Receiver<(Request, Filled)>) {
        let mut not_before = None;
        loop {
            let goes_on = match self.kind {
                Kind::Scratch => false,
                Kind::Lasting => !self.missing.is_finished.load(SeqCst),
                Kind::Guarded => !self.plan.is_empty() || !self.filled.is_empty(),
            };
            let is_due = goes_on && not_before.is_none_or(|at| Instant::now() >= at);
            let next = match (goes_on, is_due) {
                (_, true) => requests.try_recv().map_err(|error| error == TryRecvError::Disconnected),
                (true, false) => requests.recv_timeout(RETRY).map_err(|error| error == RecvTimeoutError::Disconnected),
                (false, false) => requests.recv().map_err(|_| true),
            };
            match next {
                Ok(first) => self.answer(std::iter::once(first).chain(requests.try_iter().take(MAX_BATCH)).collect()),
                Err(true) => return,
                Err(false) if is_due => {
                    let done = self.go_on().map_err(|error| self.image.note_error(error));
                    not_before = done.is_err().then(|| Instant::now() + RETRY);
                    self.missing.set_failure(done.err().map(|error| error.to_string()));
                }
                Err(false) => {}
            }
        }
    }

    /// Reads are answered before anything is recorded.
    fn answer(&mut self, batch: Vec<(Request, Filled)>) {
        let (mut to_record, mut waiting) = (RoaringBitmap::new(), Vec::new());
        for (request, filled) in batch {
            match self.fill(request).map_err(|error| self.image.note_error(error)) {
                Ok(()) if !self.missing.has(request) => {
                    let around = touched(request).map(|run| self.around(run));
                    to_record |= around.map_or_else(RoaringBitmap::new, |around| self.missing.loose.within(around));
                    waiting.push((request, filled));
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
        for (_, filled) in waiting {
            filled(match &recorded {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            });
        }
    }

    fn fill(&mut self, request: Request) -> io::Result<()> {
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
    fn go_on(&mut self) -> io::Result<()> {
        if self.prepared == 0 {
            self.prepare()?;
        }
        if let Some(run) = self.plan.front().copied() {
            self.prepared = self.prepared.saturating_sub(1);
            // What cannot be had does not keep the rest.
            self.plan.rotate_left(1);
            self.fetch(run)?;
            self.plan.pop_back();
            self.filled |= self.missing.loose.within(run);
        }
        if self.filled.len() >= RECORD_BLOCKS || self.plan.is_empty() {
            self.record(&self.filled.clone())?;
            self.filled.clear();
        }
        if self.kind == Kind::Lasting && self.plan.is_empty() && self.missing.is_recorded() {
            self.source.finish()?;
            self.missing.is_finished.store(true, SeqCst);
        }
        Ok(())
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

    fn fetch(&mut self, run: Run) -> io::Result<()> {
        for run in pieces(run).flat_map(|piece| runs(&self.missing.absent.within(piece)).collect::<Vec<_>>()).collect::<Vec<_>>() {
            self.source.fill(&self.image, run)?;
            clear(&self.missing.absent, run.blocks());
            if self.kind == Kind::Scratch {
                clear(&self.missing.loose, run.blocks());
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests;
