//! Requests to a volume whose size changes: what is served lies within it and within the limits, answers are no longer than asked.
#![no_main]

use blockd::nbd::handshake::{Context, Contexts, Replies};
use blockd::nbd::transmission::{self, Command, MAX_EXTENTS, MAX_HEADER_BYTES, MAX_REQUEST_HEADER_BYTES, Meaning, Plan, Session};
use blockd::nbd::wire;
use blockd::request::{Access, MAX_TRANSFER_BYTES, Request};
use libfuzzer_sys::fuzz_target;
use tern_fuzz::Bytes;

fn session(bits: u8) -> Session {
    Session {
        replies: [Replies::Simple, Replies::Structured, Replies::Extended][usize::from(bits >> 3) % 3],
        contexts: Context::ALL.into_iter().filter(|context| bits as u32 & context.id() != 0).collect::<Contexts>(),
        access: if bits & 4 == 0 { Access::ReadWrite } else { Access::ReadOnly },
    }
}

fn check_request(request: Request, size_bytes: u64) {
    let end = request.offset.checked_add(request.len_bytes).expect("checked");
    assert!(end <= size_bytes);
    assert!(!request.op.moves_data() || request.len_bytes <= MAX_TRANSFER_BYTES);
}

fn check_extents(command: &Command, request: Request, max_extents: usize, replies: Replies, bytes: &mut Bytes<'_>) {
    let mut at = request.offset.saturating_sub(u64::from(bytes.u16()));
    let data: Vec<_> = (0..bytes.u8())
        .map(|_| {
            let start = at.saturating_add(u64::from(bytes.u16()));
            at = start.saturating_add(1 + u64::from(bytes.u32()));
            Ok(start..at)
        })
        .collect();
    let extents = transmission::describe(request.offset..request.offset + request.len_bytes, data, Meaning::DIRTY, max_extents)
        .expect("no error was given");
    assert!(!extents.is_empty() && extents.len() <= max_extents && extents.len() <= MAX_EXTENTS);
    assert!(extents.iter().all(|extent| extent.len_bytes > 0));
    assert!(extents.iter().map(|extent| extent.len_bytes).sum::<u64>() <= request.len_bytes);
    let expected = if replies == Replies::Extended { 40 + 16 * extents.len() } else { 24 + 8 * extents.len() };
    assert_eq!(transmission::block_status(command, &[(Context::Dirty, extents)], replies).len(), expected);
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let session = session(bytes.u8());
    let mut size_bytes = bytes.u64() >> 20;
    while !bytes.0.is_empty() {
        size_bytes = size_bytes.saturating_add(u64::from(bytes.u8()) * 4096);
        let mut header: [u8; MAX_REQUEST_HEADER_BYTES] = bytes.array();
        if !header[0].is_multiple_of(8) {
            let magic = if session.replies == Replies::Extended { wire::EXTENDED_REQUEST_MAGIC } else { wire::REQUEST_MAGIC };
            header[..4].copy_from_slice(&magic.to_be_bytes());
            header[4] = 0;
            header[6] = 0;
            header[7] %= 9;
            // Near the end of the volume, where it is interesting.
            let near = size_bytes.wrapping_sub(u64::from(header[23]) << 8);
            header[16..24].copy_from_slice(&near.to_be_bytes());
        }
        let Ok(command) = Command::decode(&header[..session.replies.request_header_bytes()], session.replies) else { continue };
        match command.plan(session, size_bytes) {
            Ok(Plan::Serve(order)) => check_request(order.request, size_bytes),
            Ok(Plan::Describe { request, max_extents }) => {
                check_request(request, size_bytes);
                check_extents(&command, request, max_extents, session.replies, &mut bytes);
            }
            Ok(Plan::Refuse(refusal)) => {
                assert!(refusal.skip_bytes <= 2 * MAX_TRANSFER_BYTES);
                let reply = transmission::failure(&command, refusal.failure, session.replies);
                assert!(reply.as_bytes().len() <= MAX_HEADER_BYTES);
            }
            Ok(Plan::Disconnect) | Err(_) => {}
        }
    }
});
