//! One virtqueue: what is available, what is used, and when to tell the guest. (Virtio 1.2, section 2.7: split virtqueues.)
//!
//! A queue belongs to one thread. What it takes is written down first, if the front end keeps a record, and what it gives back becomes
//! visible in batches: [`VirtQueue::publish`] moves the index of the used ring once for all of them, and interrupts at most once.
//!
//! While the thread is awake it looks for itself, and the guest need not kick. Before it sleeps, [`VirtQueue::arm`] asks for the next kick.
//!
//! The guest is not trusted. A queue that breaks its rules is left alone until the front end stops it.

use super::inflight::QueueLog;
use rustix::io::ReadWriteFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// Most descriptors of a queue.
pub(super) const MAX_QUEUE_SIZE: u16 = 1024;

/// Where in the available and the used ring their index is, and where their entries begin.
const INDEX_AT: usize = 2;
const ENTRIES_AT: usize = 4;
const DESCRIPTOR_BYTES: usize = 16;
const AVAILABLE_BYTES: usize = 2;
const USED_BYTES: usize = 8;

/// Where a queue lies, in the guest's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Its descriptors: a power of two, at most [`MAX_QUEUE_SIZE`].
    pub(super) size: u16,
    pub(super) descriptors: GuestAddress,
    pub(super) available: GuestAddress,
    pub(super) used: GuestAddress,
}

/// How sides keep each other from notifications that nobody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suppression {
    /// A flag: all or none.
    Flag,
    /// An index: `VIRTIO_RING_F_EVENT_IDX`.
    EventIndex,
}

/// Everything that a queue needs to run.
pub(super) struct Setup {
    /// Its number within the worker.
    pub(super) place: usize,
    /// Its number in the device.
    pub(super) number: usize,
    pub(super) layout: Layout,
    pub(super) suppression: Suppression,
    /// The entry of the available ring to take first.
    pub(super) base: u16,
    pub(super) kick: OwnedFd,
    pub(super) call: Option<OwnedFd>,
    pub(super) error: Option<OwnedFd>,
    pub(super) log: Option<QueueLog>,
}

/// What may change while a queue runs.
pub(super) enum Change {
    /// What the guest writes to when there is something to take.
    Kick(OwnedFd),
    /// What to write to when something was used.
    Call(Option<OwnedFd>),
    /// What to write to when the queue is broken.
    Error(Option<OwnedFd>),
    /// Whether something may be taken.
    Enabled(bool),
}

/// The head of a chain that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) index: u16,
    origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Available,
    /// A daemon before this one took it.
    Inherited,
}

/// How the guest broke its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("a ring is not in the guest's memory")]
    OutsideMemory,
    #[error("more chains are available than the queue has descriptors")]
    TooManyChains,
    #[error("a chain is available that is being carried out")]
    TakenTwice,
    #[error("its kick is nothing that can be waited for")]
    Unwatchable,
}

/// A queue's rings in a mapping of the guest's memory.
pub(super) struct Rings<'m> {
    available: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
}

/// See the module's documentation.
pub(super) struct VirtQueue {
    pub(super) number: usize,
    pub(super) layout: Layout,
    suppression: Suppression,
    kick: OwnedFd,
    call: Option<OwnedFd>,
    error: Option<OwnedFd>,
    log: Option<QueueLog>,
    next_available: u16,
    next_used: u16,
    /// The used ring's index as the guest sees it.
    published: u16,
    /// Given back, and not published.
    batch: Vec<u16>,
    /// Those of a daemon before this one, the first one last.
    inherited: Vec<u16>,
    /// By head: taken, and not given back.
    in_flight: Box<[bool]>,
    /// Chains that were taken and not given back.
    pub(super) taken: usize,
    pub(super) enabled: bool,
    broken: bool,
}

impl Layout {
    /// The rings; an error if they are not in memory.
    pub(super) fn rings<'m>(&self, memory: &'m GuestMemoryMmap) -> Result<Rings<'m>, Broken> {
        let size = usize::from(self.size);
        let slice = |at, len| memory.get_slice(at, len).map_err(|_| Broken::OutsideMemory);
        // Each ring ends with the index that the other side's notifications wait for.
        let available = slice(self.available, ENTRIES_AT + size * AVAILABLE_BYTES + 2)?;
        let used = slice(self.used, ENTRIES_AT + size * USED_BYTES + 2)?;
        Ok(Rings { available, used })
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }
}

/// Rings are aligned and as long as the layout says, so these do not fail.
impl Rings<'_> {
    fn load(ring: &VolatileSlice<'_>, at: usize, order: std::sync::atomic::Ordering) -> u16 {
        ring.load(at, order).map(u16::from_le).unwrap_or_default()
    }

    fn store(ring: &VolatileSlice<'_>, at: usize, value: u16, order: std::sync::atomic::Ordering) {
        let _ = ring.store(value.to_le(), at, order);
    }
}

impl VirtQueue {
    /// A queue that goes on where its front end, or the daemon before this one, says. `memory` holds it.
    pub(super) fn start(setup: Setup, memory: &GuestMemoryMmap) -> Result<Self, Broken> {
        let Setup { number, layout, suppression, base, kick, call, error, mut log, .. } = setup;
        let rings = layout.rings(memory)?;
        if memory.get_slice(layout.descriptors, usize::from(layout.size) * DESCRIPTOR_BYTES).is_err() {
            return Err(Broken::OutsideMemory);
        }
        let used = Rings::load(&rings.used, INDEX_AT, Acquire);
        let recovered = log.as_mut().and_then(|log| log.recover(layout.size, used));
        // Whatever was taken is either used or inherited; the front end does not know how many the latter are.
        let next_available = recovered.as_ref().map_or(base, |inherited| used.wrapping_add(inherited.len() as u16));
        let inherited = recovered.into_iter().flatten().rev().collect();
        let queue = Self {
            number,
            layout,
            suppression,
            kick,
            call,
            error,
            log,
            next_available,
            next_used: used,
            published: used,
            batch: Vec::with_capacity(usize::from(layout.size)),
            inherited,
            in_flight: vec![false; usize::from(layout.size)].into(),
            taken: 0,
            enabled: true,
            broken: false,
        };
        // A daemon before this one may have been killed just before it told the guest.
        queue.interrupt();
        Ok(queue)
    }

    /// What a daemon before this one took and did not give back, and this one has yet to take.
    pub(super) fn inherited(&self) -> usize {
        self.inherited.len()
    }

    /// What the queue would take next, for whoever starts it again.
    pub(super) fn base(&self) -> u16 {
        self.next_available
    }

    /// What the guest writes to.
    pub(super) fn kick(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// Empties the kick. It does not wait, whatever the descriptor is.
    pub(super) fn acknowledge_kick(&self) {
        let mut count = [0_u8; 8];
        // At the current position, as for anything that has none.
        let _ = rustix::io::preadv2(&self.kick, &mut [io::IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT);
    }

    pub(super) fn change(&mut self, change: Change) {
        match change {
            Change::Kick(kick) => self.kick = kick,
            // What was told the old way since the queue runs may have been told nobody. An interrupt for nothing does no harm.
            Change::Call(call) => {
                self.call = call;
                self.interrupt();
            }
            Change::Error(error) => self.error = error,
            Change::Enabled(enabled) => self.enabled = enabled,
        }
    }

    /// Whether there is something to take.
    pub(super) fn has_available(&self, rings: &Rings<'_>) -> bool {
        let usable = self.enabled && !self.broken;
        usable && (!self.inherited.is_empty() || Rings::load(&rings.available, INDEX_AT, Acquire) != self.next_available)
    }

    /// Takes the next chain.
    pub(super) fn take(&mut self, rings: &Rings<'_>) -> Option<Head> {
        if !self.enabled || self.broken {
            return None;
        }
        match self.try_take(rings) {
            Ok(taken) => taken,
            Err(why) => {
                self.fail(why);
                None
            }
        }
    }

    fn try_take(&mut self, rings: &Rings<'_>) -> Result<Option<Head>, Broken> {
        if let Some(index) = self.inherited.pop() {
            self.in_flight[usize::from(index)] = true;
            self.taken += 1;
            return Ok(Some(Head { index, origin: Origin::Inherited }));
        }
        loop {
            let waiting = Rings::load(&rings.available, INDEX_AT, Acquire).wrapping_sub(self.next_available);
            if waiting == 0 {
                return Ok(None);
            }
            if waiting > self.layout.size {
                return Err(Broken::TooManyChains);
            }
            let entry = ENTRIES_AT + self.layout.slot(self.next_available) * AVAILABLE_BYTES;
            let index = Rings::load(&rings.available, entry, Relaxed);
            match self.in_flight.get_mut(usize::from(index)) {
                // It is no descriptor, and has no place in the used ring.
                None => self.next_available = self.next_available.wrapping_add(1),
                Some(true) => return Err(Broken::TakenTwice),
                Some(in_flight) => {
                    *in_flight = true;
                    self.taken += 1;
                    self.next_available = self.next_available.wrapping_add(1);
                    self.log.iter_mut().for_each(|log| log.taken(index));
                    return Ok(Some(Head { index, origin: Origin::Available }));
                }
            }
        }
    }

    /// Undoes the last [`Self::take`].
    pub(super) fn put_back(&mut self, head: Head) {
        self.in_flight[usize::from(head.index)] = false;
        self.taken -= 1;
        match head.origin {
            Origin::Inherited => self.inherited.push(head.index),
            Origin::Available => {
                self.next_available = self.next_available.wrapping_sub(1);
                self.log.iter_mut().for_each(|log| log.put_back(head.index));
            }
        }
    }

    /// Gives a chain back; the guest sees it after [`Self::publish`].
    pub(super) fn put_used(&mut self, rings: &Rings<'_>, head: Head, len_bytes: u32) {
        self.in_flight[usize::from(head.index)] = false;
        self.taken -= 1;
        let entry = ENTRIES_AT + self.layout.slot(self.next_used) * USED_BYTES;
        let _ = rings.used.store(u32::from(head.index).to_le(), entry, Relaxed);
        let _ = rings.used.store(len_bytes.to_le(), entry + 4, Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
        self.log.iter_mut().for_each(|log| log.given_back(head.index));
        self.batch.push(head.index);
    }

    /// Forgets a chain that there is no place for any more.
    pub(super) fn lose(&mut self, head: Head) {
        self.in_flight[usize::from(head.index)] = false;
        self.taken -= 1;
        self.fail(Broken::OutsideMemory);
    }

    /// Whether [`Self::publish`] has something to do.
    pub(super) fn has_batch(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Shows the guest what was given back, and interrupts it if it wants that.
    pub(super) fn publish(&mut self, rings: &Rings<'_>) {
        Rings::store(&rings.used, INDEX_AT, self.next_used, Release);
        self.log.iter_mut().for_each(|log| log.published(&self.batch, self.next_used));
        self.batch.clear();
        let before = std::mem::replace(&mut self.published, self.next_used);
        if self.wants_interrupt(rings, before) {
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        if let Some(call) = &self.call
            && let Err(error) = rustix::io::write(call, &1_u64.to_ne_bytes())
        {
            tracing::debug!(queue = self.number, %error, "vhost-user: the guest cannot be told");
        }
    }

    fn wants_interrupt(&self, rings: &Rings<'_>, before: u16) -> bool {
        // The guest says what it waits for and then looks at the index; here it is the other way round.
        fence(SeqCst);
        match self.suppression {
            Suppression::Flag => {
                let flags = Rings::load(&rings.available, 0, Relaxed);
                u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
            }
            Suppression::EventIndex => {
                let event_at = ENTRIES_AT + usize::from(self.layout.size) * AVAILABLE_BYTES;
                let event = Rings::load(&rings.available, event_at, Relaxed);
                self.next_used.wrapping_sub(event).wrapping_sub(1) < self.next_used.wrapping_sub(before)
            }
        }
    }

    /// Asks for a kick at the next chain. `true`: there is one already.
    pub(super) fn arm(&self, rings: &Rings<'_>) -> bool {
        match self.suppression {
            Suppression::Flag => Rings::store(&rings.used, 0, 0, Relaxed),
            Suppression::EventIndex => {
                let event_at = ENTRIES_AT + usize::from(self.layout.size) * USED_BYTES;
                Rings::store(&rings.used, event_at, self.next_available, Relaxed);
            }
        }
        fence(SeqCst);
        self.has_available(rings)
    }

    /// Asks for no kicks. With an event index nothing needs to be said: one that has passed asks for none.
    pub(super) fn disarm(&self, rings: &Rings<'_>) {
        if self.suppression == Suppression::Flag {
            Rings::store(&rings.used, 0, VRING_USED_F_NO_NOTIFY as u16, Relaxed);
        }
    }

    /// Leaves the queue alone from now on.
    pub(super) fn fail(&mut self, why: Broken) {
        tracing::debug!(queue = self.number, %why, "vhost-user: a queue is broken");
        self.broken = true;
        if let Some(error) = &self.error {
            let _ = rustix::io::write(error, &1_u64.to_ne_bytes());
        }
    }
}
