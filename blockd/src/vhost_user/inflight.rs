//! What has been taken from the queues and not been given back, in memory that outlives this process.
//!
//! The front end keeps it and hands it to the next daemon. For each queue, 64 byte aligned, little-endian on every host that vhost-user
//! runs on (vhost-user specification, "Inflight I/O tracking", split virtqueues):
//!
//! ```text
//!   0  features (8)  │ version (2) │ descriptors (2) │ last batch head (2) │ used index (2)
//!   16 for each descriptor:  │ in flight (1) │ – (5) │ next (2) │ counter (8) │
//! ```
//!
//! The features are zero by that specification, and nobody looks at them. In those of the first queue, the highest bit says that the guest
//! has chosen to have no cache: QEMU tells a daemon once, and not the one after it.
//!
//! A head is marked when it is taken, in the order of the ring, and before anything is done about it. Heads that are given back form a list
//! from `last batch head` along `next`; then the used ring's index moves, then the marks go, then `used index` follows. Whoever finds the two
//! indices apart knows that the marks of as many heads from the front of the list are stale: those were given back.
//!
//! The memory is as trustworthy as the front end: whatever stands in it, [`QueueLog::recover`] ends and yields heads of the queue only.

use super::config_space::CacheMode;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

/// What queues' parts begin at a multiple of.
const ALIGN_BYTES: u64 = 64;
const HEADER_BYTES: u64 = 16;
const ENTRY_BYTES: u64 = 16;
const VERSION: u16 = 1;

const FEATURES_AT: usize = 0;
const WRITE_THROUGH: u64 = 1 << 63;
const VERSION_AT: usize = 8;
const DESCRIPTORS_AT: usize = 10;
const LAST_BATCH_HEAD_AT: usize = 12;
const USED_INDEX_AT: usize = 14;
/// Within an entry.
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// The memory of all queues.
#[derive(Clone)]
pub(super) struct Inflight {
    mapping: Arc<MmapRegion>,
    queues: u16,
    queue_size: u16,
}

/// The part of one queue.
pub(super) struct QueueLog {
    inflight: Inflight,
    start: usize,
    counter: u64,
}

impl Inflight {
    /// Bytes that so many queues of that size need.
    pub(super) fn size_bytes(queues: u16, queue_size: u16) -> u64 {
        u64::from(queues) * queue_bytes(queue_size)
    }

    /// New memory, all zeroes, that nobody can cut off; and its file, for the front end.
    pub(super) fn create(queues: u16, queue_size: u16) -> io::Result<(Self, File)> {
        let file = File::from(memfd_create("tern-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        ftruncate(&file, Self::size_bytes(queues, queue_size))?;
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let inflight = Self::open(file.try_clone()?, 0, queues, queue_size)?;
        Ok((inflight, file))
    }

    /// Memory that the front end has kept.
    pub(super) fn open(file: File, offset: u64, queues: u16, queue_size: u16) -> io::Result<Self> {
        let len_bytes = Self::size_bytes(queues, queue_size);
        let end = offset.checked_add(len_bytes).ok_or(io::ErrorKind::InvalidInput)?;
        if u64::try_from(fstat(&file)?.st_size).is_ok_and(|size| size < end) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset), len_bytes as usize).map_err(io::Error::other)?;
        Ok(Self { mapping: Arc::new(mapping), queues, queue_size })
    }

    /// Writes down how the guest wants to have writes cached.
    pub(super) fn note_cache(&self, mode: CacheMode) {
        let features = if mode == CacheMode::WriteThrough { WRITE_THROUGH } else { 0 };
        let stored = self.mapping.as_volatile_slice().store(features, FEATURES_AT, Release);
        debug_assert!(stored.is_ok(), "there is a first queue");
    }

    /// What was written down.
    pub(super) fn noted_cache(&self) -> CacheMode {
        let features: u64 = self.mapping.as_volatile_slice().load(FEATURES_AT, Acquire).unwrap_or_default();
        if features & WRITE_THROUGH == 0 { CacheMode::WriteBack } else { CacheMode::WriteThrough }
    }

    /// The part of queue `number`, which has `size` descriptors; `None` if it has no part, an error if that is too small.
    pub(super) fn queue(&self, number: usize, size: u16) -> io::Result<Option<QueueLog>> {
        if number >= usize::from(self.queues) {
            return Ok(None);
        }
        if size > self.queue_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = number * queue_bytes(self.queue_size) as usize;
        Ok(Some(QueueLog { inflight: self.clone(), start, counter: 0 }))
    }
}

fn queue_bytes(queue_size: u16) -> u64 {
    (HEADER_BYTES + ENTRY_BYTES * u64::from(queue_size)).next_multiple_of(ALIGN_BYTES)
}

impl QueueLog {
    /// Takes over what another process has left of a queue of `size` descriptors whose used ring stands at `used_index`: the heads that it
    /// took and did not give back, in the order in which it took them. `None`: nobody has used it yet.
    pub(super) fn recover(&mut self, size: u16, used_index: u16) -> Option<Vec<u16>> {
        let is_used = self.load::<u16>(VERSION_AT) != 0;
        if is_used {
            self.forget_given_back(size, used_index);
        }
        self.store(USED_INDEX_AT, used_index);
        self.store(DESCRIPTORS_AT, size);
        self.store(VERSION_AT, VERSION);
        is_used.then(|| self.taken_by_another(size))
    }

    fn taken_by_another(&mut self, size: u16) -> Vec<u16> {
        let marked = (0..size).filter(|head| self.load::<u8>(entry(*head)) == 1);
        let mut taken: Vec<(u64, u16)> = marked.map(|head| (self.load(entry(head) + COUNTER_AT), head)).collect();
        taken.sort_unstable();
        self.counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        taken.into_iter().map(|(_, head)| head).collect()
    }

    fn forget_given_back(&self, size: u16, used_index: u16) {
        let batch = used_index.wrapping_sub(self.load(USED_INDEX_AT)).min(size);
        let mut head: u16 = self.load(LAST_BATCH_HEAD_AT);
        for _ in 0..batch {
            if head >= size {
                return;
            }
            self.store(entry(head), 0_u8);
            head = self.load(entry(head) + NEXT_AT);
        }
    }

    /// A head was taken.
    pub(super) fn taken(&mut self, head: u16) {
        self.store(entry(head) + COUNTER_AT, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.store(entry(head), 1_u8);
    }

    /// A head that was just taken goes back to where it came from.
    pub(super) fn put_back(&mut self, head: u16) {
        self.store(entry(head), 0_u8);
    }

    /// A head stands in the used ring, whose index has yet to move.
    pub(super) fn given_back(&mut self, head: u16) {
        self.store(entry(head) + NEXT_AT, self.load::<u16>(LAST_BATCH_HEAD_AT));
        self.store(LAST_BATCH_HEAD_AT, head);
    }

    /// The used ring's index has moved past all of `batch`.
    pub(super) fn published(&mut self, batch: &[u16], used_index: u16) {
        batch.iter().for_each(|head| self.store(entry(*head), 0_u8));
        self.store(USED_INDEX_AT, used_index);
    }

    fn load<T: AtomicAccess + Default>(&self, at: usize) -> T {
        let loaded = self.inflight.mapping.as_volatile_slice().load(self.start + at, Acquire);
        debug_assert!(loaded.is_ok(), "a queue's part is within the memory");
        loaded.unwrap_or_default()
    }

    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        let stored = self.inflight.mapping.as_volatile_slice().store(value, self.start + at, Release);
        debug_assert!(stored.is_ok(), "a queue's part is within the memory");
    }
}

/// Where a head's entry begins, in the queue's part.
fn entry(head: u16) -> usize {
    (HEADER_BYTES + ENTRY_BYTES * u64::from(head)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u16 = 8;

    fn log(inflight: &Inflight) -> QueueLog {
        inflight.queue(1, SIZE).unwrap().unwrap()
    }

    fn inflight() -> Inflight {
        Inflight::create(2, SIZE).unwrap().0
    }

    #[test]
    fn what_was_taken_and_not_given_back_is_found_in_the_order_of_taking() {
        let inflight = inflight();
        let mut first = log(&inflight);
        assert_eq!(first.recover(SIZE, 0), None);
        [5, 2, 7, 0].into_iter().for_each(|head| first.taken(head));
        first.given_back(2);
        first.published(&[2], 1);
        assert_eq!(log(&inflight).recover(SIZE, 1).unwrap(), [5, 7, 0]);
        // Those that come later come after them.
        let mut second = log(&inflight);
        second.recover(SIZE, 1);
        second.taken(1);
        assert_eq!(log(&inflight).recover(SIZE, 1).unwrap(), [5, 7, 0, 1]);
    }

    #[test]
    fn what_was_given_back_just_before_the_end_is_not_done_again() {
        let inflight = inflight();
        let mut first = log(&inflight);
        first.recover(SIZE, 65_535);
        (0..6).for_each(|head| first.taken(head));
        first.given_back(3);
        first.published(&[3], 0);
        // The index moved past two more, and then it died, with both marks left.
        [1, 4].into_iter().for_each(|head| first.given_back(head));
        assert_eq!(log(&inflight).recover(SIZE, 2).unwrap(), [0, 2, 5]);
        assert_eq!(log(&inflight).recover(SIZE, 2).unwrap(), [0, 2, 5], "it is found again as it is");
    }

    #[test]
    fn what_stands_in_the_used_ring_is_not_given_back_before_its_index_moves() {
        let inflight = inflight();
        let mut first = log(&inflight);
        first.recover(SIZE, 0);
        [6, 3].into_iter().for_each(|head| first.taken(head));
        first.given_back(6);
        assert_eq!(log(&inflight).recover(SIZE, 0).unwrap(), [6, 3]);
    }

    #[test]
    fn whatever_the_memory_holds_recovery_ends_with_heads_of_the_queue() {
        let inflight = inflight();
        let bytes: Vec<u8> = (0..inflight.mapping.len()).map(|at| [1, 0, 0xff, 7][at * 7 / 3 % 4]).collect();
        inflight.mapping.as_volatile_slice().copy_from(&bytes);
        assert!(log(&inflight).recover(SIZE, 40_000).unwrap().iter().all(|head| *head < SIZE));
    }

    #[test]
    fn memory_that_is_shorter_than_it_says_is_refused() {
        let (_, file) = Inflight::create(2, SIZE).unwrap();
        assert!(Inflight::open(file.try_clone().unwrap(), 0, 2, SIZE).is_ok());
        assert!(Inflight::open(file.try_clone().unwrap(), 0, 64, 1024).is_err());
        assert!(Inflight::open(file.try_clone().unwrap(), 4096, 2, SIZE).is_err());
        assert!(Inflight::open(file, u64::MAX, 2, SIZE).is_err());
        assert!(inflight().queue(0, SIZE * 2).is_err(), "a queue that is larger than its part");
        assert!(inflight().queue(2, SIZE).unwrap().is_none());
    }
}
