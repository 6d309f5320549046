//! Content that comes into an image when it is first asked for.
//!
//! ```text
//!   admit ──► all of it is there ──► (the request)
//!         └─► the origin's thread: source ──► image ──► there ──► (the request)
//! ```
//!
//! One thread fills, and nothing touches a block before it is there: content that is filled in never overwrites a client's.

use crate::request::{Op, Request};
use crate::store::Image;
use replicator_engine::block::{Run, runs};
use replicator_engine::tracker::DirtyMap;
use roaring::RoaringBitmap;
use std::io;
use std::sync::{Arc, mpsc};

/// Blocks that are fetched together, so that a client that reads on finds them there.
const AHEAD_BLOCKS: u32 = 16;
/// Most blocks that are fetched at once.
const FETCH_BLOCKS: usize = 256;

/// Where the content comes from.
pub trait Source: Send + 'static {
    /// Puts the content of `run` into the image, which reads as zeroes there. Blocks.
    fn fill(&mut self, image: &Image, run: Run) -> io::Result<()>;
}

/// Is called, once, when all of a request's blocks are there, or cannot be had.
pub type Filled = Box<dyn FnOnce(io::Result<()>) + Send>;

/// See the module's documentation. Dropped, it gives its source up.
pub struct Origin {
    absent: Arc<DirtyMap>,
    wanted: mpsc::Sender<(Request, Filled)>,
}

impl Origin {
    /// Nothing of `image` is there: all of it comes from `source`.
    pub fn start(image: Image, source: impl Source) -> io::Result<Self> {
        let absent = Arc::new(DirtyMap::default());
        Run::covering(0, image.size_bytes()).iter().for_each(|all| absent.set(*all));
        let (wanted, requests) = mpsc::channel();
        let filler = Filler { absent: absent.clone(), image, source };
        std::thread::Builder::new().name("tern-origin".into()).spawn(move || filler.serve(&requests))?;
        Ok(Self { absent, wanted })
    }

    /// Whether the request finds everything there that it reads or changes.
    pub fn has(&self, request: Request) -> bool {
        touched(request).is_none_or(|run| !self.absent.intersects(run))
    }

    /// Fetches what the request needs, then calls `filled`.
    pub fn fetch(&self, request: Request, filled: Filled) {
        if let Err(mpsc::SendError((_, filled))) = self.wanted.send((request, filled)) {
            filled(Err(io::Error::other("the thread that fetches content has ended")));
        }
    }
}

fn touched(request: Request) -> Option<Run> {
    let Request { op, offset, len_bytes } = request;
    if op.moves_data() || op.changes() { Run::covering(offset, len_bytes) } else { None }
}

struct Filler<S> {
    absent: Arc<DirtyMap>,
    image: Image,
    source: S,
}

impl<S: Source> Filler<S> {
    fn serve(mut self, requests: &mpsc::Receiver<(Request, Filled)>) {
        for (request, filled) in requests {
            filled(self.fill(request).map_err(|error| self.image.note_error(error)));
        }
    }

    fn fill(&mut self, request: Request) -> io::Result<()> {
        let Some(run) = touched(request) else { return Ok(()) };
        if matches!(request.op, Op::Discard | Op::WriteZeroes(..)) {
            self.skip_zeroed(request);
        }
        let mut absent = if self.absent.intersects(run) { self.absent.within(self.around(run)) } else { RoaringBitmap::new() };
        while !absent.is_empty() {
            let some: RoaringBitmap = absent.iter().take(FETCH_BLOCKS).collect();
            for run in runs(&some) {
                self.source.fill(&self.image, run)?;
                run.blocks().for_each(|block| _ = self.absent.clear(block));
            }
            absent -= some;
        }
        Ok(())
    }

    /// What is zeroed as a whole need not be fetched: it reads as zeroes already.
    fn skip_zeroed(&self, request: Request) {
        let touched = Run::covering(request.offset, request.len_bytes);
        let whole = |run: &Run| run.offset() >= request.offset && run.offset() + run.len_bytes() <= request.offset + request.len_bytes;
        let blocks = touched.into_iter().flat_map(|run| run.blocks());
        let zeroed = blocks.filter(|start| whole(&Run { start: *start, len: 1 }));
        zeroed.for_each(|block| _ = self.absent.clear(block));
    }

    fn around(&self, run: Run) -> Run {
        let start = run.start / AHEAD_BLOCKS * AHEAD_BLOCKS;
        let all = Run::covering(0, self.image.size_bytes()).map_or(run.end(), |all| all.end());
        let end = run.end().next_multiple_of(AHEAD_BLOCKS).min(all).max(run.end());
        Run { start, len: end - start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Durability, Space};
    use std::sync::Mutex;

    const BLOCK: u64 = 4096;

    struct Letters(Arc<Mutex<Vec<Run>>>);

    impl Source for Letters {
        fn fill(&mut self, image: &Image, run: Run) -> io::Result<()> {
            self.0.lock().unwrap().push(run);
            image.write_at(&vec![b'a'; run.len_bytes() as usize], run.offset())
        }
    }

    fn fetch(origin: &Origin, op: Op, offset: u64, len_bytes: u64) {
        let request = Request { op, offset, len_bytes };
        let (done, told) = mpsc::channel();
        origin.fetch(request, Box::new(move |filled| done.send(filled).unwrap()));
        told.recv().unwrap().unwrap();
        assert!(origin.has(request));
    }

    #[test]
    fn content_comes_once_and_what_is_zeroed_as_a_whole_not_at_all() {
        let image = Image::scratch(&std::env::temp_dir(), 64 * BLOCK).unwrap();
        let fetched = Arc::new(Mutex::new(Vec::new()));
        let origin = Origin::start(image.clone(), Letters(fetched.clone())).unwrap();
        assert!(!origin.has(Request { op: Op::Read, offset: 0, len_bytes: 512 }));
        assert!(origin.has(Request { op: Op::Flush, offset: 0, len_bytes: 0 }));

        fetch(&origin, Op::WriteZeroes(Space::MayFree, Durability::Cached), 2 * BLOCK - 512, 4 * BLOCK + 1024);
        fetch(&origin, Op::Read, 16 * BLOCK - 512, 1024);
        let run = |start, len| Run { start, len };
        assert_eq!(*fetched.lock().unwrap(), [run(0, 2), run(6, 10), run(16, 16)]);
        let mut content = vec![0; 8 * BLOCK as usize];
        image.read_at(&mut content, 0).unwrap();
        let firsts: Vec<u8> = content.chunks_exact(BLOCK as usize).map(|block| block[0]).collect();
        assert_eq!(firsts, *b"aa\0\0\0\0aa");
    }
}
