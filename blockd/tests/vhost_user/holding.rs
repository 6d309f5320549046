//! Requests that wait for the standby: those that the promise covers, and none keeps a queue from stopping.

use crate::driver::{Driver, content};
use crate::raw::{Raw, WRITE};
use crate::site::{Site, eventually};
use crate::sys::Direction;
use blockd::request::Access;
use blockd::volume::Suspension;
use replicator_engine::acknowledgement::Promise;
use replicator_engine::tracker::LaneId;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

#[test]
fn what_the_promise_covers_is_answered_once_the_standby_has_its_epoch() {
    let site = Site::serve(MIB, Access::ReadWrite);
    let held = site.volume.intake.held();
    let mut driver = Driver::connect(&site.socket(), 1, MIB as usize);
    held.open(LaneId::FIRST, Promise::Barrier, Box::new(|| {}));
    driver.write(0, &content(1, 4096));
    driver.queues[0].flush(7).unwrap();
    driver.kick(0);
    eventually("the flush waits", || held.look(LaneId::FIRST).requests == 1);
    held.let_go(LaneId::FIRST, Some(0));
    assert!(!driver.has_completions(0) && held.look(LaneId::FIRST).requests == 1, "its epoch is the first");
    held.let_go(LaneId::FIRST, Some(1));
    assert_eq!(driver.complete(0, 1), [(7, 0)]);

    held.enforce(LaneId::FIRST, Promise::Sync);
    driver.memory.queue(&mut driver.queues[0], Direction::Write, 4096, 0, 4096, 8).unwrap();
    driver.kick(0);
    eventually("the write waits", || held.look(LaneId::FIRST).requests == 1);
    assert_eq!(site.content(4096, 4096), content(1, 4096), "it is done here");
    held.enforce(LaneId::FIRST, Promise::Local);
    held.let_go(LaneId::FIRST, Some(0));
    assert_eq!(driver.complete(0, 1), [(8, 0)]);
    drop(driver);
    held.close(LaneId::FIRST);
}

#[test]
fn a_suspended_queue_pops_nothing_and_stops_at_once() {
    let site = Site::serve(MIB, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    site.volume.gate.suspend(Suspension::Promise);
    raw.offer(WRITE, 0, 4096);
    raw.kick();
    let began = Instant::now();
    assert_eq!(raw.stop(), 0, "nothing was popped");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(site.content(0, 4096).iter().all(|byte| *byte == 0));
}

#[test]
fn a_queue_whose_requests_wait_stops_all_the_same_and_they_fail() {
    let site = Site::serve(MIB, Access::ReadWrite);
    let held = site.volume.intake.held();
    held.open(LaneId::FIRST, Promise::Sync, Box::new(|| {}));
    let mut raw = Raw::connect(&site.socket());
    raw.start(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // As the thread that replicates does.
        scope.spawn(|| {
            while !over.load(SeqCst) {
                held.let_go(LaneId::FIRST, None);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        raw.offer(WRITE, 0, 4096);
        raw.kick();
        eventually("the write waits", || held.look(LaneId::FIRST).requests == 1);
        assert_eq!(raw.stop(), 1);
        over.store(true, SeqCst);
    });
    assert_eq!((held.look(LaneId::FIRST).requests, raw.statuses().next()), (0, Some(1)), "an I/O error");
    drop(raw);
    held.close(LaneId::FIRST);
}
