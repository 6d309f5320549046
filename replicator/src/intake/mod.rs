//! What has to happen before a write may touch a volume's image.
//!
//! ```text
//!   admit ──► joins the open epoch, marks its blocks ──► Ready          (nearly always)
//!                          │
//!                          └─► Parked ──► activity log ──► old content kept ──► Ready
//! ```
//!
//! Parked writes go through one thread, the *lane*, which never waits for one write before it looked at the others: a write of the open
//! epoch waits for the one before to close, and that may hang on a write that is parked behind it. Each of the volume's standbys has its own
//! frozen blocks, and what is kept of them: a write is ready once it is in nobody's way. It waits only for cuts that were made before it
//! began, so no two wait for each other.

mod activity_log;
mod behind;
mod held;
mod kept;
mod last_cut;
mod lease;
mod together;

pub use activity_log::{ActivityLog, EXTENT_BLOCKS, blocks as extent_blocks};
pub use behind::{AskBehind, Behind};
pub use held::{DRAIN_LIMIT, Held, Nudge, Owner, Release};
pub use kept::{KeptBlocks, KeptLimits};
pub use last_cut::LastCut;
pub use lease::{Lease, boot_ms};
pub use together::PreparedCut;

use crate::disk::{BlockDevice, Pages};
use replicator_engine::block::{BLOCK_BYTES, Run};
use replicator_engine::tracker::{Begun, Epoch, LaneId, MAX_LANES, Tracker, Write};
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
    limits: KeptLimits,
    sides: [OnceLock<Side>; MAX_LANES],
    behind: Behind,
    held: Held,
    /// Whether the volume has a standby: without one the activity log is not written.
    replicated: AtomicBool,
    /// Held while old content is kept and while an epoch is cut, so that both mean the same frozen epoch.
    cutting: Mutex<[Cutting; MAX_LANES]>,
    reserved: last_cut::Reserved,
    lane: OnceLock<mpsc::Sender<(Parked, Waiter)>>,
}

/// What one of the volume's standbys needs of it.
struct Side {
    tracker: Tracker,
    kept: KeptBlocks,
}

/// How far the epoch that a standby's lane was cut at last has come.
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
            limits,
            sides: Default::default(),
            behind: Behind::default(),
            held: Held::default(),
            replicated: AtomicBool::new(false),
            cutting: Mutex::new([Cutting::Frozen; MAX_LANES]),
            reserved: Default::default(),
            lane: OnceLock::new(),
        }
    }

    /// The tracker behind it, as the first standby sees it.
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// The tracker behind it, as this standby sees it.
    pub fn tracker_of(&self, lane: LaneId) -> &Tracker {
        &self.side(lane).tracker
    }

    fn side(&self, lane: LaneId) -> &Side {
        let make = || Side { tracker: self.tracker.lane(lane), kept: KeptBlocks::new(self.limits.clone()) };
        self.sides[lane.index()].get_or_init(make)
    }

    fn sides(&self) -> impl Iterator<Item = (LaneId, &Side)> {
        LaneId::all().filter_map(|lane| Some((lane, self.sides[lane.index()].get()?)))
    }

    /// The activity log behind it.
    pub fn log(&self) -> &ActivityLog {
        &self.log
    }

    /// The old content of the blocks that are frozen for a standby.
    pub fn kept(&self, lane: LaneId) -> &KeptBlocks {
        &self.side(lane).kept
    }

    /// Bytes of old content kept now, in memory and in spill files.
    pub fn kept_bytes(&self) -> (u64, u64) {
        let used = self.sides().map(|(_, side)| side.kept.used_bytes());
        used.fold((0, 0), |(memory, spill), (more_memory, more_spill)| (memory + more_memory, spill + more_spill))
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
        self.sides().for_each(|(_, side)| side.kept.clear());
        *cutting = [Cutting::Frozen; MAX_LANES];
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

    /// From now on each write is marked for this standby, too. The epoch after which that is so, once it has closed; `None` while another one
    /// is closing.
    pub fn begin_lane(&self, lane: LaneId) -> Option<Epoch> {
        let mut cutting = self.cutting.lock().expect("no panic under this lock");
        let side = self.side(lane);
        side.tracker.is_closed().then(|| {
            side.kept.clear();
            cutting[lane.index()] = Cutting::Frozen;
            side.tracker.begin_lane()
        })
    }

    /// The volume does not have this standby any more.
    pub fn end_lane(&self, lane: LaneId) {
        self.thaw(lane);
        let _cutting = self.cutting.lock().expect("no panic under this lock");
        self.side(lane).tracker.end_lane();
        self.held.forget(lane);
    }

    /// The volume's standbys have the first `count` lanes, and no others.
    pub fn end_lanes_after(&self, count: usize) {
        LaneId::all().skip(count).filter(|lane| self.sides[lane.index()].get().is_some()).for_each(|lane| self.end_lane(lane));
    }

    /// Closes the open epoch to new writes and returns it: it ends what this standby is sent next. `None` while another one is closing,
    /// or [no other one is to be cut](LastCut).
    pub fn cut(&self, lane: LaneId) -> Option<Epoch> {
        let mut cutting = self.cutting.lock().expect("no panic under this lock");
        let Side { tracker, kept } = self.side(lane);
        self.may_cut(lane).then(|| {
            kept.clear();
            cutting[lane.index()] = Cutting::Closing;
            tracker.cut()
        })
    }

    /// What changed in the epoch that was cut last for this standby, and not in one before, once all its writes have finished. From then on
    /// its blocks may be overwritten.
    pub fn try_freeze(&self, lane: LaneId) -> Option<RoaringBitmap> {
        let mut cutting = self.cutting.lock().expect("no panic under this lock");
        let tracker = &self.side(lane).tracker;
        if !tracker.has_closed(tracker.first_open().saturating_sub(1)) {
            return None;
        }
        cutting[lane.index()] = Cutting::Frozen;
        Some(tracker.freeze())
    }

    /// The standby's frozen epoch is given up, or one that is still closing; its blocks were marked again. Nothing waits for it from now on.
    pub fn thaw(&self, lane: LaneId) {
        let mut cutting = self.cutting.lock().expect("no panic under this lock");
        let Side { tracker, kept } = self.side(lane);
        cutting[lane.index()] = Cutting::Frozen;
        tracker.thaw();
        kept.clear();
    }

    /// The same for every standby.
    pub fn thaw_all(&self) {
        LaneId::all().filter(|lane| self.sides[lane.index()].get().is_some()).for_each(|lane| self.thaw(lane));
    }

    /// Lets extents cool whose content every standby has. The image has been synced, and this standby has acknowledged nothing since; its sender
    /// has `in_doubt`.
    pub fn cool(&self, lane: LaneId, in_doubt: &RoaringBitmap) -> io::Result<()> {
        let tracker = self.tracker_of(lane);
        self.log.cool(&self.log.hot(), || tracker.settle_away(in_doubt), |extent| tracker.is_clean(extent_blocks(extent)))
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
        // For a standby that was cut again meanwhile, what was frozen before has shipped.
        let in_its_way = |side: &Side| side.tracker.frozen().intersects(parked.write.run()) && !side.tracker.has_turned(&parked.write);
        if self.sides().any(|(lane, side)| cutting[lane.index()] == Cutting::Closing && in_its_way(side)) {
            return Err(parked);
        }
        for (_, side) in self.sides().filter(|(_, side)| in_its_way(side)) {
            if let Err(error) = self.keep_run(side, parked.write.run()) {
                return Ok(self.fail(parked, error));
            }
        }
        Ok(Ok(parked.write))
    }

    fn keep_run(&self, side: &Side, run: Run) -> io::Result<()> {
        let (frozen, sharers) = (side.tracker.frozen(), self.tracker.lanes().count().max(1) as u64);
        let mut buffer = Pages::new(run.len.min(KEPT_AT_ONCE));
        let mut at = run.start;
        while let Some(start) = frozen.next(at).filter(|start| *start < run.end()) {
            let end = run.end().min(start + KEPT_AT_ONCE);
            let end = (start + 1..end).find(|block| !frozen.contains(*block)).unwrap_or(end);
            let piece = Run { start, len: end - start };
            let content = &mut buffer[..piece.len_bytes() as usize];
            self.image.read(piece, content)?;
            for (block, content) in piece.blocks().zip(content.chunks_exact(BLOCK_BYTES)) {
                side.kept.keep(block, content, sharers);
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
