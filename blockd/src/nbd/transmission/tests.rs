use super::*;
use crate::nbd::handshake::{Context, Contexts, Replies};
use crate::nbd::wire::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, allocation_flag, command, command_flag};
use crate::request::{Access, Durability, MAX_TRANSFER_BYTES, Op, Space};
use proptest::prelude::*;
use std::ops::Range;

const SIZE: u64 = 1 << 30;

fn session() -> Session {
    Session { replies: Replies::Structured, contexts: Contexts::from_iter(Context::ALL), access: Access::ReadWrite }
}

fn extended() -> Session {
    Session { replies: Replies::Extended, ..session() }
}

fn encode(command: Command, replies: Replies) -> Vec<u8> {
    let magic = if replies == Replies::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
    let (magic, flags, kind) = (magic.to_be_bytes(), command.flags.to_be_bytes(), command.kind.to_be_bytes());
    let front = [&magic[..], &flags, &kind, &command.cookie.to_be_bytes(), &command.offset.to_be_bytes()].concat();
    let len_bytes = command.len_bytes.to_be_bytes();
    [&front[..], if replies == Replies::Extended { &len_bytes } else { &len_bytes[4..] }].concat()
}

fn plan_in(session: Session, kind: u16, flags: u16, offset: u64, len_bytes: u64) -> Result<Plan, Fault> {
    Command { flags, kind, cookie: 7, offset, len_bytes }.plan(session, SIZE)
}

fn plan(kind: u16, flags: u16, offset: u64, len_bytes: u64) -> Result<Plan, Fault> {
    plan_in(session(), kind, flags, offset, len_bytes)
}

fn refused(failure: Failure, skip_bytes: u64) -> Result<Plan, Fault> {
    Ok(Plan::Refuse(Refusal { failure, skip_bytes }))
}

fn op_of(plan: Result<Plan, Fault>) -> (Op, Durability) {
    match plan {
        Ok(Plan::Serve(Order { request, durability, .. })) => (request.op, durability),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_become_operations() {
    use command::*;
    use command_flag::*;
    let (cached, durable) = (Durability::Cached, Durability::Durable);
    for (kind, flags, expected) in [
        (READ, 0, (Op::Read, cached)),
        (READ, DF | FUA, (Op::Read, cached)),
        (WRITE, 0, (Op::Write(cached), cached)),
        (WRITE, FUA, (Op::Write(durable), durable)),
        (FLUSH, 0, (Op::Flush, cached)),
        (TRIM, FUA, (Op::Discard, durable)),
        (WRITE_ZEROES, 0, (Op::WriteZeroes(Space::MayFree, cached), cached)),
        (WRITE_ZEROES, NO_HOLE | FUA, (Op::WriteZeroes(Space::Keep, durable), durable)),
        (CACHE, 0, (Op::Cache, cached)),
    ] {
        assert_eq!(op_of(plan(kind, flags, 4096, 512)), expected);
    }
    assert!(matches!(plan(BLOCK_STATUS, REQ_ONE, 0, 1), Ok(Plan::Describe { max_extents: 1, .. })));
    assert!(matches!(plan(BLOCK_STATUS, 0, 0, 1), Ok(Plan::Describe { max_extents: MAX_EXTENTS, .. })));
    assert_eq!(plan(DISC, 0, 0, 0), Ok(Plan::Disconnect));
}

/// Lesson: lengths used before they are checked (CVE-2017-15119).
#[test]
fn every_length_is_checked_at_its_limit() {
    use command::*;
    let max = MAX_TRANSFER_BYTES;
    for len in [max - 1, max] {
        assert!(matches!(plan(READ, 0, 0, len), Ok(Plan::Serve(_))) && matches!(plan(WRITE, 0, 0, len), Ok(Plan::Serve(_))));
    }
    assert_eq!(plan(READ, 0, 0, max + 1), refused(Failure::Invalid, 0));
    assert_eq!(plan(READ, command_flag::DF, 0, max + 1), refused(Failure::Overflow, 0));
    assert_eq!(plan(WRITE, 0, 0, max + 1), refused(Failure::Invalid, max + 1));
    assert_eq!(plan(WRITE, 0, 0, 2 * max), refused(Failure::Invalid, 2 * max));
    assert_eq!(plan(WRITE, 0, 0, 2 * max + 1), Err(Fault::TooMuchData(2 * max + 1)));
    assert!(matches!(plan(TRIM, 0, 0, SIZE), Ok(Plan::Serve(_))));
    for kind in [READ, WRITE, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS] {
        assert_eq!(plan(kind, 0, 0, 0), refused(Failure::Invalid, 0), "{kind}");
    }
}

#[test]
fn ranges_may_end_at_the_end_and_not_after_it() {
    use command::*;
    for (kind, failure, data) in
        [(READ, Failure::Invalid, 0), (WRITE, Failure::NoSpace, 1), (WRITE_ZEROES, Failure::NoSpace, 0), (TRIM, Failure::Invalid, 0)]
    {
        for (offset, len, fits) in
            [(SIZE - 513, 512, true), (SIZE - 512, 512, true), (SIZE - 511, 512, false), (SIZE, 1, false), (u64::MAX, 512, false)]
        {
            let plan = plan(kind, 0, offset, len);
            assert!(if fits { matches!(plan, Ok(Plan::Serve(_))) } else { plan == refused(failure, len * data) }, "{kind} {offset} {len}");
        }
    }
}

#[test]
fn flags_that_were_not_offered_are_refused() {
    for kind in 0..=8 {
        for bit in 0..16 {
            let flag = 1 << bit;
            let allowed = match kind {
                command::DISC => true,
                8 => false,
                command::READ => flag & (command_flag::FUA | command_flag::DF) != 0,
                command::WRITE_ZEROES => flag & (command_flag::FUA | command_flag::NO_HOLE | command_flag::FAST_ZERO) != 0,
                command::BLOCK_STATUS => flag & (command_flag::FUA | command_flag::REQ_ONE) != 0,
                _ => flag == command_flag::FUA,
            };
            assert_eq!(!matches!(plan(kind, flag, 0, 4096), Ok(Plan::Refuse(_))), allowed, "{kind} {flag:#x}");
        }
    }
    let simple = Session { replies: Replies::Simple, contexts: Contexts::NONE, ..session() };
    assert_eq!(plan_in(simple, command::READ, command_flag::DF, 0, 512), refused(Failure::Invalid, 0));
    assert_eq!(plan_in(simple, command::BLOCK_STATUS, 0, 0, 512), refused(Failure::Invalid, 0));
}

#[test]
fn zeroes_are_fast_for_whole_pages_only() {
    for (offset, len, fast) in [(0, 4096, true), (4096, 8192, true), (512, 4096, false), (4096, 512, false)] {
        let plan = plan(command::WRITE_ZEROES, command_flag::FAST_ZERO, offset, len);
        assert!(if fast { matches!(plan, Ok(Plan::Serve(_))) } else { plan == refused(Failure::NotSupported, 0) }, "{offset} {len}");
    }
}

#[test]
fn a_read_only_export_takes_no_change() {
    let session = Session { access: Access::ReadOnly, ..session() };
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        let skip = if kind == command::WRITE { 512 } else { 0 };
        assert_eq!(plan_in(session, kind, 0, 0, 512), refused(Failure::NotPermitted, skip));
    }
    assert!(matches!(plan_in(session, command::READ, 0, 0, 512), Ok(Plan::Serve(_))));
}

#[test]
fn replies_are_encoded_as_the_protocol_says() {
    let command = |kind| Command { flags: 0, kind, cookie: 0x0102, offset: 0x10, len_bytes: 0x200 };
    let (read_it, write, status) = (command(command::READ), command(command::WRITE), command(command::BLOCK_STATUS));
    let (simple, structured) = (Replies::Simple, Replies::Structured);
    assert_eq!(done(&write, structured).as_bytes(), b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\x01\x02");
    let failed = b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\x01\x02";
    assert_eq!(failure(&write, Failure::NoSpace, structured).as_bytes(), failed);
    assert_eq!(failure(&read_it, Failure::NoSpace, simple).as_bytes(), failed);
    let chunk = failure(&read_it, Failure::Io, structured);
    assert_eq!(chunk.as_bytes(), b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\x01\x02\0\0\0\x06\0\0\0\x05\0\0");
    let head = read(&read_it, structured);
    assert_eq!(head.as_bytes(), b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\x01\x02\0\0\x02\x08\0\0\0\0\0\0\0\x10");
    assert_eq!(read(&read_it, simple), done(&read_it, simple));
    let extents = vec![Extent { len_bytes: 0x1000, flags: 3 }];
    let one = block_status(&status, &[(Context::Allocation, extents.clone())], structured);
    assert_eq!(one, b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\x01\x02\0\0\0\x0c\0\0\0\x01\0\0\x10\0\0\0\0\x03");
    let two = block_status(&status, &[(Context::Allocation, extents.clone()), (Context::Dirty, extents)], structured);
    assert_eq!((two.len(), &two[4..6], &two[36..38], two[55]), (2 * one.len(), &[0, 0][..], &[0, 1][..], 2), "the last chunk says so");
}

#[test]
fn extended_replies_are_chunks_of_one_form() {
    let command = |kind| Command { flags: 0, kind, cookie: 0x0102, offset: 0x10, len_bytes: 0x200 };
    let head = |kind: &[u8; 2], len: u8| {
        [&b"\x6e\x8a\x27\x8c\0\x01"[..], kind, b"\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x10\0\0\0\0\0\0", &[len >> 7 << 1, len & 127]].concat()
    };
    let replies = Replies::Extended;
    assert_eq!(done(&command(command::WRITE), replies).as_bytes(), head(b"\0\0", 0));
    let error = [&head(b"\x80\x01", 6)[..], b"\0\0\0\x05\0\0"].concat();
    for kind in [command::WRITE, command::READ] {
        assert_eq!(failure(&command(kind), Failure::Io, replies).as_bytes(), error);
    }
    let data = read(&command(command::READ), replies);
    assert_eq!((data.as_bytes().len(), &data.as_bytes()[24..32]), (40, &0x208_u64.to_be_bytes()[..]));
    let extents = vec![Extent { len_bytes: 1 << 40, flags: 1 }];
    let status = block_status(&command(command::BLOCK_STATUS), &[(Context::Dirty, extents)], replies);
    assert_eq!(status, [&head(b"\0\x06", 24)[..], b"\0\0\0\x02\0\0\0\x01\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\x01"].concat());
}

/// Lesson: lengths are checked before they are used; the flag says whether data follows, and that is thrown away if it is not wanted.
#[test]
fn with_extended_headers_a_flag_says_whether_data_follows() {
    use command::*;
    let (max, flag) = (MAX_TRANSFER_BYTES, command_flag::PAYLOAD_LEN);
    let plan = |kind, flags, len_bytes| plan_in(extended(), kind, flags, 0, len_bytes);
    for len in [max - 1, max] {
        assert!(matches!(plan(WRITE, flag, len), Ok(Plan::Serve(_))));
    }
    assert_eq!(plan(WRITE, 0, 512), refused(Failure::Invalid, 0), "without the flag nothing follows");
    assert_eq!(plan(WRITE, flag, 0), refused(Failure::Invalid, 0));
    assert_eq!(plan(WRITE, flag, max + 1), refused(Failure::Invalid, max + 1));
    for kind in [READ, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, FLUSH, WRITE, 77] {
        if kind != WRITE {
            assert_eq!(plan(kind, flag, 12), refused(Failure::Invalid, 12), "{kind}");
        }
        assert_eq!(plan(kind, flag, 2 * max + 1), Err(Fault::TooMuchData(2 * max + 1)), "{kind}");
        assert_eq!(plan(kind, flag, u64::MAX), Err(Fault::TooMuchData(u64::MAX)), "{kind}");
    }
    assert_eq!(plan_in(session(), WRITE, flag, 0, 512), refused(Failure::Invalid, 512), "the flag belongs to extended headers");
}

#[test]
fn with_extended_headers_what_moves_no_data_has_64_bits() {
    use command::*;
    let len_bytes = 1 << 40;
    for kind in [TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS] {
        for (len_bytes, fits) in [(len_bytes - 1, true), (len_bytes, true), (len_bytes + 1, false), (u64::MAX, false)] {
            let plan = Command { flags: 0, kind, cookie: 7, offset: 0, len_bytes }.plan(extended(), 1 << 40);
            assert_eq!(matches!(plan, Ok(Plan::Serve(_) | Plan::Describe { .. })), fits, "{kind} {len_bytes}");
        }
    }
    assert_eq!(plan_in(extended(), READ, 0, 0, MAX_TRANSFER_BYTES + 1), refused(Failure::Invalid, 0));
}

fn status(range: Range<u64>, data: &[Range<u64>], max_extents: usize) -> Vec<(u64, u32)> {
    let extents = describe(range, data.iter().cloned().map(Ok), Meaning::ALLOCATION, max_extents).unwrap();
    extents.into_iter().map(|extent| (extent.len_bytes, extent.flags)).collect()
}

const HOLE: u32 = allocation_flag::HOLE | allocation_flag::ZERO;

/// CVE-2025-47711: a block status longer than asked.
/// Lesson: block status longer than asked (nbdkit CVE-2025-47711).
#[test]
fn block_status_never_reaches_beyond_what_was_asked() {
    assert_eq!(status(100..200, &[0..50, 60..300], 9), [(100, 0)]);
    assert_eq!(status(100..200, &[], 9), [(100, HOLE)]);
    assert_eq!(status(100..200, &[120..130, 130..140, 250..300], 9), [(20, HOLE), (20, 0), (60, HOLE)]);
}

#[test]
fn block_status_has_a_limited_number_of_extents() {
    let data = [10..20, 30..40, 40..45, 50..60];
    assert_eq!(status(0..100, &data, 1), [(10, HOLE)]);
    assert_eq!(status(10..100, &data, 1), [(10, 0)]);
    assert_eq!(status(0..100, &data, 4), [(10, HOLE), (10, 0), (10, HOLE), (15, 0)]);
    assert!(describe(0..9, [Err(std::io::Error::other("x"))], Meaning::ALLOCATION, 9).is_err());
}

proptest! {
    #[test]
    fn commands_decode_to_what_was_encoded(flags: u16, kind: u16, cookie: u64, offset: u64, len_bytes: u64) {
        for (replies, len_bytes) in [(Replies::Structured, len_bytes >> 32), (Replies::Extended, len_bytes)] {
            let command = Command { flags, kind, cookie, offset, len_bytes };
            let bytes = encode(command, replies);
            prop_assert_eq!(bytes.len(), replies.request_header_bytes());
            prop_assert_eq!(Command::decode(&bytes, replies), Ok(command));
        }
    }

    /// No header panics, and what is served lies within the volume and the limits.
    #[test]
    fn what_is_served_was_checked(flags in 0_u16..64, kind in 0_u16..9, offset: u64, near in 0..4096_u64, len_bytes: u64, size in 0..1_u64 << 44) {
        for offset in [offset, size.saturating_sub(near)] {
            for len_bytes in [len_bytes, len_bytes % 8192] {
                let command = Command { flags, kind, cookie: 0, offset, len_bytes };
                match command.plan(extended(), size) {
                    Ok(Plan::Serve(Order { request, .. }) | Plan::Describe { request, .. }) => {
                        prop_assert!(request.offset.checked_add(request.len_bytes).unwrap() <= size);
                        prop_assert!(!request.op.moves_data() || request.len_bytes <= MAX_TRANSFER_BYTES);
                    }
                    Ok(Plan::Refuse(refusal)) => prop_assert!(refusal.skip_bytes <= 2 * MAX_TRANSFER_BYTES),
                    Ok(Plan::Disconnect) | Err(_) => {}
                }
            }
        }
    }

    #[test]
    fn no_bytes_break_the_decoder(bytes: [u8; MAX_REQUEST_HEADER_BYTES]) {
        for replies in [Replies::Simple, Replies::Extended] {
            let _ = Command::decode(&bytes[..replies.request_header_bytes()], replies);
        }
    }

    /// An answer covers a beginning of the range, and no data is called a hole.
    #[test]
    fn block_status_tells_the_truth(start in 0..1000_u64, len in 1..1000_u64, cuts in prop::collection::btree_set(0..2500_u64, 0..20), max in 1..12_usize) {
        let cuts: Vec<u64> = cuts.into_iter().collect();
        let data: Vec<Range<u64>> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
        let extents = status(start..start + len, &data, max);
        prop_assert!(!extents.is_empty() && extents.len() <= max);
        let mut at = start;
        for (len, flags) in extents {
            prop_assert!(len > 0);
            for byte in at..at + len {
                prop_assert_eq!(data.iter().any(|data| data.contains(&byte)), flags == 0);
            }
            at += len;
        }
        prop_assert!(at <= start + len);
        prop_assert!(at == start + len || max < 12);
    }
}
