//! What front ends do besides moving requests: they keep records, plug memory, listen to notices, and contradict themselves.

use crate::raw::{MEMORY_BYTES, NEXT, QUEUE_SIZE, READ, Raw, WRITABLE, WRITE};
use crate::site::{Site, eventually};
use crate::sys::Shared;
use blockd::request::Access;
use replicator_engine::tracker::LaneId;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

const OK: u8 = 0;

/// The record of one queue, in the layout of the specification.
struct Record {
    memory: Shared,
    file: File,
}

impl Record {
    const BYTES: usize = 16 + 16 * QUEUE_SIZE as usize;

    fn new() -> Self {
        let file: File = memfd_create("inflight", MemfdFlags::CLOEXEC).unwrap().into();
        let memory = Shared::new(file.try_clone().unwrap(), Self::BYTES.next_multiple_of(64));
        Self { memory, file }
    }

    fn hand_over(&self, raw: &mut Raw) {
        let record = VhostUserInflight::new(Self::BYTES.next_multiple_of(64) as u64, 0, 1, QUEUE_SIZE);
        raw.frontend.set_inflight_fd(&record, self.file.as_raw_fd()).unwrap();
    }

    /// As a daemon leaves it whose last used index was this.
    fn put_header(&self, last_batch_head: u16, used_index: u16) {
        self.memory.put(8, &[1, QUEUE_SIZE, last_batch_head, used_index].map(u16::to_le_bytes).concat());
    }

    fn mark(&self, head: u16, counter: u64) {
        self.memory.put(16 + 16 * usize::from(head), &[1]);
        self.memory.put(16 + 16 * usize::from(head) + 8, &counter.to_le_bytes());
    }

    fn is_marked(&self, head: u16) -> bool {
        self.memory.get(16 + 16 * usize::from(head), 1) == [1]
    }
}

#[test]
fn what_a_daemon_left_in_flight_is_done_first_and_once() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    let record = Record::new();
    // The daemon took three chains, in another order than that of their heads, and gave back the second one, but died before it said so.
    for sector in [0, 8, 16, 24] {
        raw.memory.put(raw.next_data() as usize, &[sector as u8 + 1; 4096]);
        raw.offer(WRITE, sector, 4096);
    }
    for (head, counter) in [(0, 7), (4, 6), (8, 5)] {
        record.mark(head, counter);
    }
    record.put_header(4, 0);
    raw.put_used(0, 4);
    raw.set_used(1);
    record.hand_over(&mut raw);
    // The front end thinks that whatever is not used was not taken.
    raw.start(1);
    raw.kick();
    raw.wait_used(4);
    assert_eq!([1, 2, 3].map(|index| raw.used_head(index)).into_iter().filter(|head| *head == 4).count(), 0, "not done again");
    let content = site.content(0, 16 << 10);
    assert!(content.chunks(4096).zip([1, 0, 17, 25]).all(|(page, byte)| page == [byte; 4096]), "each but the second");
    assert_eq!(raw.stop(), 4);
    assert!([0, 4, 8, 12].iter().all(|head| !record.is_marked(*head)));
}

#[test]
fn what_is_being_carried_out_is_on_record() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    let record = Record::new();
    record.hand_over(&mut raw);
    raw.start(0);
    assert_eq!(raw.request(WRITE, 0, 4096), OK);
    assert!(!record.is_marked(0));
    // A write over a block whose epoch is closing waits.
    site.volume.intake.cut(LaneId::FIRST).unwrap();
    raw.offer(WRITE, 0, 4096);
    raw.kick();
    eventually("it is taken", || record.is_marked(4));
    eventually("the epoch is closed", || site.volume.intake.try_freeze(LaneId::FIRST).is_some());
    raw.wait_used(2);
    assert_eq!(raw.stop(), 2);
    assert!(!record.is_marked(4));
}

#[test]
fn a_record_that_is_too_short_or_of_too_many_queues_is_refused() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    for (size, offset, queues, queue_size) in [(1 << 20, 0, 64, 1024), (64, 0, 1, QUEUE_SIZE), (8192, 1 << 63, 1, 8), (8192, 0, 65, 8)] {
        let mut raw = Raw::connect(&site.socket());
        let record = VhostUserInflight::new(size, offset, queues, queue_size);
        assert!(raw.frontend.set_inflight_fd(&record, Record::new().file.as_raw_fd()).is_err(), "{size} {offset} {queues}");
    }
    let mut raw = Raw::connect(&site.socket());
    let (record, file) = raw.frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, 2, QUEUE_SIZE)).unwrap();
    assert_eq!(record.mmap_size, 2 * Record::BYTES.next_multiple_of(64) as u64);
    assert!(file.set_len(0).is_err(), "nobody can cut it off");
}

#[test]
fn a_queue_that_runs_stays_where_it_is() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let changes: [fn(&Raw) -> bool; 4] = [
        |raw| raw.frontend.set_vring_num(0, QUEUE_SIZE / 2).is_err(),
        |raw| raw.frontend.set_vring_base(0, 7).is_err(),
        |raw| raw.frontend.set_vring_addr(0, &raw.rings_at(16)).is_err(),
        |raw| raw.frontend.set_features(1 << 32 | 1 << 30).is_err(),
    ];
    for change in changes {
        let mut raw = Raw::connect(&site.socket());
        raw.start(0);
        // What holds already may be said again.
        raw.start(0);
        assert_eq!(raw.request(READ, 0, 512), OK);
        assert!(change(&raw));
    }
}

#[test]
fn a_disabled_queue_takes_nothing() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    raw.frontend.set_vring_enable(0, false).unwrap();
    raw.offer(READ, 0, 512);
    raw.kick();
    eventually("the kick is seen", || raw.kick_is_seen());
    assert_eq!(raw.used(), 0);
    raw.frontend.set_vring_enable(0, true).unwrap();
    raw.wait_used(1);
}

#[test]
fn a_chain_that_is_in_flight_is_not_taken_again() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    raw.offer(WRITE, 0, 4096);
    raw.publish(0);
    raw.kick();
    raw.wait_used(1);
    assert_eq!((raw.stop(), raw.used()), (1, 1), "the queue is broken, and stops");
}

#[test]
fn memory_that_ends_nowhere_or_lies_upon_other_memory_is_refused() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut cases = 0;
    let mut refused = |change: fn(&mut vhost::VhostUserMemoryRegionInfo)| {
        let mut raw = Raw::connect(&site.socket());
        let (_file, mut region) = raw.more_memory(MEMORY_BYTES, 4096);
        change(&mut region);
        assert!(raw.frontend.add_mem_region(&region).is_err(), "case {cases}");
        cases += 1;
    };
    refused(|region| region.mmap_offset = u64::MAX - 4095);
    refused(|region| region.mmap_offset = 4096);
    refused(|region| region.guest_phys_addr = u64::MAX - 100);
    refused(|region| region.userspace_addr = u64::MAX - 100);
    refused(|region| region.guest_phys_addr = 0);
    refused(|region| region.memory_size = 8192);
    let mut raw = Raw::connect(&site.socket());
    let (_file, region) = raw.more_memory(MEMORY_BYTES, 4096);
    raw.frontend.add_mem_region(&region).unwrap();
    let (_file, upon) = raw.more_memory(MEMORY_BYTES + 4096, 4096);
    assert!(raw.frontend.add_mem_region(&upon).is_err(), "a front end's address would mean both");
}

#[test]
fn a_queue_whose_memory_is_taken_away_can_be_stopped() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    assert_eq!(raw.request(READ, 0, 512), OK);
    let (_file, elsewhere) = raw.more_memory(1 << 40, 4096);
    raw.frontend.set_mem_table(&[elsewhere]).unwrap();
    raw.kick();
    eventually("the kick is seen", || raw.kick_is_seen());
    assert_eq!(raw.stop(), 1);
}

#[test]
fn a_chain_may_lie_in_memory_that_was_plugged_in() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    assert!(raw.frontend.get_max_mem_slots().unwrap() >= 32);
    raw.start(0);
    let (_file, more) = raw.more_memory(MEMORY_BYTES, 4096);
    raw.frontend.add_mem_region(&more).unwrap();
    let header = raw.next_header();
    raw.put_header(READ, 0);
    raw.offer_chain(&[(header, 16, NEXT), (MEMORY_BYTES, 4096, WRITABLE), (header + 16, 1, WRITABLE)]);
    raw.kick();
    raw.wait_used(1);
    assert_eq!(raw.memory.get(header as usize + 16, 1), [OK]);
}

#[test]
fn a_new_size_is_told_as_long_as_the_front_end_listens() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    raw.frontend.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    for mib in [2, 3] {
        site.volume.image.grow(mib << 20).unwrap();
        let mut notice = [0; 12];
        ours.read_exact(&mut notice).unwrap();
        assert_eq!(notice, [2_u32, 1, 0].map(u32::to_ne_bytes).concat()[..], "CONFIG_CHANGE_MSG, version 1, nothing more");
        assert_eq!(raw.capacity_sectors(), (mib << 20) / 512);
    }
    // Another channel takes its place, and nobody has to read.
    let (mut new, theirs) = UnixStream::pair().unwrap();
    raw.frontend.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    assert_eq!(ours.read(&mut [0; 12]).unwrap(), 0, "the one before is closed");
    for mib in 4..320 {
        site.volume.image.grow(mib << 20).unwrap();
    }
    new.read_exact(&mut [0; 12]).unwrap();
    drop(raw);
    eventually("the client is gone", || site.clients() == 0);
    site.volume.image.grow(400 << 20).unwrap();
}

/// With an event index, one interrupt that is lost would be the last.
#[test]
fn a_guest_is_told_of_what_it_may_have_missed() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    // A daemon before this one was killed when the guest could see the request's end, and had not been told.
    raw.offer(READ, 0, 512);
    raw.put_used(0, 0);
    raw.set_used(1);
    raw.start(1);
    assert!(raw.is_called());
    // QEMU says how to tell its guest when the queue runs already. What was told before that, nobody heard.
    raw.replace_call();
    assert!(raw.is_called());
}
