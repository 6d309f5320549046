//! Chains as a well-behaved guest makes them, and as a hostile one does.

use super::*;
use crate::vhost_user::descriptors::Descriptors;
use proptest::prelude::*;
use std::sync::Arc;
use virtio_queue::desc::split::Descriptor;

const MEMORY_BYTES: usize = 1 << 20;
const QUEUE_SIZE: u16 = 16;
const TABLE: u64 = 0;
const INDIRECT: u64 = 0x2000;
/// Header, data and status of the chains that are put together here.
const HEADER: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STATUS: u64 = 0x8800;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;

const READ: u32 = blk::VIRTIO_BLK_T_IN;
const OUT: u32 = blk::VIRTIO_BLK_T_OUT;

/// Parses the chain that begins with descriptor 0 of the table.
fn parse_table(memory: &Arc<GuestMemoryMmap>, table: &[Descriptor]) -> Result<Parsed, NoStatus> {
    put_table(memory, TABLE, table);
    parse(memory, Descriptors::of(memory, GuestAddress(TABLE), QUEUE_SIZE, 0), &mut Spares::default())
}

fn put_table(memory: &GuestMemoryMmap, at: u64, table: &[Descriptor]) {
    for (address, descriptor) in (at..).step_by(16).zip(table) {
        memory.write_obj(*descriptor, GuestAddress(address)).unwrap();
    }
}

fn memory_with_header(kind: u32, sector: u64) -> Arc<GuestMemoryMmap> {
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap());
    memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
    memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
    memory
}

/// Links parts, given as address, length and flags, in their order.
fn linked(parts: &[(u64, u32, u16)]) -> Vec<Descriptor> {
    let link = |(at, (address, len, flags)): (usize, &(u64, u32, u16))| {
        let next = if at + 1 < parts.len() { NEXT } else { 0 };
        Descriptor::new(*address, *len, flags | next, at as u16 + 1)
    };
    parts.iter().enumerate().map(link).collect()
}

fn command(kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> Result<Command, Status> {
    let parts = [&[(HEADER, 16, 0)], data, &[(STATUS, 1, WRITE)]].concat();
    let parsed = parse_table(&memory_with_header(kind, sector), &linked(&parts)).unwrap();
    assert_eq!(parsed.status, GuestAddress(STATUS));
    parsed.command
}

fn segment(address: u64, len_bytes: u32) -> Segment {
    Segment { address: GuestAddress(address), len_bytes }
}

#[test]
fn a_read_has_writable_data_and_a_write_readable_data() {
    let request = |op| Request { op, offset: 7 * 512, len_bytes: 1536 };
    let segments = vec![segment(DATA, 512), segment(DATA + 0x1000, 1024)];
    assert_eq!(
        command(READ, 7, &[(DATA, 512, WRITE), (DATA + 0x1000, 1024, WRITE)]),
        Ok(Command::Transfer(request(Op::Read), segments.clone()))
    );
    let write = request(Op::Write(Durability::Cached));
    assert_eq!(command(OUT, 7, &[(DATA, 512, 0), (DATA + 0x1000, 1024, 0)]), Ok(Command::Transfer(write, segments)));
    assert_eq!(command(READ, 7, &[(DATA, 512, 0)]), Err(Status::IoError));
    assert_eq!(command(OUT, 7, &[(DATA, 512, WRITE)]), Err(Status::IoError));
}

/// Lesson: descriptor chains, zero length (DPDK CVE-2020-10725).
#[test]
fn descriptors_may_be_cut_anywhere() {
    let memory = memory_with_header(READ, 3);
    let parts = [(HEADER, 3, 0), (HEADER + 3, 0, 0), (HEADER + 3, 13, 0), (DATA, 100, WRITE), (DATA + 0x1000, 413, WRITE)];
    let parsed = parse_table(&memory, &linked(&parts)).unwrap();
    let request = Request { op: Op::Read, offset: 1536, len_bytes: 512 };
    let segments = vec![segment(DATA, 100), segment(DATA + 0x1000, 412)];
    let status = GuestAddress(DATA + 0x1000 + 412);
    assert_eq!(parsed, Parsed { status, writable_bytes: 513, command: Ok(Command::Transfer(request, segments)) });
}

#[test]
fn transfers_are_whole_sectors_within_64_bits() {
    assert_eq!(command(READ, 0, &[(DATA, 511, WRITE)]), Err(Status::IoError));
    assert_eq!(command(READ, 0, &[]), Err(Status::IoError));
    assert_eq!(command(OUT, 0, &[]), Err(Status::IoError));
    assert_eq!(command(OUT, u64::MAX / 512 + 1, &[(DATA, 512, 0)]), Err(Status::IoError));
    assert!(command(OUT, u64::MAX / 512, &[(DATA, 512, 0)]).is_ok(), "the volume's size decides");
}

#[test]
fn what_is_not_known_is_unsupported() {
    for kind in [2, 3, 9, 14, 15, u32::MAX] {
        assert_eq!(command(kind, 0, &[]), Err(Status::Unsupported), "{kind}");
    }
}

#[test]
fn flushes_and_identification_need_no_data() {
    assert_eq!(command(blk::VIRTIO_BLK_T_FLUSH, 99, &[]), Ok(Command::Flush));
    assert_eq!(command(blk::VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, WRITE)]), Ok(Command::Identify(vec![segment(DATA, 20)])));
}

fn ranges(kind: u32, ranges: &[(u64, u32, u32)]) -> Result<Command, Status> {
    let memory = memory_with_header(kind, 0);
    for (at, (sector, sectors, flags)) in (DATA..).step_by(16).zip(ranges) {
        memory.write_obj(*sector, GuestAddress(at)).unwrap();
        memory.write_obj(*sectors, GuestAddress(at + 8)).unwrap();
        memory.write_obj(*flags, GuestAddress(at + 12)).unwrap();
    }
    let parts = [(HEADER, 16, 0), (DATA, 16 * ranges.len() as u32, 0), (STATUS, 1, WRITE)];
    parse_table(&memory, &linked(&parts)).unwrap().command
}

#[test]
fn ranges_of_zeroes_are_read_from_the_data() {
    let zeroes = |op| Request { op, offset: 8 * 512, len_bytes: 16 * 512 };
    let write_zeroes = |space| zeroes(Op::WriteZeroes(space, Durability::Cached));
    assert_eq!(ranges(blk::VIRTIO_BLK_T_WRITE_ZEROES, &[(8, 16, 0)]), Ok(Command::Change(vec![write_zeroes(Space::Keep)])));
    assert_eq!(ranges(blk::VIRTIO_BLK_T_WRITE_ZEROES, &[(8, 16, 1)]), Ok(Command::Change(vec![write_zeroes(Space::MayFree)])));
    let two = ranges(blk::VIRTIO_BLK_T_DISCARD, &[(8, 16, 0), (0, u32::MAX, 0)]);
    let second = Request { op: Op::Discard, offset: 0, len_bytes: u64::from(u32::MAX) * 512 };
    assert_eq!(two, Ok(Command::Change(vec![zeroes(Op::Discard), second])));
}

#[test]
fn ranges_of_zeroes_have_limits() {
    let (discard, write) = (blk::VIRTIO_BLK_T_DISCARD, blk::VIRTIO_BLK_T_WRITE_ZEROES);
    assert_eq!(ranges(discard, &[(0, 1, 1)]), Err(Status::Unsupported), "unmap is for zeroes");
    assert_eq!(ranges(write, &[(0, 1, 2)]), Err(Status::Unsupported));
    assert_eq!(ranges(write, &[(0, 1, 0); 2]), Err(Status::IoError));
    assert!(ranges(discard, &[(0, 1, 0); MAX_DISCARD_SEGMENTS]).is_ok());
    assert_eq!(ranges(discard, &[(0, 1, 0); MAX_DISCARD_SEGMENTS + 1]), Err(Status::IoError));
    assert_eq!(ranges(discard, &[]), Err(Status::IoError));
    assert_eq!(ranges(discard, &[(u64::MAX, 1, 0)]), Err(Status::IoError));
    assert_eq!(command(discard, 0, &[(DATA, 17, 0)]), Err(Status::IoError));
    assert_eq!(command(discard, 0, &[(MEMORY_BYTES as u64 - 8, 16, 0)]), Err(Status::IoError), "outside of memory");
}

#[test]
fn a_header_that_is_short_or_outside_of_memory_is_refused() {
    let memory = memory_with_header(READ, 0);
    for header in [(HEADER, 15, 0), (MEMORY_BYTES as u64 - 8, 16, 0), (u64::MAX - 8, 16, 0), (u64::MAX, 16, 0)] {
        let parsed = parse_table(&memory, &linked(&[header, (DATA, 512, WRITE), (STATUS, 1, WRITE)])).unwrap();
        assert_eq!(parsed.command, Err(Status::IoError), "{header:?}");
    }
}

#[test]
fn a_readable_part_behind_a_writable_one_is_refused() {
    assert_eq!(command(READ, 0, &[(DATA, 512, WRITE), (DATA, 512, 0)]), Err(Status::IoError));
}

/// Lesson: descriptor chains, loops (SPDK CVE-2019-9547).
#[test]
fn without_a_place_for_the_status_there_is_no_answer() {
    let memory = memory_with_header(READ, 0);
    let mut loops = linked(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    loops[2] = Descriptor::new(STATUS, 1, WRITE | NEXT, 1);
    let mut leads_out = loops.clone();
    leads_out[2] = Descriptor::new(STATUS, 1, WRITE | NEXT, QUEUE_SIZE);
    let chains = [
        loops,
        leads_out,
        linked(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, 0)]),
        linked(&[(HEADER, 16, 0), (DATA, 512, WRITE), (MEMORY_BYTES as u64, 1, WRITE)]),
        linked(&[(HEADER, 16, 0), (DATA, 512, WRITE), (u64::MAX, 2, WRITE)]),
        linked(&[(HEADER, 16, 0), (DATA, u32::MAX, WRITE), (STATUS, 1, WRITE)]),
        linked(&[(HEADER, 0, 0)]),
        linked(&[(MEMORY_BYTES as u64 * 2, 16, INDIRECT_FLAG)]),
        linked(&[(INDIRECT, 17, INDIRECT_FLAG)]),
        linked(&[(INDIRECT, 0, INDIRECT_FLAG)]),
        linked(&[(INDIRECT, !15, INDIRECT_FLAG)]),
    ];
    for chain in chains {
        assert_eq!(parse_table(&memory, &chain), Err(NoStatus), "{chain:?}");
    }
}

#[test]
fn four_gigabytes_are_counted_and_not_touched() {
    let parsed = command(READ, 0, &[(DATA, u32::MAX - 16 - 511, WRITE)]);
    assert_eq!(parsed, Err(Status::IoError), "not whole sectors");
    let Ok(Command::Transfer(request, _)) = command(READ, 0, &[(DATA, 0xffff_fc00, WRITE)]) else { panic!("a transfer") };
    assert_eq!(request.check(1 << 40, crate::request::Access::ReadWrite), Err(crate::request::RequestError::TooLarge));
}

#[test]
fn indirect_tables_are_followed_once() {
    let memory = memory_with_header(READ, 0);
    let table = [Descriptor::new(INDIRECT, 48, INDIRECT_FLAG, 0)];
    put_table(&memory, INDIRECT, &linked(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]));
    assert!(parse_table(&memory, &table).unwrap().command.is_ok());
    put_table(&memory, INDIRECT, &[Descriptor::new(INDIRECT, 48, INDIRECT_FLAG, 0)]);
    assert_eq!(parse_table(&memory, &table), Err(NoStatus), "a table in a table");
}

#[test]
fn a_chain_of_too_many_parts_is_refused_at_its_status() {
    let memory = memory_with_header(READ, 0);
    let mut parts = vec![(HEADER, 16, 0)];
    parts.extend((0..3000).map(|_| (DATA, 512, WRITE)));
    parts.push((STATUS, 1, WRITE));
    let at = 0x2_0000;
    put_table(&memory, at, &linked(&parts));
    let parsed = parse_table(&memory, &[Descriptor::new(at, parts.len() as u32 * 16, INDIRECT_FLAG, 0)]).unwrap();
    assert_eq!((parsed.status, parsed.command), (GuestAddress(STATUS), Err(Status::IoError)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_the_table_holds_parsing_ends(
        kind in 0_u32..16,
        sector in any::<u64>(),
        table in proptest::collection::vec(
            (prop_oneof![Just(HEADER), Just(DATA), Just(STATUS), Just(INDIRECT), any::<u64>()],
             prop_oneof![Just(16), Just(1), Just(512), Just(0), 0_u32..100_000, any::<u32>()],
             0_u16..8, 0_u16..20),
            1..16,
        ),
    ) {
        let memory = memory_with_header(kind, sector);
        let table: Vec<_> = table.iter().map(|(address, len, flags, next)| Descriptor::new(*address, *len, *flags, *next)).collect();
        put_table(&memory, INDIRECT, &table);
        if let Ok(parsed) = parse_table(&memory, &table) {
            prop_assert!(memory.check_range(parsed.status, 1, Permissions::Write));
            match parsed.command {
                Ok(Command::Transfer(request, segments)) => {
                    prop_assert_eq!(request.len_bytes, total(&segments));
                    prop_assert!(request.len_bytes > 0 && request.is_aligned() && segments.len() <= MAX_SEGMENTS);
                }
                Ok(Command::Change(requests)) => prop_assert!((1..=MAX_DISCARD_SEGMENTS).contains(&requests.len())),
                Ok(Command::Flush | Command::Identify(_)) | Err(_) => {}
            }
        }
    }
}
