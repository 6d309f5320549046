//! What a VM keeps of the requests that its daemon has taken and not given back.

use std::fs::{File, read_dir, read_link};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The record that the front end, QEMU, holds for the next daemon (vhost-user specification, "Inflight I/O tracking", split virtqueues).
pub struct InFlight(File);

const HEADER_BYTES: usize = 16;
const DESCRIPTORS_AT: usize = 10;
const ENTRY_BYTES: usize = 16;
const ALIGN_BYTES: usize = 64;

impl InFlight {
    /// The record that a QEMU with this process id has from our daemon; `None` before it has it.
    pub fn of(qemu: u32) -> Option<Self> {
        let is_record = |path: &PathBuf| read_link(path).is_ok_and(|target| target.to_string_lossy().contains("memfd:tern-inflight"));
        let path = read_dir(format!("/proc/{qemu}/fd")).ok()?.flatten().map(|entry| entry.path()).find(is_record)?;
        File::open(path).ok().map(Self)
    }

    /// How many requests are marked, over all queues. A moment's view, unless the daemon stands still.
    pub fn requests(&self) -> usize {
        let mut record = vec![0; self.0.metadata().map_or(0, |record| record.len() as usize)];
        self.0.read_exact_at(&mut record, 0).expect("memory can be read");
        // Every queue has as many descriptors as the first.
        let descriptors = usize::from(u16::from_le_bytes([record[DESCRIPTORS_AT], record[DESCRIPTORS_AT + 1]]));
        let queue_bytes = (HEADER_BYTES + ENTRY_BYTES * descriptors).next_multiple_of(ALIGN_BYTES);
        let entries = record.chunks(queue_bytes).flat_map(|queue| queue.chunks(ENTRY_BYTES).skip(HEADER_BYTES / ENTRY_BYTES));
        entries.filter(|entry| entry[0] == 1).count()
    }
}
