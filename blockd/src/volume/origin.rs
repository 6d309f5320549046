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

mod filler;

use crate::request::Request;
use crate::store::Image;
use filler::Filler;
use replicator_engine::block::{BlockNumber, Run};
use replicator_engine::tracker::{DirtyMap, Epoch};
use roaring::RoaringBitmap;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Most blocks that are fetched at once.
const FETCH_BLOCKS: u32 = 256;

/// Where the content comes from.
pub trait Source: Send + 'static {
    /// These blocks of a plan are filled next.
    fn prepare(&mut self, _image: &Image, _blocks: &RoaringBitmap) -> io::Result<()> {
        Ok(())
    }

    /// Puts the content of `run` into the image. Blocks.
    fn fill(&mut self, image: &Image, run: Run) -> Result<(), Unfilled>;

    /// Has it outlive a crash that these blocks were filled: clients may change them from now on.
    fn record(&mut self, _image: &Image, _filled: &RoaringBitmap) -> io::Result<()> {
        Ok(())
    }

    /// Everything of the plan is filled and recorded.
    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why content did not come into an image.
#[derive(Debug, thiserror::Error)]
pub enum Unfilled {
    /// It cannot be had.
    #[error(transparent)]
    Lost(io::Error),
    /// The image does not take it, or something else is missing.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

impl From<Unfilled> for io::Error {
    fn from(unfilled: Unfilled) -> Self {
        match unfilled {
            Unfilled::Lost(error) | Unfilled::Disk(error) => error,
        }
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
    wanted: Option<mpsc::Sender<Ask>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is asked for.
enum Ask {
    Fetch(Request, Filled),
    /// Zeroes in place of what is lost of these blocks; says of which.
    GiveUp(RoaringBitmap, mpsc::SyncSender<io::Result<RoaringBitmap>>),
}

/// What is not there yet.
#[derive(Default)]
struct Missing {
    /// Blocks that are to be filled.
    absent: DirtyMap,
    /// Those, and blocks that are filled and not recorded.
    loose: DirtyMap,
    is_finished: AtomicBool,
    trouble: Mutex<Trouble>,
}

/// What keeps a plan from its end.
#[derive(Clone, Default)]
pub struct Trouble {
    /// Why it does not go on: it is tried again.
    pub failure: Option<String>,
    /// Blocks whose content cannot be had. They are tried again, too.
    pub lost: RoaringBitmap,
    /// Why.
    pub why_lost: String,
}

impl Missing {
    fn has(&self, request: Request) -> bool {
        let map = if request.op.changes() { &self.loose } else { &self.absent };
        touched(request).is_none_or(|run| !map.intersects(run))
    }

    fn is_recorded(&self) -> bool {
        self.loose.is_empty()
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
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
        let filler = Filler::new(missing.clone(), image, source, kind, plan);
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

    /// What keeps the plan from its end, as it is now.
    pub fn trouble(&self) -> Trouble {
        self.missing.trouble().clone()
    }

    /// Blocks that are not there for good yet.
    pub fn left_blocks(&self) -> RoaringBitmap {
        if self.kind == Kind::Guarded { self.missing.absent.snapshot() } else { self.missing.loose.snapshot() }
    }

    /// Has those of these blocks that are [lost](Trouble::lost) read as zeroes, for good: says which. What depends on their content is the caller's to
    /// tell before. Blocks.
    pub fn give_up(&self, blocks: RoaringBitmap) -> io::Result<RoaringBitmap> {
        let (reply, answer) = mpsc::sync_channel(1);
        let sent = self.wanted.as_ref().and_then(|wanted| wanted.send(Ask::GiveUp(blocks, reply)).ok());
        sent.and_then(|()| answer.recv().ok()).unwrap_or_else(|| Err(has_ended()))
    }

    /// The first block at or after `from` that is to be filled.
    pub(super) fn next_absent(&self, from: BlockNumber) -> Option<BlockNumber> {
        self.missing.absent.next(from)
    }

    /// Fetches what the request needs, then calls `filled`.
    pub fn fetch(&self, request: Request, filled: Filled) {
        let unsent = match &self.wanted {
            Some(wanted) => wanted.send(Ask::Fetch(request, filled)).err().map(|mpsc::SendError(ask)| ask),
            None => Some(Ask::Fetch(request, filled)),
        };
        if let Some(Ask::Fetch(_, filled)) = unsent {
            filled(Err(has_ended()));
        }
    }

    /// The same, and waits.
    pub fn fetch_now(&self, request: Request) -> io::Result<()> {
        if self.has(request) {
            return Ok(());
        }
        let (done, told) = mpsc::sync_channel(1);
        self.fetch(request, Box::new(move |filled| drop(done.send(filled))));
        told.recv().unwrap_or_else(|_| Err(has_ended()))
    }
}

fn has_ended() -> io::Error {
    io::Error::other("the thread that fetches content has ended")
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

#[cfg(test)]
mod tests;
