//! Guests and front ends that mean no good.

use crate::raw::{DISCARD, MEMORY_BYTES, NEXT, QUEUE_SIZE, READ, Raw, WRITABLE, WRITE};
use crate::site::{Site, eventually};
use blockd::request::Access;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn started(size_bytes: u64) -> (Site, Raw) {
    let site = Site::serve(size_bytes, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    (site, raw)
}

#[test]
fn requests_that_make_no_sense_are_answered_and_the_queue_goes_on() {
    let (_site, mut raw) = started(1 << 20);
    assert_eq!(raw.request(WRITE, 2047, 1024), IO_ERROR, "beyond the end");
    assert_eq!(raw.request(WRITE, u64::MAX, 512), IO_ERROR);
    assert_eq!(raw.request(READ, 0, 511), IO_ERROR);
    assert_eq!(raw.request(READ, 0, u32::MAX - 511 - 16), IO_ERROR, "4 GiB");
    assert_eq!(raw.request(WRITE, 0, MEMORY_BYTES as u32), IO_ERROR, "beyond the memory");
    assert_eq!(raw.request(77, 0, 512), UNSUPPORTED);
    assert_eq!(raw.request(DISCARD, 0, 511), IO_ERROR);
    assert_eq!(raw.request(READ, 0, 512), OK);
    assert_eq!(raw.used_len(7), 513);
}

#[test]
fn chains_without_a_status_are_used_up_with_nothing_written() {
    let (_site, mut raw) = started(1 << 20);
    let header = raw.next_header();
    raw.put_header(READ, 0);
    // A read-only status, one outside of memory, and none.
    raw.offer_chain(&[(header, 16, 0), (header + 16, 1, 0)]);
    raw.offer_chain(&[(header, 16, 0), (MEMORY_BYTES, 1, WRITABLE)]);
    raw.offer_chain(&[(header, 16, 0)]);
    // A loop, and a chain that leads out of the table.
    raw.put_descriptor(200, header, 16, NEXT, 201);
    raw.put_descriptor(201, header + 16, 1, WRITABLE | NEXT, 200);
    raw.publish(200);
    raw.put_descriptor(210, header, 16, NEXT, u16::MAX);
    raw.publish(210);
    raw.kick();
    raw.wait_used(5);
    assert!((0..5).all(|index| raw.used_len(index) == 0));
    assert_eq!(raw.request(READ, 0, 512), OK);
}

#[test]
fn a_queue_that_breaks_its_rules_is_left_alone_and_can_be_stopped() {
    let (site, mut raw) = started(1 << 20);
    // More chains than the queue has descriptors.
    raw.set_available(QUEUE_SIZE + 1);
    raw.kick();
    eventually("the kick is seen", || raw.kick_is_seen());
    assert_eq!(raw.stop(), 0);
    assert_eq!(raw.used(), 0);
    raw.set_available(0);
    raw.start(0);
    assert_eq!(raw.request(READ, 0, 512), OK);
    // A head that is no descriptor: there is nowhere to give it back to.
    raw.publish(QUEUE_SIZE);
    raw.offer(READ, 0, 512);
    raw.kick();
    raw.wait_used(2);
    drop(raw);
    eventually("the client is gone", || site.clients() == 0);
}

#[test]
fn memory_may_be_replaced_while_requests_use_it() {
    let (_site, mut raw) = started(64 << 20);
    for round in 1..=50_u16 {
        for number in 0..32 {
            raw.offer(WRITE, number * 128, 64 << 10);
        }
        raw.kick();
        raw.tell_memory();
        raw.wait_used(round * 32);
    }
    assert!(raw.statuses().all(|status| status == OK));
}

#[test]
fn memory_can_be_used_as_soon_as_it_was_added() {
    let (_site, mut raw) = started(64 << 20);
    let (_file, more) = raw.more_memory(MEMORY_BYTES, 4096);
    for round in 1..=100_u16 {
        // Keeps the queue's thread busy meanwhile.
        for number in 0..32 {
            raw.offer(READ, number * 8, 4096);
        }
        raw.kick();
        raw.frontend.add_mem_region(&more).unwrap();
        let header = raw.next_header();
        raw.put_header(READ, 0);
        raw.offer_chain(&[(header, 16, 0), (MEMORY_BYTES, 4096, WRITABLE), (header + 16, 1, WRITABLE)]);
        raw.kick();
        raw.wait_used(round * 33);
        assert_eq!(raw.memory.get(header as usize + 16, 1), [OK], "round {round}");
        raw.frontend.remove_mem_region(&more).unwrap();
    }
}

#[test]
fn several_ranges_are_discarded_one_after_the_other() {
    let (site, mut raw) = started(1 << 20);
    raw.memory.put(raw.next_data() as usize, &[7; 64 << 10]);
    assert_eq!(raw.request(WRITE, 0, 64 << 10), OK);
    let range = |sector: u64, sectors: u32| [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat();
    raw.memory.put(raw.next_data() as usize, &[range(8, 8), range(32, 16)].concat());
    assert_eq!(raw.request(DISCARD, 0, 32), OK);
    for (at, page) in site.content(0, 64 << 10).chunks(4096).enumerate() {
        let expected = if [1, 4, 5].contains(&at) { 0 } else { 7 };
        assert!(page.iter().all(|byte| *byte == expected), "page {at}");
    }
    raw.memory.put(raw.next_data() as usize, &[range(0, 8), range(4096, 8)].concat());
    assert_eq!(raw.request(DISCARD, 0, 32), IO_ERROR, "one of them is beyond the end");
    assert_eq!(site.content(0, 4096), [7; 4096], "nothing is done by halves that can be seen before");
}

#[test]
fn writes_are_durable_when_the_guest_wants_no_cache() {
    let (site, mut raw) = started(1 << 20);
    assert_eq!(raw.writeback(), 1);
    raw.set_writeback(0);
    assert_eq!(raw.writeback(), 0);
    raw.memory.put(raw.next_data() as usize, &[9; 4096]);
    assert_eq!(raw.request(WRITE, 0, 4096), OK);
    assert_eq!(site.content(0, 4096), [9; 4096]);
    // Once a sync has failed, none is believed any more: so it can be seen that this write is followed by one.
    let _ = site.volume.image.note_sync(Err(std::io::Error::other("a fault of the test")));
    assert_eq!(raw.request(WRITE, 0, 4096), IO_ERROR);
    raw.set_writeback(1);
    assert_eq!(raw.request(WRITE, 0, 4096), OK);
}

#[test]
fn a_guest_that_cannot_flush_has_no_cache() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.negotiate(1 << 32 | 1 << 30);
    raw.start(0);
    assert_eq!(raw.writeback(), 0);
    let _ = site.volume.image.note_sync(Err(std::io::Error::other("a fault of the test")));
    assert_eq!(raw.request(WRITE, 0, 4096), IO_ERROR);
}

/// Lesson: one client cannot end another.
#[test]
fn wishes_that_were_not_offered_end_the_connection_and_nothing_else() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut garbage = UnixStream::connect(site.socket()).unwrap();
    garbage.write_all(&[0xff; 4096]).unwrap();
    let _half = UnixStream::connect(site.socket()).unwrap().write_all(&[1, 0]);
    let raw = Raw::connect(&site.socket());
    assert!(raw.frontend.set_features(u64::MAX).is_err());
    let raw = Raw::connect(&site.socket());
    assert!(raw.frontend.set_vring_num(0, 4096).is_err());
    let mut raw = Raw::connect(&site.socket());
    assert!(raw.frontend.set_config(0, VhostUserConfigFlags::WRITABLE, &[1; 8]).is_err());
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    assert_eq!(raw.request(READ, 0, 512), OK);
}
