//! The virtio driver, which knows nothing of our code.

use crate::sys::{Direction, Shared};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use virtio_driver::{VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

/// Descriptors of each queue.
const QUEUE_SIZE: u16 = 128;
/// Longest that a request may take.
const REQUEST_SECONDS: i64 = 20;

/// See the module's documentation.
pub struct Driver {
    pub queues: Vec<VirtioBlkQueue<'static, u32>>,
    /// Dropped after the queues, which lie in its memory.
    transport: Box<VirtioBlkTransport>,
    pub memory: Shared,
}

impl Driver {
    /// A client with so many queues and so much memory for data.
    pub fn connect(socket: &Path, queues: usize, memory_bytes: usize) -> Self {
        let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX | VirtioFeatureFlags::RING_INDIRECT_DESC;
        let features = features.bits() | VirtioBlkFeatureFlags::all().bits();
        let mut transport: Box<VirtioBlkTransport> = Box::new(VhostUser::new(socket.to_str().unwrap(), features).unwrap());
        let mut queues: Vec<VirtioBlkQueue<_>> = VirtioBlkQueue::setup_queues(&mut *transport, queues, QUEUE_SIZE).unwrap();
        queues.iter_mut().for_each(|queue| queue.set_used_notif_enabled(true));
        let file: File = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap().into();
        let memory = Shared::new(file.try_clone().unwrap(), memory_bytes);
        transport.map_mem_region(memory.address(), memory_bytes, file.as_raw_fd(), 0).unwrap();
        Self { queues, transport, memory }
    }

    pub fn features(&self) -> VirtioBlkFeatureFlags {
        VirtioBlkFeatureFlags::from_bits_truncate(self.transport.get_features())
    }

    pub fn config(&self) -> VirtioBlkConfig {
        self.transport.get_config().unwrap()
    }

    pub fn kick(&self, queue: usize) {
        self.transport.get_submission_notifier(queue).notify().unwrap();
    }

    /// Kicks a queue and waits for so many completions: their contexts and results, in the order in which they came.
    pub fn complete(&mut self, queue: usize, count: usize) -> Vec<(u32, i32)> {
        self.kick(queue);
        let fd = self.transport.get_completion_fd(queue);
        let mut done = Vec::new();
        loop {
            done.extend(self.queues[queue].completions().map(|completion| (completion.context, completion.ret)));
            if done.len() >= count {
                assert_eq!(done.len(), count);
                return done;
            }
            let timeout = Timespec { tv_sec: REQUEST_SECONDS, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
            assert_eq!(ready, 1, "{} of {count} in time", done.len());
            fd.read().unwrap();
        }
    }

    /// Whether something has completed by itself.
    pub fn has_completions(&mut self, queue: usize) -> bool {
        self.queues[queue].completions().has_next()
    }

    /// Carries out one transfer of the memory at `at`.
    pub fn transfer(&mut self, direction: Direction, offset: u64, at: usize, len_bytes: usize) -> i32 {
        self.memory.queue(&mut self.queues[0], direction, offset, at, len_bytes, 0).unwrap();
        self.complete(0, 1)[0].1
    }

    pub fn write(&mut self, offset: u64, content: &[u8]) {
        self.memory.put(0, content);
        assert_eq!(self.transfer(Direction::Write, offset, 0, content.len()), 0);
    }

    pub fn flush(&mut self) {
        self.queues[0].flush(0).unwrap();
        assert_eq!(self.complete(0, 1), [(0, 0)]);
    }
}

/// Content that differs from byte to byte and from seed to seed.
pub fn content(seed: u32, len_bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len_bytes).map(|_| noise()).collect()
}
