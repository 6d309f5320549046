//! The primary's half of one replica.
//!
//! ```text
//!   volume ──► intake (tracker, old content) ──┐
//!                                              ▼
//!   daemon ──► Replica ──inputs──► thread: Sender::poll ──► read, encode ──frames──► connection ──► QUIC
//!                 ▲                              │                                       │
//!                 └──────── status ◄─────────────┘ ◄───────────── answers ───────────────┘
//! ```
//!
//! One thread owns the sender and does what it asks for, disk reads included; [`connection`] keeps a stream to the standby and moves frames.
//! What must survive a restart is in [`memory`].

mod acknowledging;
pub mod connection;
pub mod group;
mod grouping;
pub mod memory;
pub mod read;
mod scheduling;
mod shell;
mod status;
mod told;
mod verify;

pub use acknowledging::PromiseStatus;
pub use status::PrimaryStatus;
pub use told::Told;
pub use verify::Verified;

use crate::catalogue::Catalogue;
use crate::codec::BasesMemory;
use crate::counters::Counters;
use crate::disk::BlockDevice;
use crate::intake::{Intake, LastCut};
use bytes::Bytes;
use memory::EpochNumbers;
use replicator_engine::acknowledgement::{Rules, Standing};
use replicator_engine::block::Run;
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::history::History;
use replicator_engine::schedule::Schedule;
use replicator_engine::sender::{Known, Settings};
use replicator_engine::tracker::{Epoch, LaneId};
use roaring::RoaringBitmap;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc as tokio_mpsc, oneshot, watch};

/// What the operator wants.
#[derive(Clone, Debug)]
pub struct Orders {
    /// When epochs close, how much to have under way.
    pub settings: Settings,
    /// When requests complete.
    pub rules: Rules,
    /// When cuts are asked for without anybody asking.
    pub schedule: Option<Schedule>,
}

/// What a replica begins with.
pub struct Setup {
    /// The volume's id.
    pub volume: Id,
    /// The lineage that goes into every message.
    pub lineage: Lineage,
    /// What the operator wants.
    pub orders: Orders,
    /// The volume's intake; its activity log must be written from before the call.
    pub intake: Arc<Intake>,
    /// Which of the volume's standbys it is; writes are marked for it from before the call.
    pub lane: LaneId,
    /// The volume's content.
    pub image: Arc<dyn BlockDevice>,
    /// Where things are remembered.
    pub catalogue: Arc<dyn Catalogue>,
    /// Epoch numbers that may be used, by all of the volume's replicas.
    pub epochs: Arc<Mutex<EpochNumbers>>,
    /// What the standby acknowledged; everything that changed since is marked in the tracker.
    pub known: Option<Known>,
    /// Where that is remembered.
    pub known_key: Vec<u8>,
    /// Where it is remembered which promise holds.
    pub promise_key: Vec<u8>,
    /// Where it is remembered when the newest recovery point was cut.
    pub point_key: Vec<u8>,
    /// What the witness is to know of it.
    pub told: Arc<Told>,
    /// What changed at this copy before it was promoted, and the standby may lack, if it was another one then.
    pub owed: History,
    /// Marked blocks that the standby may have already.
    pub compare_first: RoaringBitmap,
    /// The volume's totals.
    pub counters: Arc<Counters>,
    /// Memory for what was sent last of hot blocks.
    pub bases: Arc<BasesMemory>,
    /// The limit that is in force, in bits a second.
    pub limit: watch::Receiver<Option<u64>>,
    /// Told how long each epoch took from its cut to its commit.
    pub on_commit: Box<dyn Fn(Duration) + Send>,
    /// Told when the mode's promise stands otherwise than before, and in the end that nothing is asked of requests any more. While it is
    /// suspended, none is to be begun.
    pub on_standing: OnStanding,
}

/// One connection's number: inputs of an earlier one are ignored.
pub type Session = u64;

/// A frame on its way, and how much of it is payload.
pub struct Outgoing {
    /// The frame.
    pub frame: Bytes,
    /// What the sender counts.
    pub payload_bytes: u64,
}

/// Why the replica did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The connection broke, or there is none.
    #[error("the standby does not answer")]
    Disconnected,
    /// The replica is being stopped.
    #[error("replication is being stopped")]
    Stopped,
    /// The disk failed.
    #[error("the image: {0}")]
    Disk(#[from] io::Error),
}

/// Told how many blocks of how many are done.
pub type OnProgress = Box<dyn Fn(u64, u64) + Send>;

/// Told which epoch was just cut. It must not wait for anything.
pub type OnCut = Box<dyn Fn(Epoch) + Send>;

/// Told how the mode's promise stands. It must not wait for anything.
pub type OnStanding = Arc<dyn Fn(Standing) + Send + Sync>;

/// Whatever ends the thread, nobody waits for it any more.
struct ClosesHeld(Arc<Intake>, LaneId, OnStanding);

impl Drop for ClosesHeld {
    fn drop(&mut self) {
        self.0.held().close(self.1);
        (self.2)(Standing::Held);
    }
}

enum Input {
    Connected(Session, tokio_mpsc::UnboundedSender<Outgoing>),
    Disconnected(Session),
    /// The permit bounds how many wait.
    Frame(Session, Bytes, OwnedSemaphorePermit),
    Written(Session, u64, Duration),
    Snapshot(OnCut, oneshot::Sender<Result<Epoch, ReplicaError>>),
    Verify(OnProgress, Option<u64>, oneshot::Sender<Result<Verified, ReplicaError>>),
    /// Which blocks of the run may differ from the standby.
    Behind(Run, mpsc::SyncSender<RoaringBitmap>),
    Resized(u64),
    Orders(Orders),
    Seat(Option<group::Place>),
    /// Another member of the group is to be cut.
    CutWanted,
    /// Requests wait.
    Held,
    Stop,
}

/// What a stopped replica leaves.
pub struct Remains {
    /// Blocks that may differ from the standby.
    pub changed: RoaringBitmap,
    /// What the standby acknowledged.
    pub known: Option<Known>,
}

/// See the module's documentation. Dropped, it stops.
pub struct Replica {
    inbox: mpsc::Sender<Input>,
    intake: Arc<Intake>,
    lane: LaneId,
    status: watch::Receiver<PrimaryStatus>,
    sessions: AtomicU64,
    started: Instant,
    thread: Mutex<Option<JoinHandle<Remains>>>,
}

impl Replica {
    /// Starts the thread.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let (inbox, inputs) = mpsc::channel();
        let (publish, status) = watch::channel(PrimaryStatus::default());
        let (asked, intake, lane, on_standing) = (inbox.clone(), setup.intake.clone(), setup.lane, setup.on_standing.clone());
        let shell = shell::Shell::new(setup, publish)?;
        let (nudge, started) = (inbox.clone(), shell.started);
        intake.held().open(lane, shell.in_force(), Box::new(move || drop(nudge.send(Input::Held))));
        let closes = ClosesHeld(intake.clone(), lane, on_standing);
        let run = move || {
            let _closes = closes;
            shell.run(&inputs)
        };
        let thread = std::thread::Builder::new().name("tern-primary".into()).spawn(run)?;
        // Nobody waits for an answer from a thread that is gone: with its inbox the question is dropped.
        intake.behind().set(lane, Box::new(move |run, reply| drop(asked.send(Input::Behind(run, reply)))));
        let sessions = AtomicU64::new(1);
        Ok(Self { inbox, intake, lane, status, sessions, started, thread: Mutex::new(Some(thread)) })
    }

    /// How it goes; follows every change.
    pub fn status(&self) -> watch::Receiver<PrimaryStatus> {
        self.status.clone()
    }

    /// The time, by the clock of what it measures.
    pub fn now_ms(&self) -> u64 {
        shell::millis_since(self.started)
    }

    /// Cuts now; answers with the epoch once the standby has it durably, however long that takes. `on_cut` is told when it is cut, and again
    /// when that was given up and is taken anew.
    pub async fn snapshot(&self, on_cut: OnCut) -> Result<Epoch, ReplicaError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Snapshot(on_cut, reply));
        answer.await.unwrap_or(Err(ReplicaError::Stopped))
    }

    /// Until what this returns is dropped, no other standby of the volume is given an epoch that comes after this one's.
    pub fn be_last(&self) -> LastCut {
        LastCut::reserve(self.intake.clone(), self.lane)
    }

    /// Compares both sites, block by block, while both work. One with a rate, of bytes that are read here in a second, gives way to one without, and
    /// is [`ReplicaError::Stopped`] then.
    pub async fn verify(&self, progress: OnProgress, bytes_per_second: Option<u64>) -> Result<Verified, ReplicaError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Verify(progress, bytes_per_second, reply));
        answer.await.unwrap_or(Err(ReplicaError::Stopped))
    }

    /// The volume is cut with its group from now on; `None`: by itself.
    pub fn join(&self, group: Option<(&Arc<group::Cutter>, usize)>) {
        self.tell(Input::Seat(group.map(|(cutter, member)| (cutter.clone(), member, self.inbox.clone()))));
    }

    /// The volume grew.
    pub fn resized(&self, size_bytes: u64) {
        self.tell(Input::Resized(size_bytes));
    }

    /// The operator wants something else.
    pub fn set_orders(&self, orders: Orders) {
        self.tell(Input::Orders(orders));
    }

    /// Stops the thread and says what is not at the standby: exact if no client can write any more. Blocks. `None` if it was stopped
    /// before, or if the thread died.
    pub fn stop(&self) -> Option<Remains> {
        self.tell(Input::Stop);
        let thread = self.thread.lock().expect("no panic under this lock").take()?;
        thread.join().ok()
    }

    fn tell(&self, input: Input) {
        // The thread is gone only after a stop: whoever waits for an answer then sees its sender dropped.
        let _ = self.inbox.send(input);
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop();
    }
}
