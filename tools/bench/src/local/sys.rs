//! Requests of the virtio driver whose buffers lie in memory that the device shares.

use super::workload::Op;
use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::File;
use std::io;
use virtio_driver::VirtioBlkQueue;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Memory that a device may use, by a mapping of its own. Nothing but these functions touches it here.
pub struct Shared(MmapRegion);

impl Shared {
    /// So much of it, filled with bytes that nothing compresses.
    pub fn new(file: File, len_bytes: usize) -> Result<Self> {
        file.set_len(len_bytes as u64)?;
        let region = MmapRegion::from_file(FileOffset::new(file, 0), len_bytes)?;
        let mut content = vec![0; len_bytes];
        StdRng::seed_from_u64(len_bytes as u64).fill_bytes(&mut content);
        region.get_slice(0, len_bytes)?.copy_from(&content);
        Ok(Self(region))
    }

    /// Where it is mapped, which is how the device knows it.
    pub fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// Queues a transfer of the memory at `at`.
    pub fn queue(
        &self,
        queue: &mut VirtioBlkQueue<'static, usize>,
        op: Op,
        offset: u64,
        at: usize,
        len_bytes: usize,
        slot: usize,
    ) -> io::Result<()> {
        let part = self.0.get_slice(at, len_bytes).map_err(io::Error::other)?;
        let pointer = part.ptr_guard_mut().as_ptr();
        match op {
            // SAFETY: the driver only passes the address on; the device writes to the memory by its own mapping, and no reference to it exists.
            Op::Read => unsafe { queue.read_raw(offset, pointer, len_bytes, slot) },
            // SAFETY: as above.
            Op::Write | Op::WriteFlush => unsafe { queue.write_raw(offset, pointer, len_bytes, slot) },
        }
    }
}
