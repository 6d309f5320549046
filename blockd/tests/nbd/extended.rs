//! Extended headers, said byte by byte: the clients that are installed here may not know them.

use crate::raw::Raw;
use crate::site::Site;
use blockd::nbd::wire::{EXTENDED_CHUNK_MAGIC, EXTENDED_REQUEST_MAGIC, chunk, command, command_flag, option, option_reply};
use replicator_engine::tracker::LaneId;
use std::sync::{Arc, Mutex};

const GIB: u64 = 1 << 30;

/// A connection with extended headers to `vm1`, both contexts chosen.
fn attach(site: &Site) -> Raw {
    let mut client = Raw::greet(&site.path("nbd.sock"));
    client.option(option::EXTENDED_HEADERS, 0, &[]);
    assert_eq!(client.option_reply(), (option_reply::ACK, vec![]));
    let contexts = b"\0\0\0\x03vm1\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x0atern:dirty";
    client.option(option::SET_META_CONTEXT, contexts.len() as u32, contexts);
    assert_eq!(client.option_reply(), (option_reply::META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec()));
    assert_eq!(client.option_reply(), (option_reply::META_CONTEXT, b"\0\0\0\x02tern:dirty".to_vec()));
    assert_eq!(client.option_reply(), (option_reply::ACK, vec![]));
    client.option(option::GO, 9, b"\0\0\0\x03vm1\0\0");
    while client.option_reply().0 == option_reply::INFO {}
    client
}

fn request(client: &mut Raw, kind: u16, flags: u16, offset: u64, len_bytes: u64, data: &[u8]) {
    let head = [&EXTENDED_REQUEST_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes(), b"cookie!!"].concat();
    client.send(&[&head[..], &offset.to_be_bytes(), &len_bytes.to_be_bytes(), data].concat());
}

/// Reads a chunk of the reply to a request at `offset`: its flags, type and data.
fn reply(client: &mut Raw, offset: u64) -> (u16, u16, Vec<u8>) {
    let head = client.receive(32).unwrap();
    assert_eq!((&head[..4], &head[8..16]), (&EXTENDED_CHUNK_MAGIC.to_be_bytes()[..], &b"cookie!!"[..]));
    assert_eq!(head[16..24], offset.to_be_bytes());
    let [flags, kind] = [4, 6].map(|at| u16::from_be_bytes(head[at..at + 2].try_into().unwrap()));
    let len = u64::from_be_bytes(head[24..].try_into().unwrap());
    (flags, kind, client.receive(len as usize).unwrap())
}

#[test]
fn every_request_is_answered_in_chunks() {
    let site = Site::new();
    site.serve("vm1", 16 * GIB);
    let mut client = attach(&site);
    let done = (chunk::DONE, chunk::NONE, vec![]);
    let error = |number: u8| (chunk::DONE, chunk::ERROR, vec![0, 0, 0, number, 0, 0]);
    let payload = command_flag::PAYLOAD_LEN;
    request(&mut client, command::WRITE, payload, 8192, 4096, &[7; 4096]);
    assert_eq!(reply(&mut client, 8192), done);
    request(&mut client, command::WRITE, 0, 8192, 4096, &[]);
    assert_eq!(reply(&mut client, 8192), error(22), "a write without data");
    request(&mut client, command::READ, payload, 0, 100, &[1; 100]);
    assert_eq!(reply(&mut client, 0), error(22), "data that nobody wants is thrown away");
    request(&mut client, command::FLUSH, 0, 0, 0, &[]);
    assert_eq!(reply(&mut client, 0), done);
    request(&mut client, command::READ, 0, 8191, 3, &[]);
    assert_eq!(reply(&mut client, 8191), (chunk::DONE, chunk::OFFSET_DATA, [&8191_u64.to_be_bytes()[..], &[0, 7, 7]].concat()));
    request(&mut client, command::TRIM, 0, 0, 16 * GIB + 1, &[]);
    assert_eq!(reply(&mut client, 0), error(22));
    request(&mut client, command::WRITE_ZEROES, 0, 0, 16 * GIB + 1, &[]);
    assert_eq!(reply(&mut client, 0), error(28));
    request(&mut client, command::WRITE, payload, 0, u64::MAX, &[]);
    client.expect_end();
}

#[test]
fn block_status_and_zeroes_reach_beyond_4_gib() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", 16 * GIB);
    volume.image.write_at(&[1; 4096], 8 * GIB).unwrap();
    let mut client = attach(&site);
    request(&mut client, command::BLOCK_STATUS, 0, 0, 16 * GIB, &[]);
    let (flags, kind, allocation) = reply(&mut client, 0);
    assert_eq!((flags, kind, &allocation[..8]), (0, chunk::BLOCK_STATUS_EXT, &b"\0\0\0\x01\0\0\0\x03"[..]));
    let extents: Vec<[u64; 2]> = allocation[8..]
        .chunks_exact(16)
        .map(|extent| [0, 8].map(|at| u64::from_be_bytes(extent[at..at + 8].try_into().unwrap())))
        .collect();
    assert_eq!(extents, [[8 * GIB, 3], [4096, 0], [8 * GIB - 4096, 3]]);
    let expected = [&b"\0\0\0\x02\0\0\0\x01"[..], &(16 * GIB).to_be_bytes(), &[0; 8]].concat();
    assert_eq!(reply(&mut client, 0), (chunk::DONE, chunk::BLOCK_STATUS_EXT, expected));

    request(&mut client, command::WRITE_ZEROES, 0, 0, 16 * GIB, &[]);
    assert_eq!(reply(&mut client, 0), (chunk::DONE, chunk::NONE, vec![]));
    request(&mut client, command::BLOCK_STATUS, command_flag::REQ_ONE, 4096, 16 * GIB - 4096, &[]);
    let hole = [&b"\0\0\0\x01\0\0\0\x01"[..], &(16 * GIB - 4096).to_be_bytes(), &3_u64.to_be_bytes()].concat();
    assert_eq!(reply(&mut client, 4096), (0, chunk::BLOCK_STATUS_EXT, hole));
    assert_eq!(reply(&mut client, 4096).0, chunk::DONE);
}

/// Whoever knows what is dirty, and a disk that makes holes, may take as long as they like.
#[test]
fn a_volume_that_does_not_answer_holds_up_no_other_volumes_holes() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", GIB);
    let unanswered = Arc::new(Mutex::new(Vec::new()));
    let ask = {
        let unanswered = unanswered.clone();
        move |_, reply| unanswered.lock().unwrap().push(reply)
    };
    volume.intake.behind().set(LaneId::FIRST, Box::new(ask));
    site.export(&site.volume("vm2", GIB), &site.socket("other.sock"));
    // Each thread has one of each.
    let mut stuck: Vec<_> = (0..2).map(|_| attach(&site)).collect();
    let mut others: Vec<_> = (0..2).map(|_| Raw::attach(&site.path("other.sock"))).collect();
    for client in &mut stuck {
        (0..32).for_each(|_| request(client, command::BLOCK_STATUS, 0, 0, 4096, &[]));
    }
    assert!(stuck.iter_mut().all(Raw::is_silent));
    for other in &mut others {
        other.request(command::TRIM, 1, 0, 1 << 20, &[]);
        assert_eq!(other.reply(), (0, 1));
    }
    volume.intake.behind().set(LaneId::FIRST, Box::new(|_, _| ()));
    unanswered.lock().unwrap().clear();
    stuck.iter_mut().for_each(|client| drop(reply(client, 0)));
}
