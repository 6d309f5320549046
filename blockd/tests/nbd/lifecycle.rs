//! Volumes that are not served, grow, are cut, and go away while clients are attached.

use crate::raw::Raw;
use crate::site::{Site, eventually};
use blockd::nbd::wire::command;
use blockd::nbd::{ExportError, NbdOptions};
use blockd::request::Access;
use blockd::volume::GateState;
use replicator_engine::block::{BLOCK_BYTES, Run};
use replicator_engine::tracker::LaneId;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

#[test]
fn requests_wait_while_the_volume_is_not_served() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", MIB);
    volume.gate.set(GateState::Shut);
    let mut client = Raw::attach(&site.path("nbd.sock"));
    client.request(command::WRITE, 1, 0, 512, &[5; 512]);
    assert!(client.is_silent());
    client.request(command::READ, 2, 4096, 1, &[]);
    client.request(command::FLUSH, 3, 0, 0, &[]);
    assert!(client.is_silent());
    volume.gate.set(GateState::Open);
    let mut cookies = Vec::new();
    for _ in 0..3 {
        let (error, cookie) = client.reply();
        assert_eq!(error, 0);
        cookies.push(cookie);
        if cookie == 2 {
            client.receive(1).unwrap();
        }
    }
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2, 3]);
}

#[test]
fn a_client_that_leaves_while_it_waits_changes_nothing_later() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", MIB);
    volume.gate.set(GateState::Shut);
    // One with few requests, and one with more than are taken at once, so that nobody reads what it sends.
    for requests in [1, 200] {
        let mut client = Raw::attach(&site.path("nbd.sock"));
        for cookie in 0..requests {
            client.request(command::WRITE, cookie, cookie * 512, 512, &[5; 512]);
        }
        eventually("attached", || volume.clients.nbd.load(SeqCst) == 1);
        assert!(client.is_silent());
        drop(client);
        eventually("gone", || volume.clients.nbd.load(SeqCst) == 0);
    }
    volume.gate.set(GateState::Open);
    let mut client = Raw::attach(&site.path("nbd.sock"));
    client.request(command::READ, 1, 0, MIB as u32, &[]);
    assert_eq!(client.reply(), (0, 1));
    assert!(client.receive(MIB as usize).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn a_fenced_volume_serves_nobody_and_clients_may_leave() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", MIB);
    let mut client = Raw::attach(&site.path("nbd.sock"));
    volume.gate.set(GateState::Fenced);
    client.request(command::READ, 1, 0, 512, &[]);
    assert!(client.is_silent());
    drop(client);
    eventually("gone", || volume.clients.nbd.load(SeqCst) == 0);
}

#[test]
fn a_write_that_has_to_wait_for_its_admission_is_answered_after_it() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", MIB);
    let mut client = Raw::attach(&site.path("nbd.sock"));
    volume.intake.start_logging();
    client.request(command::WRITE, 1, 0, 4096, &[1; 4096]);
    assert_eq!(client.reply(), (0, 1), "the activity log is written first");
    // From the cut on until the epoch is frozen, what it changed is not overwritten; nor is it lost afterwards.
    volume.intake.cut(LaneId::FIRST).unwrap();
    client.request(command::WRITE, 2, 100, 1000, &[2; 1000]);
    client.request(command::READ, 3, 100, 1, &[]);
    assert_eq!(client.reply(), (0, 3));
    assert_eq!(client.receive(1).unwrap(), [1]);
    assert!(client.is_silent());
    let frozen = volume.intake.try_freeze(LaneId::FIRST).expect("no write of the epoch is under way");
    assert!(frozen.contains(0));
    assert_eq!(client.reply(), (0, 2));
    client.request(command::READ, 4, 99, 2, &[]);
    assert_eq!(client.reply(), (0, 4));
    assert_eq!(client.receive(2).unwrap(), [1, 2]);
    assert_eq!(Run::new(0, 1).unwrap().len_bytes(), BLOCK_BYTES as u64);
}

#[test]
fn clients_can_use_what_a_volume_has_grown_by() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", MIB);
    let mut client = Raw::attach(&site.path("nbd.sock"));
    client.request(command::WRITE, 1, MIB, 512, &[1; 512]);
    assert_eq!(client.reply(), (28, 1));
    volume.image.grow(2 * MIB).unwrap();
    client.request(command::WRITE, 2, 2 * MIB - 512, 512, &[1; 512]);
    assert_eq!(client.reply(), (0, 2));
}

#[test]
fn writes_to_parts_of_a_sector_are_not_lost_to_each_other() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", MIB);
    let path = site.path("nbd.sock");
    let write = |lane: u64| {
        let mut client = Raw::attach(&path);
        for round in 1..=50_u8 {
            // Lane 8 writes what lies behind the others, of which the first byte shares a sector with lane 7.
            let (offset, data) = if lane < 8 { (lane * 64, vec![round; 64]) } else { (512, vec![round; 4096]) };
            client.request(command::WRITE, u64::from(round), offset, data.len() as u32, &data);
        }
        (0..50).for_each(|_| assert_eq!(client.reply().0, 0));
        client.request(command::WRITE, 0, lane * 64, 64, &[lane as u8 + 100; 64]);
        assert_eq!(client.reply(), (0, 0));
    };
    std::thread::scope(|scope| (0..9).for_each(|lane| drop(scope.spawn(move || write(lane)))));
    let mut sector = vec![0; 4096];
    volume.image.read_at(&mut sector, 0).unwrap();
    for lane in 0..9 {
        assert_eq!(sector[lane * 64..lane * 64 + 64], [lane as u8 + 100; 64], "lane {lane}");
    }
}

#[test]
fn an_export_that_ends_takes_its_clients_and_its_socket_with_it() {
    let site = Site::new();
    let address = site.socket("nbd.sock");
    let path = site.path("nbd.sock");
    let (one, two) = (site.volume("one", MIB), site.volume("two", MIB));
    site.export(&one, &address);
    let mut of_one = Raw::attach(&path);
    let mut in_handshake = Raw::greet(&path);
    site.export(&two, &address);
    assert!(matches!(site.try_export(&two, &address, Access::ReadOnly), Err(ExportError::Exists { .. })));
    one.gate.set(GateState::Shut);
    of_one.request(command::READ, 1, 0, 512, &[]);
    assert!(site.wait(site.service.unexport("one", &address)));
    of_one.expect_end();
    assert_eq!(one.clients.nbd.load(SeqCst), 0);
    assert!(path.exists() && !site.wait(site.service.unexport("one", &address)));
    assert!(site.wait(site.service.unexport("two", &address)));
    in_handshake.expect_end();
    assert!(!path.exists());
    site.export(&two, &address);
    Raw::attach(&path);
}

#[test]
fn shutting_down_ends_idle_busy_and_waiting_clients() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", 64 * MIB);
    let path = site.path("nbd.sock");
    let mut clients: Vec<_> = (0..6).map(|_| Raw::attach(&path)).collect();
    for client in &mut clients[2..] {
        client.request(command::WRITE, 1, 0, MIB as u32, &vec![1; MIB as usize]);
    }
    clients.push(Raw::greet(&path));
    clients.push(Raw::connect(&path));
    let tcp = site.export(&volume, &"tcp:127.0.0.1:0".parse().unwrap());
    let mut over_tcp = std::net::TcpStream::connect(tcp.to_string().strip_prefix("tcp:").unwrap()).unwrap();
    over_tcp.read_exact(&mut [0; 18]).unwrap();
    site.wait(site.service.shutdown());
    clients.iter_mut().for_each(Raw::expect_end);
    over_tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(over_tcp.read(&mut [0]).unwrap(), 0);
    assert_eq!(volume.clients.nbd.load(SeqCst), 0);
    volume.gate.set(GateState::Shut);
    site.wait(volume.gate.drained());
    assert!(matches!(site.try_export(&volume, &site.socket("b"), Access::ReadWrite), Err(ExportError::ShuttingDown)));
}

/// Each at an address of its own, where it has five seconds to take its answer; they are over for all at once.
#[test]
fn clients_that_take_no_answers_do_not_add_up_at_the_end() {
    let site = Site::new();
    let clients = ["a", "b", "c", "d"].map(|name| {
        site.export(&site.volume(name, 64 * MIB), &site.socket(name));
        let mut client = Raw::attach(&site.path(name));
        client.request(command::READ, 1, 0, 32 * MIB as u32, &[]);
        // The answer begins: the rest of it finds no room.
        assert_eq!(client.reply(), (0, 1));
        client
    });
    let began = Instant::now();
    site.wait(site.service.shutdown());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop(clients);
}

#[test]
fn sockets_have_the_mode_asked_for_and_tcp_stays_on_this_host() {
    let site = Site::with(|options: &mut NbdOptions| options.access.mode = 0o640);
    let (volume, _) = site.serve("vm1", MIB);
    assert_eq!(site.path("nbd.sock").metadata().unwrap().permissions().mode() & 0o777, 0o640);
    let exposed = site.try_export(&volume, &"tcp:0.0.0.0:0".parse().unwrap(), Access::ReadOnly);
    assert!(matches!(exposed, Err(ExportError::Exposed(_))));
}
