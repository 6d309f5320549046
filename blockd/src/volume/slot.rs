//! Where a volume's missing content comes from, if it misses any.

use super::{Origin, Volume};
use crate::request::{Op, Request};
use replicator::disk::BlockDevice;
use replicator_engine::block::{BlockNumber, Run};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

/// An origin, or none. Asked at each request: one load where there is none.
#[derive(Default)]
pub struct OriginSlot {
    is_set: AtomicBool,
    origin: Mutex<Option<Arc<Origin>>>,
}

impl OriginSlot {
    /// With an origin.
    pub fn of(origin: Origin) -> Self {
        let slot = Self::default();
        slot.set(origin);
        slot
    }

    /// The origin, unless everything has come.
    pub fn get(&self) -> Option<Arc<Origin>> {
        if !self.is_set.load(SeqCst) {
            return None;
        }
        let (origin, finished) = {
            let mut slot = self.origin.lock().unwrap_or_else(PoisonError::into_inner);
            let finished = slot.take_if(|origin| origin.is_finished());
            self.is_set.store(slot.is_some(), SeqCst);
            (slot.clone(), finished)
        };
        // Its thread ends: not under the lock.
        drop(finished);
        origin
    }

    /// Nothing is asked of an origin any more. Blocks until its thread has ended. No request may be under way.
    pub fn clear(&self) {
        let gone = self.origin.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.is_set.store(false, SeqCst);
        drop(gone);
    }

    /// Content is missing from now on. No request may be under way.
    pub fn set(&self, origin: Origin) {
        let mut slot = self.origin.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(Arc::new(origin));
        self.is_set.store(true, SeqCst);
    }
}

/// A volume's content as replication sees it: with what its image misses.
pub struct Content(pub Arc<Volume>);

impl Content {
    fn device(&self) -> &dyn BlockDevice {
        &self.0.image
    }
}

impl BlockDevice for Content {
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()> {
        if let Some(origin) = self.0.origin.get() {
            origin.fetch_now(Request { op: Op::Read, offset: run.offset(), len_bytes: run.len_bytes() })?;
        }
        self.device().read(run, content)
    }

    fn write(&self, _run: Run, _content: &[u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "replication only reads a volume that is served"))
    }

    fn zero(&self, _run: Run) -> io::Result<()> {
        self.write(Run { start: 0, len: 0 }, &[])
    }

    fn sync(&self) -> io::Result<()> {
        self.device().sync()
    }

    fn allocated(&self, from: BlockNumber) -> io::Result<Option<Run>> {
        // First: what is filled by now is found in the image.
        let absent = self.0.origin.get().and_then(|origin| origin.next_absent(from)).and_then(|start| Run::new(start, 1));
        let found = self.device().allocated(from)?;
        Ok(match (found, absent) {
            (Some(found), Some(absent)) if absent.start < found.start => Some(absent),
            (found, absent) => found.or(absent),
        })
    }

    fn size_bytes(&self) -> u64 {
        self.device().size_bytes()
    }

    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.device().grow(size_bytes)
    }
}
