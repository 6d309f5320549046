//! A chain's descriptors, one after the other, through an indirect table if there is one.
//!
//! Each descriptor is copied once. A walk ends after as many as its table has, which is how a loop ends; it ends early at a descriptor that is
//! not in its table or not in memory, at a table in a table or of an odd size, and at 4 GiB, which is all that a chain may have.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

const DESCRIPTOR_BYTES: u32 = 16;

/// See the module's documentation.
pub struct Descriptors<'a> {
    memory: &'a GuestMemoryMmap,
    table: Table,
    /// The table's number of the next one.
    next: Option<u16>,
    /// Descriptors that may still follow.
    left: u16,
    bytes: u32,
}

/// Where descriptors lie.
#[derive(Clone, Copy)]
enum Table {
    /// The queue's own.
    Queue(GuestAddress, u16),
    /// One that a descriptor leads to.
    Indirect(GuestAddress, u16),
}

impl<'a> Descriptors<'a> {
    /// Those of the chain that begins with number `head` of the table at `table`, which has `size` descriptors.
    pub fn of(memory: &'a GuestMemoryMmap, table: GuestAddress, size: u16, head: u16) -> Self {
        Self { memory, table: Table::Queue(table, size), next: Some(head), left: size, bytes: 0 }
    }

    fn load(&self, number: u16) -> Option<Descriptor> {
        let (Table::Queue(start, size) | Table::Indirect(start, size)) = self.table;
        let at = start.checked_add(u64::from(number) * u64::from(DESCRIPTOR_BYTES))?;
        if number < size { self.memory.read_obj(at).ok() } else { None }
    }

    /// Goes on in the table that `descriptor` leads to.
    fn enter(&mut self, descriptor: &Descriptor) -> Option<Descriptor> {
        let (Table::Queue(..), 0) = (self.table, descriptor.len() % DESCRIPTOR_BYTES) else { return None };
        let size = u16::try_from(descriptor.len() / DESCRIPTOR_BYTES).ok()?;
        self.table = Table::Indirect(descriptor.addr(), size);
        self.left = size;
        self.load(0).filter(|first| !first.refers_to_indirect_table())
    }
}

impl Iterator for Descriptors<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let number = self.next.take()?;
        let mut descriptor = self.load(number)?;
        if descriptor.refers_to_indirect_table() {
            descriptor = self.enter(&descriptor)?;
        }
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        self.left = self.left.checked_sub(1)?;
        self.next = (descriptor.has_next() && self.left > 0).then(|| descriptor.next());
        Some(descriptor)
    }
}
