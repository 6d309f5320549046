//! Clients that come and go, gates that shut, and rings that stop.

use crate::driver::{Driver, content};
use crate::raw::{DISCARD, Raw, WRITE};
use crate::site::{Site, eventually};
use crate::sys::Direction::{Read, Write};
use blockd::request::Access;
use blockd::volume::GateState;
use replicator_engine::tracker::LaneId;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const MIB: usize = 1 << 20;

#[test]
fn requests_wait_at_a_shut_gate_and_go_on_when_it_opens() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut driver = Driver::connect(&site.socket(), 2, MIB);
    let wanted = content(1, 8192);
    driver.write(0, &[7; 4096]);
    site.volume.gate.set(GateState::Shut);
    site.wait(site.volume.gate.drained());
    driver.memory.put(0, &wanted);
    for queue in 0..2 {
        let at = queue * 4096;
        driver.memory.queue(&mut driver.queues[queue], Write, 8192 + at as u64, at, 4096, 5).unwrap();
        driver.kick(queue);
    }
    assert!(!driver.has_completions(0) && !driver.has_completions(1));
    assert!(site.content(8192, 8192).iter().all(|byte| *byte == 0));
    site.volume.gate.set(GateState::Open);
    assert_eq!(driver.complete(0, 1), [(5, 0)]);
    assert_eq!(driver.complete(1, 1), [(5, 0)]);
    assert!(site.content(8192, 8192) == wanted);
}

#[test]
fn no_request_is_lost_while_the_gate_swings() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut driver = Driver::connect(&site.socket(), 1, MIB);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                site.volume.gate.set(GateState::Shut);
                std::thread::yield_now();
                site.volume.gate.set(GateState::Open);
                std::thread::yield_now();
            }
        });
        let _done = Done(&done);
        for round in 0..200 {
            for number in 0..32 {
                let direction = if number % 2 == 0 { Write } else { Read };
                driver.memory.queue(&mut driver.queues[0], direction, u64::from(number) * 4096, 0, 4096, number).unwrap();
            }
            assert!(driver.complete(0, 32).iter().all(|(_, ret)| *ret == 0), "round {round}");
        }
    });
}

/// Ends the other thread, however the test ends.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn what_is_inside_when_the_gate_is_fenced_fails() {
    let site = Site::serve(64 << 20, Access::ReadWrite);
    let mut driver = Driver::connect(&site.socket(), 1, 8 * MIB);
    for number in 0..16 {
        driver.memory.queue(&mut driver.queues[0], Write, u64::from(number) << 19, (number as usize) << 19, 1 << 19, number).unwrap();
    }
    driver.kick(0);
    site.volume.gate.set(GateState::Fenced);
    site.wait(site.volume.gate.drained());
    site.volume.gate.set(GateState::Open);
    // Those that were inside have failed, those that were not have waited, and none is lost.
    assert_eq!(driver.complete(0, 16).len(), 16);
    assert_eq!(driver.transfer(Read, 0, 0, 4096), 0);
}

#[test]
fn a_client_that_vanishes_leaves_nothing_behind_and_another_one_may_come() {
    let site = Site::serve(64 << 20, Access::ReadWrite);
    for round in 0..20 {
        let mut driver = Driver::connect(&site.socket(), 2, 8 * MIB);
        driver.write(0, &content(round, 4096));
        assert_eq!(site.clients(), 1);
        for number in 0..16 {
            driver
                .memory
                .queue(&mut driver.queues[1], Write, u64::from(number + 1) << 19, (number as usize) << 19, 1 << 19, number)
                .unwrap();
        }
        driver.kick(1);
        drop(driver);
        eventually("the client is gone", || site.clients() == 0);
        site.volume.gate.set(GateState::Shut);
        site.wait(site.volume.gate.drained());
        site.volume.gate.set(GateState::Open);
        assert!(site.content(0, 4096) == content(round, 4096));
    }
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..100 {
        Driver::connect(&site.socket(), 1, MIB).flush();
        eventually("the client is gone", || site.clients() == 0);
    }
    // Other tests open descriptors, too, but not two for each of our clients for ever.
    eventually("descriptors are closed", || open() < before + 100);
}

#[test]
fn two_clients_share_a_volume() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut one = Driver::connect(&site.socket(), 1, MIB);
    let mut two = Driver::connect(&site.socket(), 1, MIB);
    one.write(0, &content(1, 4096));
    assert_eq!(two.transfer(Read, 0, 0, 4096), 0);
    assert!(two.memory.get(0, 4096) == content(1, 4096));
    assert_eq!(site.clients(), 2);
    drop(one);
    eventually("one is gone", || site.clients() == 1);
    two.flush();
}

#[test]
fn an_export_ends_under_load_and_can_begin_again() {
    let site = Site::serve(64 << 20, Access::ReadWrite);
    let mut driver = Driver::connect(&site.socket(), 1, 8 * MIB);
    for number in 0..16 {
        driver.memory.queue(&mut driver.queues[0], Write, u64::from(number) << 19, (number as usize) << 19, 1 << 19, number).unwrap();
    }
    driver.kick(0);
    assert!(!site.wait(site.service.unexport("other", &site.socket())));
    assert!(site.wait(site.service.unexport("vm1", &site.socket())));
    assert_eq!(site.clients(), 0);
    assert!(!site.socket().exists());
    site.volume.gate.set(GateState::Shut);
    site.wait(site.volume.gate.drained());
    site.volume.gate.set(GateState::Open);
    site.export(Access::ReadWrite);
    Driver::connect(&site.socket(), 1, MIB).flush();
}

#[test]
fn a_ring_that_stops_has_answered_what_it_took() {
    let site = Site::serve(64 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    for round in 0..50_u16 {
        for number in 0..8 {
            raw.offer(WRITE, number * 128, 64 << 10);
        }
        raw.kick();
        let base = raw.stop();
        assert_eq!(raw.used(), base, "what was taken is used, in round {round}");
        raw.start(base);
        raw.kick();
        raw.wait_used((round + 1) * 8);
    }
    assert!(raw.statuses().all(|status| status == 0));
}

#[test]
fn a_ring_that_stops_at_a_shut_gate_has_taken_nothing() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    site.volume.gate.set(GateState::Shut);
    for sector in 0..4 {
        raw.offer(WRITE, sector * 8, 4096);
    }
    raw.kick();
    eventually("the kick is seen", || raw.kick_is_seen() && site.clients() == 1);
    assert_eq!(raw.stop(), 0);
    assert_eq!((raw.used(), site.clients()), (0, 0));
    site.volume.gate.set(GateState::Open);
    raw.start(0);
    raw.kick();
    raw.wait_used(4);
    assert!(raw.statuses().all(|status| status == 0));
}

#[test]
fn a_discard_is_not_held_up_by_a_gate_that_shuts_between_its_ranges() {
    let site = Site::serve(64 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    let mut base = 0;
    for round in 1..=50 {
        raw.start(base);
        let ranges: Vec<u8> =
            (0..16_u64).flat_map(|at| [&(at * 8192).to_le_bytes()[..], &8192_u32.to_le_bytes(), &[0; 4]].concat()).collect();
        raw.memory.put(raw.next_data() as usize, &ranges);
        raw.offer(DISCARD, 0, ranges.len() as u32);
        raw.kick();
        if round % 2 == 0 {
            eventually("the kick is seen", || raw.kick_is_seen());
        }
        site.volume.gate.set(GateState::Shut);
        site.wait(site.volume.gate.drained());
        // Stopped with the gate still shut, it was either not taken or is done; otherwise it goes on when the gate opens.
        if round % 3 == 0 {
            base = raw.stop();
            assert_eq!(raw.used(), base);
            raw.start(base);
        }
        site.volume.gate.set(GateState::Open);
        raw.kick();
        raw.wait_used(round);
        base = raw.stop();
    }
    assert!(raw.statuses().all(|status| status == 0));
}

#[test]
fn writes_over_frozen_blocks_wait_until_the_old_content_is_kept() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut driver = Driver::connect(&site.socket(), 1, MIB);
    driver.write(0, &[1; 8192]);
    site.volume.intake.cut(LaneId::FIRST).unwrap();
    // The epoch before is closing: nothing of it may be overwritten, but reads and other blocks go on.
    driver.memory.put(0, &[2; 4096]);
    driver.memory.queue(&mut driver.queues[0], Write, 0, 0, 4096, 1).unwrap();
    driver.memory.queue(&mut driver.queues[0], Write, 65536, 0, 4096, 2).unwrap();
    driver.memory.queue(&mut driver.queues[0], Read, 0, 65536, 4096, 3).unwrap();
    let mut others = driver.complete(0, 2);
    others.sort_unstable();
    assert_eq!(others, [(2, 0), (3, 0)]);
    assert_eq!(driver.memory.get(65536, 4096), [1; 4096]);
    assert_eq!(site.content(0, 4096), [1; 4096]);
    // Now it is frozen: the old content is kept, and the write goes on.
    eventually("the epoch is closed", || site.volume.intake.try_freeze(LaneId::FIRST).is_some());
    assert_eq!(driver.complete(0, 1), [(1, 0)]);
    assert_eq!(site.content(0, 8192), [[2; 4096], [1; 4096]].concat());
    site.volume.gate.set(GateState::Shut);
    site.wait(site.volume.gate.drained());
}

#[test]
fn a_ring_is_not_stopped_before_a_write_that_waits_is_done() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    assert_eq!(raw.request(WRITE, 0, 4096), 0);
    site.volume.intake.cut(LaneId::FIRST).unwrap();
    raw.offer(WRITE, 0, 4096);
    raw.offer(WRITE, 64, 4096);
    raw.kick();
    // The second one is through, so the first one waits.
    raw.wait_used(2);
    let stopping = std::thread::spawn(move || (raw.stop(), raw));
    eventually("the epoch is closed", || site.volume.intake.try_freeze(LaneId::FIRST).is_some());
    let (base, raw) = stopping.join().unwrap();
    assert_eq!((base, raw.used()), (3, 3));
    assert!(raw.statuses().all(|status| status == 0));
}

#[test]
fn a_device_that_is_reset_starts_again() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    raw.offer(WRITE, 0, 4096);
    raw.kick();
    raw.reset();
    assert_eq!(site.clients(), 0);
    raw.negotiate(Raw::FEATURES);
    let used = raw.used();
    assert!(used <= 1);
    raw.start(used);
    raw.kick();
    raw.wait_used(1);
}
