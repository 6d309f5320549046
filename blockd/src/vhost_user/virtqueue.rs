//! One virtqueue: what is available, what is used, and when to tell the guest.

use super::device::Memory;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering::Acquire, fence};
use vhost_user_backend::{VringMutex, VringT};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

/// A queue as the vhost-user messages set it up.
pub(super) type Vring = VringMutex<Memory>;

/// See the module's documentation.
pub(super) struct VirtQueue {
    vring: Vring,
    /// Its number in the device.
    pub(super) number: usize,
    /// Chains that were taken and have not been used up.
    pub(super) taken: usize,
    /// There may be chains to take.
    pub(super) due: bool,
    /// The device counts it as started.
    pub(super) started: bool,
    /// Nothing is taken any more.
    pub(super) closed: bool,
    /// Something was used since the guest was told.
    used: bool,
}

/// What there was to take.
pub(super) enum Taken {
    /// A chain, and the guest's memory as it was when the chain was seen.
    Chain(Arc<GuestMemoryMmap>, DescriptorChain<Arc<GuestMemoryMmap>>),
    /// Nothing; the guest kicks when there is.
    Nothing,
}

impl VirtQueue {
    pub(super) fn new(vring: Vring, number: usize) -> Self {
        Self { vring, number, taken: 0, due: false, started: false, closed: false, used: false }
    }

    /// Whether the queue may be used now. If not, it is not due until the next kick.
    pub(super) fn begin(&mut self) -> bool {
        let state = self.vring.get_ref();
        let usable = !self.closed && state.is_enabled() && state.get_queue().ready();
        self.due &= usable;
        usable
    }

    /// Takes the next chain, or arranges for a kick.
    pub(super) fn take(&mut self, memory: &Memory) -> Taken {
        match self.try_take(memory) {
            Ok(Some(taken)) => return taken,
            Ok(None) => {}
            // The guest has broken its queue: it is left alone until it is kicked again.
            Err(error) => tracing::debug!(queue = self.number, %error, "vhost-user: a queue is broken"),
        }
        self.due = false;
        Taken::Nothing
    }

    fn try_take(&self, memory: &Memory) -> Result<Option<Taken>, virtio_queue::Error> {
        let mut state = self.vring.get_mut();
        let queue = state.get_queue_mut();
        let rings = memory.memory();
        // Without the event index this is what keeps the guest from kicking.
        queue.disable_notification(&*rings)?;
        let none = queue.avail_idx(&*rings, Acquire)? == Wrapping(queue.next_avail());
        if none && !queue.enable_notification(&*rings)? {
            return Ok(None);
        }
        // The guest may have got memory just before it put the chain there: memory is looked up after the chain was seen.
        fence(Acquire);
        let memory = memory.memory().into_inner();
        let next = queue.iter(memory.clone())?.next();
        Ok(next.map(|chain| Taken::Chain(memory, chain)))
    }

    /// Undoes the last [`Self::take`].
    pub(super) fn put_back(&self) {
        self.vring.get_mut().get_queue_mut().go_to_previous_position();
    }

    /// Gives a chain back to the guest.
    pub(super) fn put_used(&mut self, memory: &GuestMemoryMmap, head: u16, len_bytes: u32) {
        let mut state = self.vring.get_mut();
        let queue = state.get_queue_mut();
        // A head that is no descriptor has no place in the ring. The crate says so, too, but as an error in the log for each of them.
        if head >= queue.size() {
            return;
        }
        if let Err(error) = queue.add_used(memory, head, len_bytes) {
            tracing::debug!(queue = self.number, %error, "vhost-user: a chain cannot be given back");
        }
        self.used = true;
    }

    /// Tells the guest, if something was used and it wants to know.
    pub(super) fn interrupt(&mut self, memory: &GuestMemoryMmap) {
        if !std::mem::take(&mut self.used) {
            return;
        }
        let mut state = self.vring.get_mut();
        if !matches!(state.get_queue_mut().needs_notification(memory), Ok(false))
            && let Err(error) = state.signal_used_queue()
        {
            tracing::debug!(queue = self.number, %error, "vhost-user: the guest cannot be told");
        }
    }
}
