//! A driver that can do whatever a front end and a guest can do, sensible or not. One queue.

use crate::sys::{Shared, borrow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_blk as blk;
use vmm_sys_util::eventfd::EventFd;

pub const READ: u32 = blk::VIRTIO_BLK_T_IN;
pub const WRITE: u32 = blk::VIRTIO_BLK_T_OUT;
pub const DISCARD: u32 = blk::VIRTIO_BLK_T_DISCARD;

pub const NEXT: u16 = 1;
pub const WRITABLE: u16 = 2;

/// Descriptors of the queue.
pub const QUEUE_SIZE: u16 = 256;
/// Requests that have memory of their own: header, status, data and three descriptors.
const SLOTS: u16 = 64;
const SLOT_BYTES: usize = 64 << 10;

const TABLE: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADERS: u64 = 0x4000;
const DATA: u64 = 1 << 20;
pub const MEMORY_BYTES: u64 = DATA + SLOTS as u64 * SLOT_BYTES as u64;

/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(20);
const STATUS_OFFSET: u64 = 16;
/// In a status byte that nobody has written.
const UNTOUCHED: u8 = 0xee;

/// See the module's documentation.
pub struct Raw {
    pub frontend: Frontend,
    pub memory: Shared,
    file: File,
    kick: EventFd,
    call: EventFd,
    available: u16,
}

impl Raw {
    pub const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << blk::VIRTIO_BLK_F_FLUSH | 1 << blk::VIRTIO_BLK_F_CONFIG_WCE;

    /// A client that has negotiated, and told of its memory.
    pub fn connect(socket: &Path) -> Self {
        let frontend = Frontend::connect(socket, 64).unwrap();
        let file: File = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap().into();
        let memory = Shared::new(file.try_clone().unwrap(), MEMORY_BYTES as usize);
        let eventfd = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap();
        let mut raw = Self { frontend, memory, file, kick: eventfd(), call: eventfd(), available: 0 };
        raw.frontend.set_owner().unwrap();
        raw.negotiate(Self::FEATURES);
        raw.tell_memory();
        raw
    }

    pub fn negotiate(&mut self, features: u64) {
        let offered = self.frontend.get_features().unwrap();
        self.frontend.set_features(features & offered).unwrap();
        let protocol = self.frontend.get_protocol_features().unwrap();
        let unwanted = VhostUserProtocolFeatures::LOG_SHMFD | VhostUserProtocolFeatures::STATUS;
        assert!((protocol & unwanted).is_empty(), "not offered");
        self.frontend.set_protocol_features(protocol).unwrap();
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }

    pub fn tell_memory(&self) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY_BYTES,
            userspace_addr: self.host(0),
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region]).unwrap();
    }

    /// A further piece of memory, which begins at the guest's address `at`.
    pub fn more_memory(&self, at: u64, len_bytes: u64) -> (File, VhostUserMemoryRegionInfo) {
        let file: File = memfd_create("more", MemfdFlags::CLOEXEC).unwrap().into();
        file.set_len(len_bytes).unwrap();
        let mmap_handle = file.as_raw_fd();
        let info =
            VhostUserMemoryRegionInfo { guest_phys_addr: at, memory_size: len_bytes, userspace_addr: 1 << 46, mmap_offset: 0, mmap_handle };
        (file, info)
    }

    fn host(&self, at: u64) -> u64 {
        self.memory.address() as u64 + at
    }

    /// Where the parts of the ring are, `further` on from where they should be.
    pub fn rings_at(&self, further: u64) -> VringConfigData {
        VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: self.host(TABLE + further),
            used_ring_addr: self.host(USED + further),
            avail_ring_addr: self.host(AVAILABLE + further),
            log_addr: None,
        }
    }

    /// Sets the ring up and starts it, with the next chain at `base`.
    pub fn start(&mut self, base: u16) {
        let addresses = self.rings_at(0);
        self.frontend.set_vring_num(0, QUEUE_SIZE).unwrap();
        self.frontend.set_vring_base(0, base).unwrap();
        self.frontend.set_vring_addr(0, &addresses).unwrap();
        self.frontend.set_vring_call(0, &self.call).unwrap();
        self.frontend.set_vring_kick(0, &self.kick).unwrap();
        self.frontend.set_vring_enable(0, true).unwrap();
    }

    /// Stops the ring: what it would take next.
    pub fn stop(&self) -> u16 {
        self.frontend.get_vring_base(0).unwrap() as u16
    }

    pub fn reset(&mut self) {
        self.frontend.reset_device().unwrap();
        // It has no answer; this one has, and comes behind it.
        self.frontend.get_features().unwrap();
    }

    /// The byte of the configuration space that says how writes are cached.
    pub fn writeback(&mut self) -> u8 {
        let (_, content) = self.frontend.get_config(32, 1, VhostUserConfigFlags::empty(), &[0]).unwrap();
        content[0]
    }

    pub fn set_writeback(&mut self, writeback: u8) {
        self.frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[writeback]).unwrap();
    }

    pub fn capacity_sectors(&mut self) -> u64 {
        let (_, content) = self.frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).unwrap();
        content.try_into().map(u64::from_le_bytes).unwrap()
    }

    /// Where the data of the next request is.
    pub fn next_data(&self) -> u64 {
        DATA + u64::from(self.available % SLOTS) * SLOT_BYTES as u64
    }

    /// Where the header and, 16 bytes on, the status of the next request are.
    pub fn next_header(&self) -> u64 {
        HEADERS + u64::from(self.available % SLOTS) * 32
    }

    /// Where the headers of all requests are.
    pub fn headers(&self) -> impl Iterator<Item = usize> + Clone + Send + use<> {
        (HEADERS as usize..).step_by(32).take(usize::from(SLOTS))
    }

    /// The first descriptor of the next request.
    pub fn next_head(&self) -> u16 {
        self.available % SLOTS * 4
    }

    /// Makes a well-formed request available.
    pub fn offer(&mut self, kind: u32, sector: u64, len_bytes: u32) {
        let direction = if kind == READ { WRITABLE } else { 0 };
        let (header, data) = (self.next_header(), self.next_data());
        self.put_header(kind, sector);
        self.offer_chain(&[(header, 16, 0), (data, len_bytes, direction), (header + STATUS_OFFSET, 1, WRITABLE)]);
    }

    /// Writes the header of the next request.
    pub fn put_header(&self, kind: u32, sector: u64) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), &[UNTOUCHED]].concat();
        self.memory.put(self.next_header() as usize, &header);
    }

    /// Makes a chain of at most four parts available: address, length and flags, linked in their order.
    pub fn offer_chain(&mut self, parts: &[(u64, u32, u16)]) {
        let first = self.next_head();
        for (at, (address, len, flags)) in (first..).zip(parts) {
            let last = at + 1 == first + parts.len() as u16;
            self.put_descriptor(at, *address, *len, flags | if last { 0 } else { NEXT }, at + 1);
        }
        self.publish(first);
    }

    pub fn put_descriptor(&self, at: u16, address: u64, len: u32, flags: u16, next: u16) {
        let descriptor = [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        self.memory.put((TABLE + u64::from(at) * 16) as usize, &descriptor);
    }

    /// Makes the chain that begins at `head` available.
    pub fn publish(&mut self, head: u16) {
        let entry = AVAILABLE + 4 + u64::from(self.available % QUEUE_SIZE) * 2;
        self.memory.put(entry as usize, &head.to_le_bytes());
        self.set_available(self.available.wrapping_add(1));
    }

    pub fn set_available(&mut self, index: u16) {
        self.available = index;
        self.memory.put(AVAILABLE as usize + 2, &index.to_le_bytes());
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Whether the guest is interrupted, within a while.
    pub fn is_called(&self) -> bool {
        let fd = borrow(&self.call);
        poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&Timespec { tv_sec: 2, tv_nsec: 0 })).unwrap() > 0
    }

    /// Has the guest be interrupted in another way from now on.
    pub fn replace_call(&mut self) {
        self.call = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap();
        self.frontend.set_vring_call(0, &self.call).unwrap();
    }

    pub fn kick_is_seen(&self) -> bool {
        let fd = borrow(&self.kick);
        poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 0
    }

    /// Chains that were used up.
    pub fn used(&self) -> u16 {
        let index = self.memory.get(USED as usize + 2, 2);
        u16::from_le_bytes([index[0], index[1]])
    }

    /// The written length of the used chain number `index`.
    pub fn used_len(&self, index: u16) -> u32 {
        let entry = self.memory.get((USED + 4 + u64::from(index % QUEUE_SIZE) * 8) as usize, 8);
        u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]])
    }

    /// The head of the used chain number `index`.
    pub fn used_head(&self, index: u16) -> u16 {
        let entry = self.memory.get((USED + 4 + u64::from(index % QUEUE_SIZE) * 8) as usize, 2);
        u16::from_le_bytes([entry[0], entry[1]])
    }

    /// Does the device's part: a chain was used.
    pub fn put_used(&self, index: u16, head: u16) {
        self.memory.put((USED + 4 + u64::from(index % QUEUE_SIZE) * 8) as usize, &u32::from(head).to_le_bytes());
    }

    pub fn set_used(&self, index: u16) {
        self.memory.put(USED as usize + 2, &index.to_le_bytes());
    }

    pub fn wait_used(&self, index: u16) {
        let deadline = Instant::now() + PATIENCE;
        while self.used() != index {
            assert!(Instant::now() < deadline, "in time: {} of {index}", self.used());
            let fd = borrow(&self.call);
            poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
            let _ = self.call.read();
        }
    }

    /// The status of the last requests, as many as have memory of their own.
    pub fn statuses(&self) -> impl Iterator<Item = u8> {
        let count = self.available.min(SLOTS);
        (0..count).map(|slot| self.memory.get((HEADERS + u64::from(slot) * 32 + STATUS_OFFSET) as usize, 1)[0])
    }

    /// Carries out one well-formed request and returns its status.
    pub fn request(&mut self, kind: u32, sector: u64, len_bytes: u32) -> u8 {
        let status = self.next_header() + STATUS_OFFSET;
        let used = self.used();
        self.offer(kind, sector, len_bytes);
        self.kick();
        self.wait_used(used.wrapping_add(1));
        self.memory.get(status as usize, 1)[0]
    }
}
