//! Requests of the virtio driver whose buffers lie in shared memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use virtio_driver::VirtioBlkQueue;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

/// Memory that the device may use, by a mapping of its own. Nothing but these functions touches it here.
#[derive(Clone)]
pub struct Shared(Arc<MmapRegion>);

/// What to do with a part of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

impl Shared {
    pub fn new(file: File, len_bytes: usize) -> Self {
        file.set_len(len_bytes as u64).unwrap();
        Self(Arc::new(MmapRegion::from_file(FileOffset::new(file, 0), len_bytes).unwrap()))
    }

    /// Where it is mapped, which is how the device knows it.
    pub fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }

    pub fn put(&self, at: usize, content: &[u8]) {
        self.0.get_slice(at, content.len()).unwrap().copy_from(content);
    }

    pub fn get(&self, at: usize, len_bytes: usize) -> Vec<u8> {
        let mut content = vec![0; len_bytes];
        self.0.get_slice(at, len_bytes).unwrap().copy_to(&mut content);
        content
    }

    /// Queues a request for the memory at `at`.
    pub fn queue(
        &self,
        queue: &mut VirtioBlkQueue<'static, u32>,
        direction: Direction,
        offset: u64,
        at: usize,
        len_bytes: usize,
        context: u32,
    ) -> io::Result<()> {
        let part = self.0.get_slice(at, len_bytes).unwrap();
        let pointer = part.ptr_guard_mut().as_ptr();
        match direction {
            // SAFETY: the driver only passes the address on; the device writes to the memory by its own mapping, and no reference to it exists.
            Direction::Read => unsafe { queue.read_raw(offset, pointer, len_bytes, context) },
            // SAFETY: as above.
            Direction::Write => unsafe { queue.write_raw(offset, pointer, len_bytes, context) },
        }
    }
}

/// The descriptor of something that lends only its number.
pub fn borrow(owner: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the owner keeps it open and is borrowed as long as the result.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}
