//! Clients that nobody should use: each is cut off or refused, and no other client notices.

use crate::raw::Raw;
use crate::site::{Site, eventually};
use blockd::nbd::handshake::{MAX_OPTION_BYTES, MAX_OPTIONS};
use blockd::nbd::wire::{OPTION_REPLY_MAGIC, command, option, option_reply};
use blockd::nbd::{MAX_REQUESTS, MAX_WINDOW_BYTES};
use blockd::request::MAX_TRANSFER_BYTES;
use blockd::volume::GateState;
use std::io::Write;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// A client that does its work, before and after what the test does.
struct Witness(Raw, u64);

impl Witness {
    fn new(site: &Site) -> Self {
        let mut witness = Self(Raw::attach(&site.path("nbd.sock")), 0);
        witness.works();
        witness
    }

    fn works(&mut self) {
        self.1 += 1;
        self.0.request(command::WRITE, self.1, 4096, 4096, &[9; 4096]);
        assert_eq!(self.0.reply(), (0, self.1));
        self.0.request(command::READ, self.1, 4096, 4096, &[]);
        assert_eq!(self.0.reply(), (0, self.1));
        assert_eq!(self.0.receive(4096).unwrap(), [9; 4096]);
    }
}

/// Lesson: clients that say nothing or vanish (CVE-2024-7409, CVE-2013-7441).
#[test]
fn clients_that_say_nothing_are_cut_off_at_the_deadline_and_hold_no_place_after_it() {
    let site = Site::with(|options| {
        options.handshake_timeout = Duration::from_millis(300);
        options.max_connections = 6;
    });
    site.serve("vm1", MIB);
    let path = site.path("nbd.sock");
    let mut witness = Witness::new(&site);
    let mut silent: Vec<_> = (0..3).map(|_| Raw::connect(&path)).collect();
    let mut half = silent.pop().unwrap();
    half.send(b"\0\0");
    silent.iter_mut().chain([&mut half]).for_each(|client| drop(client.receive(18).unwrap()));
    silent.iter_mut().chain([&mut half]).for_each(Raw::expect_end);
    // There is one for each place but the witness's.
    let _others: Vec<_> = (0..5).map(|_| Raw::attach(&path)).collect();
    Raw::connect(&path).expect_end();
    witness.works();
}

/// Lesson: clients that say nothing (CVE-2024-7409); they do not keep out those that do, even before the deadline.
#[test]
fn clients_that_say_nothing_leave_room_for_others() {
    let site = Site::with(|options| {
        options.handshake_timeout = Duration::from_secs(60);
        options.max_connections = 4;
    });
    site.serve("vm1", MIB);
    let path = site.path("nbd.sock");
    let mut witness = Witness::new(&site);
    let silent: Vec<_> = (0..100).map(|_| Raw::connect(&path)).collect();
    eventually("one that speaks is served", || {
        let mut client = Raw::connect(&path);
        client.receive(18).is_ok() && {
            client.send(&3_u32.to_be_bytes());
            client.option(option::EXPORT_NAME, 0, &[]);
            client.receive(10).is_ok()
        }
    });
    witness.works();
    drop(silent);
}

/// Lesson: the deadline is one for the whole handshake, however busy the client seems.
#[test]
fn a_client_that_says_little_at_a_time_is_cut_off_at_the_same_deadline() {
    let site = Site::with(|options| options.handshake_timeout = Duration::from_millis(500));
    site.serve("vm1", MIB);
    let mut client = Raw::greet(&site.path("nbd.sock"));
    let began = Instant::now();
    client.option(99, MAX_OPTION_BYTES, &[]);
    while client.is_silent() {
        // It may be too late for it.
        let _ = client.0.write_all(b".");
    }
    assert!(began.elapsed() >= Duration::from_millis(400) && began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn nonsense_in_the_handshake_ends_the_connection() {
    let site = Site::new();
    site.serve("vm1", MIB);
    let path = site.path("nbd.sock");
    let mut witness = Witness::new(&site);

    let mut flags = Raw::connect(&path);
    flags.send(&0x8000_0003_u32.to_be_bytes());
    flags.expect_end();

    let mut magic = Raw::greet(&path);
    magic.send(&[0x55; 16]);
    magic.expect_end();

    let mut unknown = Raw::greet(&path);
    unknown.option(option::EXPORT_NAME, 3, b"vm2");
    unknown.expect_end();

    let mut many = Raw::greet(&path);
    for _ in 0..MAX_OPTIONS {
        many.option(99, 0, &[]);
        many.receive(20 + "not supported".len()).unwrap();
    }
    many.option(99, 0, &[]);
    many.expect_end();

    let mut vanished = Raw::greet(&path);
    vanished.option(option::GO, 100, b"half of it");
    drop(vanished);
    witness.works();
}

/// Lesson: lengths used before they are checked; limit, limit − 1 and limit + 1 over the socket.
#[test]
fn an_option_may_have_64_kib_and_not_a_byte_more() {
    let site = Site::new();
    site.serve("vm1", MIB);
    let path = site.path("nbd.sock");
    let mut fits = Raw::greet(&path);
    for len_bytes in [MAX_OPTION_BYTES - 1, MAX_OPTION_BYTES] {
        fits.option(99, len_bytes, &vec![0; len_bytes as usize]);
        let reply = fits.receive(20 + "not supported".len()).unwrap();
        assert_eq!(reply[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        assert_eq!(reply[12..16], option_reply::ERR_UNSUP.to_be_bytes());
    }
    for len_bytes in [MAX_OPTION_BYTES + 1, u32::MAX] {
        let mut too_long = Raw::greet(&path);
        too_long.option(99, len_bytes, &[]);
        assert_eq!(too_long.receive(20).unwrap()[12..16], option_reply::ERR_TOO_BIG.to_be_bytes());
        too_long.expect_end();
    }
}

#[test]
fn requests_beyond_the_end_or_the_limits_are_errors_and_the_connection_goes_on() {
    let site = Site::new();
    site.serve("vm1", MIB);
    let mut client = Raw::attach(&site.path("nbd.sock"));
    let max = MAX_TRANSFER_BYTES as u32;
    for (kind, offset, len, data, error) in [
        (command::READ, MIB - 512, 513, 0, EINVAL),
        (command::READ, u64::MAX, 512, 0, EINVAL),
        (command::READ, 0, max + 1, 0, EINVAL),
        (command::READ, 0, 0, 0, EINVAL),
        (command::WRITE, MIB - 512, 1024, 1024, ENOSPC),
        (command::WRITE, 0, max + 1, max as usize + 1, EINVAL),
        (command::WRITE_ZEROES, MIB, 1, 0, ENOSPC),
        (command::TRIM, 1, MIB as u32, 0, EINVAL),
        (command::BLOCK_STATUS, 0, 512, 0, EINVAL),
        (77, 0, 512, 0, EINVAL),
        (command::WRITE, MIB - 512, 512, 512, 0),
    ] {
        client.request(kind, offset ^ 1, offset, len, &vec![1; data]);
        assert_eq!(client.reply(), (error, offset ^ 1), "{kind} {offset} {len}");
    }
}

/// Lesson: one client cannot end another.
#[test]
fn nonsense_in_transmission_ends_that_connection_only() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", MIB);
    let path = site.path("nbd.sock");
    let mut witness = Witness::new(&site);

    let mut magic = Raw::attach(&path);
    magic.send(&[0x25; 28]);
    magic.expect_end();

    let mut endless = Raw::attach(&path);
    endless.request(command::WRITE, 1, 0, u32::MAX, &[]);
    endless.expect_end();

    // Half-sent: a header, a small write, a large one.
    for bytes in [10, 28 + 100, 28 + 300_000] {
        let mut half = Raw::attach(&path);
        let data = vec![7; 512 << 10];
        let mut whole = Vec::from(*b"\x25\x60\x95\x13\0\0\0\x01cookie!!\0\0\0\0\0\0\0\0");
        whole.extend((data.len() as u32).to_be_bytes());
        whole.extend(data);
        half.send(&whole[..bytes]);
        drop(half);
    }
    eventually("only the witness is attached", || volume.clients.nbd.load(SeqCst) == 1);
    witness.works();
    witness.0.request(command::READ, 5, 0, 512, &[]);
    assert_eq!((witness.0.reply(), witness.0.receive(512).unwrap()), ((0, 5), vec![0; 512]), "half a write is none");
}

/// Lesson: clients that say nothing; between requests they may.
#[test]
fn a_client_that_stops_in_the_middle_of_a_request_is_cut_off_and_an_idle_one_is_not() {
    let site = Site::with(|options| options.stall_timeout = Duration::from_secs(1));
    let (volume, _) = site.serve("vm1", MIB);
    let path = site.path("nbd.sock");
    let mut idle = Witness::new(&site);
    let half = |announced: u32, sent: usize| {
        let mut client = Raw::attach(&path);
        client.request(command::WRITE, 1, 0, announced, &vec![7; sent]);
        client
    };
    // In the data of a small write, of a large one, and of one that is refused.
    let mut clients = [half(4096, 100), half(512 << 10, 100_000), half(MAX_TRANSFER_BYTES as u32 + 1, 100)];
    let mut in_header = Raw::attach(&path);
    in_header.send(&[0x25, 0x60]);
    let began = Instant::now();
    clients.iter_mut().chain([&mut in_header]).for_each(Raw::expect_end);
    assert!(began.elapsed() < Duration::from_secs(10));
    eventually("only the idle one is attached", || volume.clients.nbd.load(SeqCst) == 1);
    idle.works();
}

#[test]
fn a_client_that_vanishes_with_requests_under_way_leaves_nothing_behind() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", 64 * MIB);
    let mut witness = Witness::new(&site);
    for round in 0..20 {
        let mut client = Raw::attach(&site.path("nbd.sock"));
        for cookie in 0..32 {
            client.request(command::READ, cookie, cookie * MIB, MIB as u32, &[]);
            client.request(command::WRITE, cookie, 40 * MIB + cookie * 4096, 4096, &[round; 4096]);
            client.request(command::TRIM, cookie, 50 * MIB, MIB as u32, &[]);
        }
        drop(client);
    }
    eventually("only the witness is attached", || volume.clients.nbd.load(SeqCst) == 1);
    witness.works();
    volume.gate.set(GateState::Shut);
    site.wait(volume.gate.drained());
    assert!(volume.intake.tracker().is_closed());
    volume.gate.set(GateState::Open);
}

/// Whether the server reads on is seen by nonsense, which ends the connection when it is read. Nothing is answered before the gate opens.
#[test]
fn a_connection_has_so_many_requests_under_way_and_not_one_more() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", 64 * MIB);
    let (requests, max_bytes) = (MAX_REQUESTS as usize, MAX_TRANSFER_BYTES as u32);
    assert_eq!(MAX_WINDOW_BYTES, 2 * MAX_TRANSFER_BYTES);
    for (lens, reads_on) in [
        (vec![512; requests - 1], true),
        (vec![512; requests], true),
        (vec![512; requests + 1], false),
        (vec![max_bytes, max_bytes - 1], true),
        (vec![max_bytes, max_bytes], true),
        (vec![max_bytes, max_bytes, 1], false),
    ] {
        volume.gate.set(GateState::Shut);
        let mut client = Raw::attach(&site.path("nbd.sock"));
        lens.iter().for_each(|len| client.request(command::READ, 0, 0, *len, &[]));
        client.send(&[0x25; 28]);
        if !reads_on {
            assert!(client.is_silent());
            volume.gate.set(GateState::Open);
            assert_eq!(client.reply(), (0, 0));
        }
        client.expect_end();
    }
    volume.gate.set(GateState::Open);
}

/// Lesson: one client cannot end another. Together these have all the memory that there is for data, and keep it.
#[test]
fn clients_that_wait_with_all_that_they_may_ask_for_do_not_hold_up_other_volumes() {
    let site = Site::new();
    let (_witnessed, _) = site.serve("vm1", MIB);
    let mut witness = Witness::new(&site);
    let volume = site.volume("vm2", 64 * MIB);
    site.export(&volume, &site.socket("waiting.sock"));
    volume.gate.set(GateState::Shut);
    let waiting: Vec<_> = (0..30)
        .map(|_| {
            let mut client = Raw::attach(&site.path("waiting.sock"));
            (0..2).for_each(|cookie| client.request(command::READ, cookie, 0, MAX_TRANSFER_BYTES as u32, &[]));
            // Whatever it may have is begun: the next is nonsense, and read by nobody while there is no room.
            client.send(&[0; 10]);
            client
        })
        .collect();
    let mut late = Witness::new(&site);
    (0..100).for_each(|_| {
        witness.works();
        late.works();
    });
    drop(waiting);
    volume.gate.set(GateState::Open);
}

/// A client that takes no answers fills its window and stands still; memory is bounded by that, and others go on.
#[test]
fn a_client_that_takes_no_answers_holds_up_nobody_else() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", 64 * MIB);
    let mut witness = Witness::new(&site);
    let mut client = Raw::attach(&site.path("nbd.sock"));
    client.0.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let request = [&b"\x25\x60\x95\x13\0\0\0\0cookie!!\0\0\0\0\0\0\0\0"[..], &(32_u32 << 20).to_be_bytes()].concat();
    let mut sent = 0;
    while sent < 1_000_000 && client.0.write_all(&request).is_ok() {
        sent += 1;
    }
    assert!(sent < 1_000_000, "the server does not take requests without end");
    witness.works();
    volume.gate.set(GateState::Shut);
    site.wait(volume.gate.drained());
    volume.gate.set(GateState::Open);
    drop(client);
    eventually("it is gone", || volume.clients.nbd.load(SeqCst) == 1);
}
