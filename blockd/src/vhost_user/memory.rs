//! The guest's memory as a front end describes it: which file is mapped where, for the guest and for the front end itself.

use std::fs::File;
use std::sync::Arc;
use vhost::vhost_user::message::VhostUserMemoryRegion as Description;
use vhost::vhost_user::{Error, Result};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Pieces of memory that a front end may describe, one by one: as many as a kernel's vhost takes.
pub(super) const MAX_SLOTS: usize = 509;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct MemoryTable {
    slots: Vec<Slot>,
    memory: Arc<GuestMemoryMmap>,
}

/// A piece of memory.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot {
    guest: u64,
    front_end: u64,
    len_bytes: u64,
}

impl MemoryTable {
    /// What is mapped now.
    pub(super) fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Describes all of it anew.
    pub(super) fn replace(&mut self, regions: &[Description], files: Vec<File>) -> Result<()> {
        let mut table = Self::default();
        for (region, file) in regions.iter().zip(files) {
            table.add(region, file)?;
        }
        *self = table;
        Ok(())
    }

    /// Adds a piece.
    pub(super) fn add(&mut self, region: &Description, file: File) -> Result<()> {
        let slot = Slot::of(region)?;
        if self.slots.len() >= MAX_SLOTS || self.slots.iter().any(|other| other.overlaps(slot)) {
            return Err(Error::InvalidParam);
        }
        check_length(region, &file)?;
        let mapped = GuestRegionMmap::new(region.mmap_region(file)?, GuestAddress(slot.guest)).ok_or(Error::InvalidParam)?;
        // Refused if the guest sees it where it sees another one.
        self.memory = Arc::new(self.memory.insert_region(Arc::new(mapped)).map_err(|_| Error::InvalidParam)?);
        self.slots.push(slot);
        Ok(())
    }

    /// Removes the piece that was added with these addresses.
    pub(super) fn remove(&mut self, region: &Description) -> Result<()> {
        let slot = Slot::of(region)?;
        let at = self.slots.iter().position(|other| *other == slot).ok_or(Error::InvalidParam)?;
        let (memory, _) = self.memory.remove_region(GuestAddress(slot.guest), slot.len_bytes).map_err(|_| Error::InvalidParam)?;
        self.memory = Arc::new(memory);
        self.slots.remove(at);
        Ok(())
    }

    /// Where the guest sees what the front end sees at `address`.
    pub(super) fn guest_address(&self, address: u64) -> Option<GuestAddress> {
        let slot = self.slots.iter().find(|slot| (slot.front_end..slot.front_end + slot.len_bytes).contains(&address))?;
        Some(GuestAddress(slot.guest + (address - slot.front_end)))
    }
}

/// Beyond the end of a file lies no memory, but the end of this process. What is no plain file has no length.
fn check_length(region: &Description, file: &File) -> Result<()> {
    let metadata = file.metadata().map_err(Error::ReqHandlerError)?;
    let is_whole = region.mmap_offset.checked_add(region.memory_size).is_some_and(|end| end <= metadata.len());
    if is_whole || !metadata.is_file() { Ok(()) } else { Err(Error::InvalidParam) }
}

impl Slot {
    /// Refuses what does not end within 64 bits, anywhere.
    fn of(region: &Description) -> Result<Self> {
        let (guest, front_end, len_bytes) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let ends = [guest, front_end, region.mmap_offset].map(|start| start.checked_add(len_bytes));
        if len_bytes == 0 || ends.contains(&None) {
            return Err(Error::InvalidParam);
        }
        Ok(Self { guest, front_end, len_bytes })
    }

    /// Whether a front end's address could mean either.
    fn overlaps(self, other: Self) -> bool {
        self.front_end < other.front_end + other.len_bytes && other.front_end < self.front_end + self.len_bytes
    }
}
