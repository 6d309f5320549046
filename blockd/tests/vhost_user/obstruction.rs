//! Front ends that stand in the way of their own end: nothing of what they do keeps a queue from stopping or an export from ending.

use crate::raw::{Raw, WRITE};
use crate::site::{Site, eventually};
use crate::wire::{self, Wire, ring, words};
use blockd::request::Access;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

const OK: u8 = 0;
const MIB: u64 = 1 << 20;
const FRONT_END: u64 = 1 << 40;

#[test]
fn a_kick_that_cannot_be_waited_for_keeps_its_queue_from_nothing_but_work() {
    let site = Site::serve(MIB, Access::ReadWrite);
    let mut client = Wire::connect(&site.socket()).unwrap();
    client.negotiate().unwrap();
    let guest = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&guest, MIB).unwrap();
    let table = [[1_u32, 0].map(u32::to_ne_bytes).concat(), words([0, MIB, FRONT_END, 0])].concat();
    assert!(client.is_done(wire::SET_MEM_TABLE, &table, &[guest.as_fd()]));
    assert!(client.is_done(wire::SET_VRING_NUM, &ring(0, 64), &[]));
    let addresses = [ring(0, 0), words([FRONT_END, FRONT_END + 0x2000, FRONT_END + 0x1000, 0])].concat();
    assert!(client.is_done(wire::SET_VRING_ADDR, &addresses, &[]));
    assert!(client.is_done(wire::SET_VRING_ENABLE, &ring(0, 1), &[]));
    // A plain file: it can be read at any time, and nobody tells when.
    assert!(client.is_done(wire::SET_VRING_KICK, &words([0]), &[guest.as_fd()]));
    client.send(wire::GET_VRING_BASE, wire::VERSION, &ring(0, 0), &[]).unwrap();
    assert_eq!(client.receive().unwrap().0, wire::GET_VRING_BASE);
}

#[test]
fn an_export_ends_though_a_client_reads_no_answers() {
    let site = Site::serve(MIB, Access::ReadWrite);
    let client = Wire::connect(&site.socket()).unwrap();
    client.0.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    // Until it takes no more questions, because nobody takes its answers.
    while client.send(wire::GET_FEATURES, wire::VERSION, &[], &[]).is_ok() {}
    site.wait(site.service.unexport("vm1", &site.socket()));
    site.export(Access::ReadWrite);
}

#[test]
fn a_guest_that_chose_no_cache_keeps_its_choice_as_long_as_it_believes_in_it() {
    let site = Site::serve(MIB, Access::ReadWrite);
    let mut raw = Raw::connect(&site.socket());
    raw.set_writeback(0);
    let (record, file) = raw.frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, 1, 256)).unwrap();
    // A front end that pauses its guest says the features again, but not what the guest has written to the configuration space.
    raw.negotiate(Raw::FEATURES);
    assert_eq!(raw.writeback(), 0, "after a pause");
    raw.reset();
    raw.negotiate(Raw::FEATURES);
    assert_eq!(raw.writeback(), 0, "after a reset: it may have kept the configuration space");
    drop(raw);
    eventually("the client is gone", || site.clients() == 0);
    // Another daemon is told no more than features and the record.
    let mut raw = Raw::connect(&site.socket());
    assert_eq!(raw.writeback(), 1);
    raw.frontend.set_inflight_fd(&record, file.as_raw_fd()).unwrap();
    raw.negotiate(Raw::FEATURES);
    raw.start(0);
    let _ = site.volume.image.note_sync(Err(std::io::Error::other("a fault of the test")));
    assert_ne!(raw.request(WRITE, 0, 4096), OK, "it is followed by a sync");
    raw.set_writeback(1);
    assert_eq!(raw.request(WRITE, 0, 4096), OK);
}
