//! What has to happen before a write may touch a volume's image.
//!
//! ```text
//!   admit ──► joins the open epoch, marks its blocks ──► Ready          (nearly always)
//!                          │
//!                          └─► Parked ──► activity log ──► old content kept ──► Ready
//! ```
//!
//! Parked writes go through one thread, the *lane*, which never waits for one write before it looked at the others: a write of the open
//! epoch waits for the one before to close, and that may hang on a write that is parked behind it.

mod activity_log;
mod behind;
mod held;
mod kept;
mod lease;
mod together;

pub use activity_log::{ActivityLog, EXTENT_BLOCKS, blocks as extent_blocks};
pub use behind::{AskBehind, Behind};
pub use held::{DRAIN_LIMIT, Held, Nudge, Owner, Release};
pub use kept::{KeptBlocks, KeptLimits};
pub use lease::{Lease, boot_ms};
pub use together::PreparedCut;

use crate::disk::{BlockDevice, Pages};
use replicator_engine::block::{BLOCK_BYTES, Run};
use replicator_engine::tracker::{Begun, Epoch, Tracker, Write};
use roaring::RoaringBitmap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// How often the lane looks whether an epoch has closed, while a write waits for that.
const CLOSING_POLL: Duration = Duration::from_micros(100);

/// Blocks whose content is kept with one read.
const KEPT_AT_ONCE: u32 = 64;

/// See the module's documentation.
pub struct Intake {
    tracker: Tracker,
    image: Arc<dyn BlockDevice>,
    log: ActivityLog,
    kept: KeptBlocks,
    behind: Behind,
    held: Held,
    /// Whether the volume has a standby: without one the activity log is not written.
    replicated: AtomicBool,
    /// Held while old content is kept and while an epoch is cut, so that both mean the same frozen epoch.
    cutting: Mutex<Cutting>,
    lane: OnceLock<mpsc::Sender<(Parked, Waiter)>>,
}

/// How far the epoch before the open one has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cutting {
    /// Writes of it may still be under way, or what changed in it is not written down yet: nothing of it may be overwritten.
    Closing,
    /// What changed in it is written down: a block may be overwritten once its content is kept.
    Frozen,
}

/// Answer to [`Intake::admit`].
#[derive(Debug)]
pub enum Intaken {
    /// The write may be submitted.
    Ready(Write),
    /// Something has to be done first: see [`Intake::resolve`].
    Parked(Parked),
}

/// A write that may not be submitted yet.
#[derive(Debug)]
pub struct Parked {
    write: Write,
    over_frozen: bool,
}

/// Is called, once, with the write when it may be submitted, or with the reason why it never may.
pub type Waiter = Box<dyn FnOnce(io::Result<Write>) + Send>;

impl Intake {
    /// An intake for the volume in `image`, whose next epoch is `first`.
    pub fn new(first: Epoch, image: Arc<dyn BlockDevice>, log: ActivityLog, limits: KeptLimits) -> Self {
        Self {
            tracker: Tracker::new(first),
            image,
            log,
            kept: KeptBlocks::new(limits),
            behind: Behind::default(),
            held: Held::default(),
            replicated: AtomicBool::new(false),
            cutting: Mutex::new(Cutting::Frozen),
            lane: OnceLock::new(),
        }
    }

    /// The tracker behind it.
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// The activity log behind it.
    pub fn log(&self) -> &ActivityLog {
        &self.log
    }

    /// The old content of frozen blocks.
    pub fn kept(&self) -> &KeptBlocks {
        &self.kept
    }

    /// What the standby does not have.
    pub fn behind(&self) -> &Behind {
        &self.behind
    }

    /// Requests that wait for the standby.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// From now on the activity log covers each write. What was written before is the caller's to mark.
    pub fn start_logging(&self) {
        self.replicated.store(true, SeqCst);
    }

    /// The volume has no standby any more.
    pub fn stop_logging(&self) {
        self.replicated.store(false, SeqCst);
        self.held.forget_promise();
        self.held.lease().lift();
    }

    /// Forgets what changed, and opens `first`: this site's copy is a recovery point that others know. No write may be under way and none
    /// begin.
    pub fn restart(&self, first: Epoch) -> io::Result<()> {
        let mut cutting = self.cutting.lock().expect("no panic under this lock");
        self.log.clear()?;
        self.kept.clear();
        *cutting = Cutting::Frozen;
        self.tracker.restart(first);
        Ok(())
    }

    /// Joins the open epoch.
    pub fn admit(&self, run: Run) -> Intaken {
        let logged = !self.replicated.load(SeqCst);
        match self.begin_write(run) {
            Begun::Clear(write) if logged || self.log.covers(run) => Intaken::Ready(write),
            Begun::Clear(write) => Intaken::Parked(Parked { write, over_frozen: false }),
            Begun::Frozen(write) => Intaken::Parked(Parked { write, over_frozen: true }),
        }
    }

    /// Does what a parked write needs on the lane's thread, then calls `waiter`.
    pub fn resolve(self: &Arc<Self>, parked: Parked, waiter: Waiter) {
        let lane = self.lane.get_or_init(|| {
            let (lane, parked) = mpsc::channel();
            let intake = Arc::downgrade(self);
            let serve = move || serve(&parked, || intake.upgrade());
            std::thread::Builder::new().name("tern-lane".into()).spawn(serve).expect("the system can start a thread");
            lane
        });
        if let Err(mpsc::SendError((parked, waiter))) = lane.send((parked, waiter)) {
            waiter(self.fail(parked, io::Error::other("the volume is being closed")));
        }
    }

    /// Closes the open epoch to new writes and returns it.
    pub fn cut(&self) -> Epoch {
        let mut cutting = self.cutting.lock().expect("no panic under this lock");
        self.kept.clear();
        *cutting = Cutting::Closing;
        self.tracker.cut()
    }

    /// What changed in the epoch that was cut last, once all its writes have finished. From then on its blocks may be overwritten.
    pub fn try_freeze(&self) -> Option<RoaringBitmap> {
        let mut cutting = self.cutting.lock().expect("no panic under this lock");
        if !self.tracker.is_closed() {
            return None;
        }
        *cutting = Cutting::Frozen;
        Some(self.tracker.frozen().snapshot())
    }

    /// The frozen epoch is given up, or one that is still closing; its blocks were marked again. Nothing waits for it from now on.
    pub fn thaw(&self) {
        let mut cutting = self.cutting.lock().expect("no panic under this lock");
        *cutting = Cutting::Frozen;
        self.tracker.thaw();
        self.kept.clear();
    }

    /// Makes the activity log cover the writes of all `parked`, durably.
    pub fn log_all<'a>(&self, parked: impl IntoIterator<Item = &'a Parked>) -> io::Result<()> {
        if self.replicated.load(SeqCst) { self.log.heat(parked.into_iter().map(|parked| parked.write.run())) } else { Ok(()) }
    }

    /// Keeps what a logged write would overwrite; gives the write back unless it still has to wait for an epoch to close.
    pub fn keep_frozen(&self, parked: Parked) -> Result<io::Result<Write>, Parked> {
        if !parked.over_frozen {
            return Ok(Ok(parked.write));
        }
        let cutting = self.cutting.lock().expect("no panic under this lock");
        // If the write's own epoch was cut meanwhile, the one before it has shipped.
        if self.tracker.open_epoch() != parked.write.epoch() {
            return Ok(Ok(parked.write));
        }
        if *cutting == Cutting::Closing {
            return Err(parked);
        }
        match self.keep_run(parked.write.run()) {
            Ok(()) => Ok(Ok(parked.write)),
            Err(error) => Ok(self.fail(parked, error)),
        }
    }

    fn keep_run(&self, run: Run) -> io::Result<()> {
        let frozen = self.tracker.frozen();
        let mut buffer = Pages::new(run.len.min(KEPT_AT_ONCE));
        let mut at = run.start;
        while let Some(start) = frozen.next(at).filter(|start| *start < run.end()) {
            let end = run.end().min(start + KEPT_AT_ONCE);
            let end = (start + 1..end).find(|block| !frozen.contains(*block)).unwrap_or(end);
            let piece = Run { start, len: end - start };
            let content = &mut buffer[..piece.len_bytes() as usize];
            self.image.read(piece, content)?;
            for (block, content) in piece.blocks().zip(content.chunks_exact(BLOCK_BYTES)) {
                self.kept.keep(block, content);
                // Whoever ships the block clears its bit after reading it: the one who finds it clear knows that the other has the content.
                frozen.clear(block);
            }
            at = end;
        }
        Ok(())
    }

    fn fail(&self, parked: Parked, error: io::Error) -> io::Result<Write> {
        self.tracker.finish_write(parked.write);
        Err(error)
    }
}

/// The lane: until every sender is gone.
fn serve(parked: &mpsc::Receiver<(Parked, Waiter)>, intake: impl Fn() -> Option<Arc<Intake>>) {
    let mut waiting: Vec<(Parked, Waiter)> = Vec::new();
    loop {
        let first =
            if waiting.is_empty() { parked.recv().map_err(|_| RecvTimeoutError::Disconnected) } else { parked.recv_timeout(CLOSING_POLL) };
        if matches!(first, Err(RecvTimeoutError::Disconnected)) {
            return;
        }
        let Some(intake) = intake() else { return };
        let fresh: Vec<_> = first.into_iter().chain(parked.try_iter()).collect();
        if let Err(error) = intake.log_all(fresh.iter().map(|(parked, _)| parked)) {
            tracing::error!(%error, "activity log: writes fail because they could not be logged");
            for (parked, waiter) in fresh {
                waiter(intake.fail(parked, io::Error::new(error.kind(), "the activity log could not be written")));
            }
        } else {
            waiting.extend(fresh);
        }
        for (parked, waiter) in std::mem::take(&mut waiting) {
            match intake.keep_frozen(parked) {
                Ok(answer) => waiter(answer),
                Err(parked) => waiting.push((parked, waiter)),
            }
        }
    }
}
