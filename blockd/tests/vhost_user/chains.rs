//! Descriptor chains that no driver should make, each by the rule that it would break.

use crate::raw::{MEMORY_BYTES, READ, Raw, WRITABLE, WRITE};
use crate::site::{Site, eventually};
use blockd::request::Access;
use replicator_engine::tracker::LaneId;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use vhost::vhost_user::VhostUserFrontend;

const MIB: u64 = 1 << 20;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;

fn started() -> (Site, Raw) {
    let site = Site::serve(MIB, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    (site, raw)
}

/// Lesson: descriptor chains, a range that is not mapped as a whole (CVE-2018-1059).
#[test]
fn a_range_that_is_mapped_in_part_is_refused_whole() {
    let (site, mut raw) = started();
    // Between the first region and this one a page is missing.
    let (_file, more) = raw.more_memory(MEMORY_BYTES + 4096, 8192);
    raw.frontend.add_mem_region(&more).unwrap();
    let ends: [(u64, u32, u8); 6] = [
        (MEMORY_BYTES - 4096, 4096, OK),
        (MEMORY_BYTES - 4096, 4608, IO_ERROR),
        (MEMORY_BYTES - 4096, 12288, IO_ERROR),
        (MEMORY_BYTES + 4096, 8192, OK),
        (MEMORY_BYTES + 4096, 8704, IO_ERROR),
        (MEMORY_BYTES + 3584, 1024, IO_ERROR),
    ];
    raw.memory.put((MEMORY_BYTES - 4096) as usize, &[7; 4096]);
    for (address, len, status) in ends {
        for (kind, direction) in [(WRITE, 0), (READ, WRITABLE)] {
            let (header, used, before) = (raw.next_header(), raw.used(), site.content(0, MIB as usize));
            raw.put_header(kind, 64);
            raw.offer_chain(&[(header, 16, 0), (address, len, direction), (header + 16, 1, WRITABLE)]);
            raw.kick();
            raw.wait_used(used.wrapping_add(1));
            assert_eq!(raw.memory.get(header as usize + 16, 1), [status], "{len} bytes at {address:#x}");
            assert!(status == OK || site.content(0, MIB as usize) == before, "nothing of it is written");
        }
    }
    assert_eq!(raw.request(READ, 0, 512), OK);
}

/// Lesson: descriptor chains, memory read twice (CVE-2020-14375): what was checked is what is done, whatever the guest writes meanwhile.
#[test]
fn a_header_that_changes_after_it_was_read_changes_nothing() {
    const ROUNDS: usize = 3000;
    let (site, mut raw) = started();
    let size = site.volume.size_bytes();
    let done = AtomicBool::new(false);
    let memory = raw.memory.clone();
    let headers = raw.headers();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let kinds = [READ, WRITE].map(u32::to_le_bytes);
            let sectors = [0, size / 512 - 1, size / 512, u64::MAX / 512, u64::MAX].map(u64::to_le_bytes);
            for round in 0.. {
                if done.load(SeqCst) {
                    return;
                }
                for header in headers.clone() {
                    memory.put(header, &kinds[round % 2]);
                    memory.put(header + 8, &sectors[round % 5]);
                }
            }
        });
        for _ in 0..ROUNDS {
            // Data that can only be written to: as a read it is answered, as a write it is refused, and never anything else.
            let status = raw.request(READ, 0, 512);
            assert!([OK, IO_ERROR].contains(&status), "{status}");
        }
        done.store(true, SeqCst);
    });
    assert!(site.content(0, size as usize).iter().all(|byte| *byte == 0), "nothing was written");
}

/// Lesson: descriptor chains, the same head twice in flight (Cloud Hypervisor 2026-45782).
#[test]
fn a_head_that_is_in_flight_is_not_taken_again() {
    let (site, mut raw) = started();
    assert_eq!(raw.request(WRITE, 0, 4096), OK);
    // A write over a block of the epoch that closes waits, so it is in flight as long as the test likes.
    site.volume.intake.cut(LaneId::FIRST).unwrap();
    let header = raw.next_header();
    let head = raw.next_head();
    raw.offer(WRITE, 0, 4096);
    raw.publish(head);
    raw.publish(head);
    raw.kick();
    eventually("the kick is seen", || raw.kick_is_seen());
    let stopping = std::thread::spawn(move || (raw.stop(), raw));
    eventually("the epoch is closed", || site.volume.intake.try_freeze(LaneId::FIRST).is_some());
    let (_, mut raw) = stopping.join().unwrap();
    // The first is done. The others are refused: given back without a word, or not taken at all.
    assert_eq!(raw.memory.get(header as usize + 16, 1), [OK]);
    assert!((2..=4).contains(&raw.used()), "{}", raw.used());
    let used = raw.used();
    raw.set_available(used);
    raw.start(used);
    assert_eq!(raw.request(READ, 0, 512), OK);
}

/// Lesson: a request in flight across a reset (QEMU CVE-2023-5088): it is done before the reset is, where it belongs, and never after it.
#[test]
fn a_request_in_flight_is_over_when_the_reset_is() {
    let (site, mut raw) = started();
    raw.memory.put(raw.next_data() as usize, &[7; 4096]);
    assert_eq!(raw.request(WRITE, 64, 4096), OK);
    site.volume.intake.cut(LaneId::FIRST).unwrap();
    raw.memory.put(raw.next_data() as usize, &[9; 4096]);
    raw.offer(WRITE, 64, 4096);
    raw.kick();
    eventually("the kick is seen", || raw.kick_is_seen());
    let resetting = std::thread::spawn(move || {
        raw.reset();
        raw
    });
    eventually("the epoch is closed", || site.volume.intake.try_freeze(LaneId::FIRST).is_some());
    let mut raw = resetting.join().unwrap();
    let (content, used) = (site.content(0, MIB as usize), raw.used());
    assert!(content[..64 * 512].iter().all(|byte| *byte == 0), "sector 0 is untouched");
    // What was the rings' memory is the guest's own again: nothing is written there any more.
    raw.set_available(used);
    raw.negotiate(Raw::FEATURES);
    raw.start(used);
    assert_eq!(raw.request(READ, 0, 512), OK);
    assert_eq!(site.content(0, MIB as usize), content, "nothing is written later");
}
