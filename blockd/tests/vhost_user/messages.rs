//! Messages that no front end should send, each by the rule that it would break. A second client never notices.

use crate::raw::{READ, Raw};
use crate::site::{Site, eventually};
use crate::wire::{self, Wire, ring, words};
use blockd::request::Access;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vhost::VhostBackend;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// A site, and a client that does its work before and after what the test does.
struct Scene {
    witness: Raw,
    site: Site,
}

impl Scene {
    fn new() -> Self {
        let site = Site::serve(MIB, Access::ReadWrite);
        let mut witness = Raw::connect(&site.socket());
        witness.start(0);
        let mut scene = Self { witness, site };
        scene.works();
        scene
    }

    fn works(&mut self) {
        assert_eq!(self.witness.request(READ, 0, 512), 0);
    }

    /// A client that has negotiated.
    fn client(&self) -> Wire {
        let mut client = Wire::connect(&self.site.socket()).unwrap();
        client.negotiate().unwrap();
        client
    }

    fn refuses(&self, what: &str, request: u32, body: &[u8], descriptors: &[BorrowedFd<'_>]) {
        assert!(!self.client().is_done(request, body, descriptors), "{what} is refused");
    }
}

/// A descriptor to hand over, and what tells when nobody has it any more.
fn traceable() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (writer.into(), reader.into())
}

fn is_closed(reader: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(reader, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0 && fds[0].revents().contains(PollFlags::HUP)
}

fn memory(name: &str, len_bytes: u64) -> OwnedFd {
    let memory = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, len_bytes).unwrap();
    memory
}

fn mappings(name: &str) -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains(name)).count()
}

/// The body of `SET_MEM_TABLE`. A region is the guest's address, its length, the front end's address and the offset in the file.
fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    [[regions.len() as u32, 0].map(u32::to_ne_bytes).concat(), regions.iter().flat_map(|region| words(*region)).collect()].concat()
}

/// Lesson: vhost-user messages, surplus descriptors leak (CVE-2019-14818).
#[test]
fn surplus_descriptors_are_closed() {
    let mut scene = Scene::new();
    for request in [wire::GET_FEATURES, wire::SET_FEATURES, wire::SET_VRING_NUM, wire::GET_CONFIG, wire::SET_VRING_CALL, 77] {
        for count in [1, 2, 8, 9, 33, wire::MAX_DESCRIPTORS] {
            let (writer, reader) = traceable();
            let client = scene.client();
            // The ring that the descriptor would be for is none, so that nobody has a use for even one.
            client.send(request, wire::VERSION, &words([u64::from(u8::MAX)]), &vec![writer.as_fd(); count]).unwrap();
            drop(writer);
            eventually("surplus descriptors are closed while their client is there", || is_closed(&reader));
            drop(client);
        }
    }
    scene.works();
}

/// They never make the next message's beginning of what is the end of this one.
#[test]
fn a_message_with_more_descriptors_than_any_has_is_refused() {
    let mut scene = Scene::new();
    let (writer, _reader) = traceable();
    for request in [wire::SET_VRING_NUM, wire::SET_MEM_TABLE, wire::SET_BACKEND_REQ_FD, 77] {
        for count in [33, wire::MAX_DESCRIPTORS] {
            scene.refuses("a message with too many descriptors", request, &ring(0, 64), &vec![writer.as_fd(); count]);
        }
    }
    scene.works();
}

/// Lesson: vhost-user messages, repeated set-up leaks (CVE-2020-10726).
#[test]
fn what_is_set_up_again_replaces_what_was_there() {
    let mut scene = Scene::new();
    for request in [wire::SET_VRING_KICK, wire::SET_VRING_CALL, wire::SET_VRING_ERR, wire::SET_BACKEND_REQ_FD] {
        let mut client = scene.client();
        let mut readers = Vec::new();
        for _ in 0..20 {
            let (writer, reader) = traceable();
            // Whether it is wanted or not, it does not stay behind.
            client.is_done(request, &words([0]), &[writer.as_fd()]);
            readers.push(reader);
        }
        let last = readers.pop().unwrap();
        eventually("all but the last are closed", || readers.iter().all(is_closed));
        drop(client);
        eventually("the last is closed", || is_closed(&last));
    }
    let mut client = scene.client();
    let guest = memory("tern-again", MIB);
    for _ in 0..20 {
        assert!(client.is_done(wire::SET_MEM_TABLE, &table(&[[0, MIB, 1 << 40, 0]]), &[guest.as_fd()]));
    }
    eventually("one mapping is left", || mappings("tern-again") == 1);
    drop(client);
    eventually("no mapping is left", || mappings("tern-again") == 0);
    scene.works();
}

/// Lesson: vhost-user messages, offset + size overflow (CVE-2020-10722).
#[test]
fn memory_whose_numbers_wrap_is_refused() {
    let mut scene = Scene::new();
    let guest = memory("tern-wraps", MIB);
    for region in [
        [0, 2 * PAGE, 1 << 40, u64::MAX - PAGE + 1],
        [u64::MAX - PAGE + 1, 2 * PAGE, 1 << 40, 0],
        [0, 2 * PAGE, u64::MAX - PAGE + 1, 0],
        [0, u64::MAX, 1 << 40, 0],
        [0, u64::MAX - PAGE + 1, 1 << 40, PAGE],
        [0, 0, 1 << 40, 0],
    ] {
        scene.refuses(&format!("{region:x?}"), wire::SET_MEM_TABLE, &table(&[region]), &[guest.as_fd()]);
        scene.refuses(&format!("{region:x?}"), wire::ADD_MEM_REG, &[words([0]), words(region)].concat(), &[guest.as_fd()]);
    }
    let two = [[0, MIB, 1 << 40, 0], [MIB / 2, MIB, 1 << 41, 0]];
    scene.refuses("memory over memory", wire::SET_MEM_TABLE, &table(&two), &[guest.as_fd(); 2]);
    scene.refuses("fewer descriptors than regions", wire::SET_MEM_TABLE, &table(&two), &[guest.as_fd()]);
    scene.refuses("more descriptors than regions", wire::SET_MEM_TABLE, &table(&two[..1]), &[guest.as_fd(); 2]);
    let mut many = table(&two);
    many[0] = 200;
    scene.refuses("more regions than the message has", wire::SET_MEM_TABLE, &many, &[guest.as_fd(); 2]);
    eventually("nothing stays mapped", || mappings("tern-wraps") == 0);
    scene.works();
}

/// Lesson: vhost-user messages, lengths used before they are checked; those of the configuration space are its own.
#[test]
fn lengths_and_rings_that_do_not_exist_are_refused() {
    let mut scene = Scene::new();
    let config = |offset: u32, len: u32, body: usize| [[offset, len, 0].map(u32::to_ne_bytes).concat(), vec![0; body]].concat();
    for (offset, len, body) in [(0, 257, 257), (256, 1, 1), (u32::MAX, 1, 1), (1, u32::MAX, 1), (0, 8, 4), (0, 4, 8), (0, 0, 0)] {
        let mut client = scene.client();
        client.send(wire::GET_CONFIG, wire::VERSION, &config(offset, len, body), &[]).unwrap();
        // An answer without content is the protocol's way to refuse.
        assert!(client.receive().map_or(true, |(_, answer)| answer.len() <= 12), "{len} bytes at {offset}");
        scene.refuses("a write of the configuration space", wire::SET_CONFIG, &config(offset, len, body), &[]);
    }
    for (request, value) in [(wire::SET_VRING_NUM, 128), (wire::SET_VRING_BASE, 0), (wire::SET_VRING_ENABLE, 1), (wire::GET_VRING_BASE, 0)]
    {
        for index in [64, 65, 255, u32::MAX] {
            scene.refuses(&format!("message {request} for ring {index}"), request, &ring(index, value), &[]);
        }
    }
    for entries in [0, 3, 1025, 32768, u32::MAX] {
        scene.refuses(&format!("a ring of {entries}"), wire::SET_VRING_NUM, &ring(0, entries), &[]);
    }
    for len in [0_u32, 7, 9, 4097, u32::MAX] {
        let mut client = scene.client();
        let header = [wire::SET_VRING_NUM, wire::VERSION, len].map(u32::to_ne_bytes).concat();
        client.send_bytes(&[header, vec![0; 64]].concat(), &[]).unwrap();
        assert!(client.receive().is_err(), "a body of {len} bytes ends the connection");
    }
    scene.works();
}

/// Lesson: vhost-user messages, log count overflow (CVE-2019-14835). There is no log, so there is no bit to set outside of one.
#[test]
fn dirty_logging_is_not_offered_and_refused() {
    const LOG_ALL: u64 = 1 << 26;
    const LOG_SHMFD: u64 = 1 << 1;
    let mut scene = Scene::new();
    let mut client = scene.client();
    assert_eq!((client.ask(wire::GET_FEATURES).unwrap() & LOG_ALL, client.ask(wire::GET_PROTOCOL_FEATURES).unwrap() & LOG_SHMFD), (0, 0));
    let log = memory("tern-log", PAGE);
    for (len_bytes, offset) in [(PAGE, 0), (u64::MAX, 0), (PAGE, u64::MAX), (1 << 40, 0)] {
        scene.refuses("a log", wire::SET_LOG_BASE, &words([len_bytes, offset]), &[log.as_fd()]);
    }
    eventually("nothing stays mapped", || mappings("tern-log") == 0);
    scene.works();
}

/// Lesson: vhost-user messages, a queue set up after its start (Firecracker 2026-5747).
#[test]
fn a_ring_that_runs_keeps_its_set_up() {
    let scene = Scene::new();
    let other = |change: &dyn Fn(&Raw) -> bool, what: &str| {
        let mut raw = Raw::connect(&scene.site.socket());
        raw.start(0);
        assert_eq!(raw.request(READ, 0, 512), 0);
        assert!(!change(&raw), "{what} is refused while the ring runs");
    };
    other(&|raw| raw.frontend.set_vring_num(0, 128).is_ok(), "another size");
    other(&|raw| raw.frontend.set_vring_base(0, 7).is_ok(), "another position");
    other(&|raw| raw.frontend.set_vring_addr(0, &raw.rings_at(PAGE * 4)).is_ok(), "another place");
    // QEMU says again where the rings are when it begins to log: the same is no change.
    let mut raw = Raw::connect(&scene.site.socket());
    raw.start(0);
    raw.frontend.set_vring_addr(0, &raw.rings_at(0)).unwrap();
    assert_eq!(raw.request(READ, 0, 512), 0);
}
