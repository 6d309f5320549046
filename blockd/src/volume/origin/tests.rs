use super::*;
use crate::request::{Durability, Op, Space};
use replicator_engine::block::BlockNumber;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const BLOCK: u64 = 4096;

struct Letters(Arc<Mutex<Vec<Run>>>);

impl Source for Letters {
    fn fill(&mut self, image: &Image, run: Run) -> Result<(), Unfilled> {
        self.0.lock().unwrap().push(run);
        Ok(image.write_at(&vec![b'a'; run.len_bytes() as usize], run.offset())?)
    }
}

fn fetch(origin: &Origin, op: Op, offset: u64, len_bytes: u64) {
    let request = Request { op, offset, len_bytes };
    let (done, told) = mpsc::channel();
    origin.fetch(request, Box::new(move |filled| done.send(filled).unwrap()));
    told.recv().unwrap().unwrap();
    assert!(origin.has(request));
}

fn soon(holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
}

#[test]
fn content_comes_once_and_what_is_zeroed_as_a_whole_not_at_all() {
    let image = Image::scratch(&std::env::temp_dir(), 64 * BLOCK).unwrap();
    let fetched = Arc::new(Mutex::new(Vec::new()));
    let origin = Origin::start(image.clone(), 1, Letters(fetched.clone()), Wanted::All).unwrap();
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

/// What was done, in order.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Fill(Run),
    Record(Vec<BlockNumber>),
    Finish,
}

/// Carries out a plan while it has leave to fill so many runs; then it fails.
struct Steps {
    done: Done,
    begun: mpsc::Sender<Run>,
    leave: mpsc::Receiver<()>,
    bad: Option<BlockNumber>,
}

impl Source for Steps {
    fn fill(&mut self, image: &Image, run: Run) -> Result<(), Unfilled> {
        if self.bad.is_some_and(|bad| run.blocks().contains(&bad)) {
            return Err(Unfilled::Lost(io::Error::new(io::ErrorKind::InvalidData, "a checksum is wrong")));
        }
        // The test may look no more.
        let _ = self.begun.send(run);
        self.leave.recv().map_err(|_| io::Error::other("no leave"))?;
        self.done.lock().unwrap().push(Step::Fill(run));
        Ok(image.write_at(&vec![b'a'; run.len_bytes() as usize], run.offset())?)
    }

    fn record(&mut self, _: &Image, filled: &RoaringBitmap) -> io::Result<()> {
        self.done.lock().unwrap().push(Step::Record(filled.iter().collect()));
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.done.lock().unwrap().push(Step::Finish);
        Ok(())
    }
}

type Done = Arc<Mutex<Vec<Step>>>;

fn steps(bad: Option<BlockNumber>) -> (Steps, mpsc::Sender<()>, mpsc::Receiver<Run>, Done) {
    let (done, (give, leave), (begun, begins)) = (Done::default(), mpsc::channel(), mpsc::channel());
    (Steps { done: done.clone(), begun, leave, bad }, give, begins, done)
}

#[test]
fn what_is_planned_is_read_once_filled_and_changed_once_recorded_and_ends() {
    let image = Image::scratch(&std::env::temp_dir(), 64 * BLOCK).unwrap();
    let (source, give, begins, done) = steps(None);
    let run = |start, len| Run { start, len };
    let origin = Origin::start(image, 7, source, Wanted::Plan(vec![run(20, 2), run(40, 3), run(2, 4)])).unwrap();
    assert_eq!(origin.left(), (9, 9));
    let request = |op, block: u64| Request { op, offset: block * BLOCK, len_bytes: BLOCK };
    // The thread waits for leave to fill the first run of its plan: whoever asks now comes next.
    assert_eq!(begins.recv().unwrap(), run(20, 2));
    let ask = |request: Request| {
        let (tell, told) = mpsc::channel();
        origin.fetch(request, Box::new(move |filled| tell.send(filled).unwrap()));
        told
    };
    let (read, write) = (ask(request(Op::Read, 3)), ask(request(Op::Write(Durability::Cached), 41)));
    assert!(origin.has(request(Op::Read, 0)) && !origin.has(request(Op::Read, 3)));
    (0..2).for_each(|_| give.send(()).unwrap());
    read.recv().unwrap().unwrap();
    // What is filled is recorded later: the thread waits for leave to fill what the write needs.
    assert!(origin.has(request(Op::Read, 3)) && !origin.has(request(Op::Write(Durability::Cached), 3)));
    assert!(!origin.is_finished());
    give.send(()).unwrap();
    write.recv().unwrap().unwrap();
    assert!(origin.has(request(Op::Write(Durability::Cached), 41)));
    soon(|| origin.is_finished());
    let expected = [
        Step::Fill(run(20, 2)),
        Step::Fill(run(2, 4)),
        Step::Fill(run(40, 3)),
        Step::Record(vec![40, 41, 42]),
        Step::Record(vec![2, 3, 4, 5, 20, 21]),
        Step::Finish,
    ];
    assert_eq!(*done.lock().unwrap(), expected);
    assert_eq!(origin.left(), (0, 9));
}

#[test]
fn what_cannot_be_had_fails_who_asks_for_it_and_nobody_else_and_is_told() {
    let image = Image::scratch(&std::env::temp_dir(), 64 * BLOCK).unwrap();
    let (source, give, ..) = steps(Some(20));
    (0..10).for_each(|_| give.send(()).unwrap());
    let origin = Origin::start(image, 7, source, Wanted::Plan(vec![Run { start: 20, len: 1 }, Run { start: 22, len: 1 }])).unwrap();
    let request = |op, block: u64| Request { op, offset: block * BLOCK, len_bytes: BLOCK };
    assert!(origin.fetch_now(request(Op::Read, 20)).is_err());
    origin.fetch_now(request(Op::Read, 22)).unwrap();
    fetch(&origin, Op::Write(Durability::Cached), 22 * BLOCK, BLOCK);
    // Clients come before the plan.
    soon(|| origin.trouble().why_lost.contains("checksum"));
    assert!(!origin.is_finished() && origin.trouble().failure.is_none());
    assert_eq!((origin.left(), origin.trouble().lost), ((1, 2), RoaringBitmap::from_iter([20])));
}

#[test]
fn what_cannot_be_had_is_found_block_by_block_and_reads_as_zeroes_once_it_is_given_up() {
    let image = Image::scratch(&std::env::temp_dir(), 64 * BLOCK).unwrap();
    image.write_at(&[b'n'; 64 * BLOCK as usize], 0).unwrap();
    let (source, give, _, done) = steps(Some(21));
    (0..20).for_each(|_| give.send(()).unwrap());
    let plan = vec![Run { start: 18, len: 7 }, Run { start: 40, len: 1 }];
    let origin = Origin::start(image.clone(), 7, source, Wanted::Plan(plan)).unwrap();
    soon(|| origin.left() == (1, 8));
    let lost = RoaringBitmap::from_iter([21]);
    assert_eq!((origin.trouble().lost, origin.left_blocks()), (lost.clone(), lost.clone()));
    assert!(origin.fetch_now(Request { op: Op::Read, offset: 21 * BLOCK, len_bytes: BLOCK }).is_err());
    assert_eq!(origin.give_up(RoaringBitmap::from_iter(18..30)).unwrap(), lost);
    soon(|| origin.is_finished());
    assert_eq!(origin.give_up(lost).unwrap(), RoaringBitmap::new());
    let mut content = vec![0; 64 * BLOCK as usize];
    image.read_at(&mut content, 0).unwrap();
    let firsts: Vec<u8> = content.chunks_exact(BLOCK as usize).map(|block| block[0]).collect();
    assert_eq!(firsts[17..26], *b"naaa\0aaan");
    assert_eq!(done.lock().unwrap().last(), Some(&Step::Finish));
}
