//! Descriptor chains in memory that changes while it is read: what comes of them lies in memory and within the limits, goes in one
//! direction, and says no more than the guest wrote at one time or another.
#![no_main]

use arbitrary::Arbitrary;
use blockd::request::{Access, MAX_TRANSFER_BYTES, Op, Request};
use blockd::vhost_user::chain::{self, Command, MAX_DISCARD_SEGMENTS, MAX_SEGMENTS, Parsed, Segment, Spares};
use blockd::vhost_user::descriptors::Descriptors;
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::thread::Thread;
use tern_fuzz::made_of;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// Two regions with a hole between them.
const REGIONS: [(u64, usize); 2] = [(0, 64 << 10), (80 << 10, 32 << 10)];
const QUEUE_SIZE: u16 = 32;
const TABLE: u64 = 0;
const INDIRECT: u64 = 0x2000;
const HEADER: u64 = 0x3000;
const SIZE_BYTES: u64 = 1 << 30;
/// Where readable parts lie, and where writable ones: which is which can be told from the outcome.
const READABLE: u64 = 0x4000;
const WRITABLE: u64 = 0x8000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;

#[derive(Arbitrary, Debug, Clone)]
struct Part {
    place: Place,
    len: Len,
    flags: u8,
    next: Option<u8>,
}

#[derive(Arbitrary, Debug, Clone)]
enum Place {
    Header,
    Readable(u16),
    Writable(u16),
    Indirect(u8),
    /// Around an end of a region.
    Edge(u8, i16),
    Anywhere(u64),
}

#[derive(Arbitrary, Debug, Clone)]
enum Len {
    Header,
    Sectors(u8),
    Bytes(u8),
    Ranges(u8),
    Entries(u8),
    Anything(u32),
}

#[derive(Arbitrary, Debug, Clone)]
struct Header {
    kind: u8,
    sector: u64,
    near_the_end: bool,
}

/// What the guest writes while it is being read.
#[derive(Arbitrary, Debug, Clone)]
enum Change {
    Nothing,
    Entry(bool, u8, Part),
    Header(Header),
    Bytes(u16, [u8; 8]),
}

#[derive(Arbitrary, Debug)]
struct Input {
    table: Vec<Part>,
    indirect: Vec<Part>,
    header: Header,
    ranges: Vec<(u32, u32, u8)>,
    head: u8,
    /// One each time that the device looks at a descriptor.
    changes: Vec<Change>,
    /// Another processor writes to the header meanwhile: seldom, since that takes a hundred times as long.
    restless: u8,
}

impl Part {
    fn descriptor(&self, at: usize) -> Descriptor {
        let address = match self.place {
            Place::Header => HEADER,
            Place::Readable(at) => READABLE + u64::from(at % 0x3000),
            Place::Writable(at) => WRITABLE + u64::from(at % 0x3000),
            Place::Indirect(at) => INDIRECT + u64::from(at) * 16,
            Place::Edge(which, by) => {
                let (start, len) = REGIONS[usize::from(which / 2) % 2];
                let edge = if which % 2 == 0 { start } else { start + len as u64 };
                edge.wrapping_add_signed(i64::from(by))
            }
            Place::Anywhere(address) => address,
        };
        let len = match self.len {
            Len::Header => 16,
            Len::Sectors(count) => u32::from(count) * 512,
            Len::Bytes(len) => u32::from(len),
            Len::Ranges(count) | Len::Entries(count) => u32::from(count % 40) * 16,
            Len::Anything(len) => len,
        };
        // Mostly in the direction of its place, mostly linked to the one behind it.
        let direction = if matches!(self.place, Place::Writable(_)) { WRITE } else { 0 };
        let flags = match self.flags {
            0..160 => direction | NEXT,
            160..220 => direction,
            220..240 => INDIRECT_FLAG,
            flags => u16::from(flags) & 7,
        };
        Descriptor::new(address, len, flags, self.next.map_or(at as u16 + 1, |next| u16::from(next % 40)))
    }
}

impl Header {
    fn bytes(&self) -> [u8; 16] {
        let kind = [0, 1, 4, 8, 11, 13, u32::from(self.kind)][usize::from(self.kind) % 7];
        let sector = if self.near_the_end { (SIZE_BYTES / 512).wrapping_sub(self.sector % 300) } else { self.sector };
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }
}

/// Descriptors of a guest that writes to its memory each time before one is looked at.
struct Restless<'a> {
    descriptors: Descriptors<'a>,
    memory: &'a GuestMemoryMmap,
    changes: std::vec::IntoIter<Change>,
    looks: usize,
}

impl Iterator for Restless<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        self.looks += 1;
        assert!(self.looks <= usize::from(u16::MAX) + 1, "a walk is bounded");
        match self.changes.next() {
            None | Some(Change::Nothing) => {}
            Some(Change::Entry(indirect, at, part)) => {
                let (table, at) = (if indirect { INDIRECT } else { TABLE }, usize::from(at % 40));
                put(self.memory, table + at as u64 * 16, part.descriptor(at).as_slice());
            }
            Some(Change::Header(header)) => put(self.memory, HEADER, &header.bytes()),
            Some(Change::Bytes(at, bytes)) => put(self.memory, u64::from(at), &bytes),
        }
        self.descriptors.next()
    }
}

/// What does not fit is left out.
fn put(memory: &GuestMemoryMmap, at: u64, bytes: &[u8]) {
    let _ = memory.write_slice(bytes, GuestAddress(at));
}

fn memory() -> GuestMemoryMmap {
    static MEMORY: OnceLock<GuestMemoryMmap> = OnceLock::new();
    let make = || GuestMemoryMmap::from_ranges(&REGIONS.map(|(start, len)| (GuestAddress(start), len))).expect("memory");
    MEMORY.get_or_init(make).clone()
}

/// The guest's other processor: it writes one of two headers, in turns, while it is busy.
struct Processor {
    state: AtomicU8,
    headers: [AtomicU64; 4],
    thread: OnceLock<Thread>,
}

const IDLE: u8 = 0;
const BUSY: u8 = 1;
const STOPPING: u8 = 2;

static PROCESSOR: Processor = Processor { state: AtomicU8::new(IDLE), headers: [const { AtomicU64::new(0) }; 4], thread: OnceLock::new() };

impl Processor {
    /// Calls `with` while the processor works.
    fn beside<T>(&self, one: [u8; 16], other: [u8; 16], with: impl FnOnce() -> T) -> T {
        for (slot, word) in self.headers.iter().zip([&one[..8], &one[8..], &other[..8], &other[8..]]) {
            slot.store(word.try_into().map(u64::from_le_bytes).expect("eight bytes"), SeqCst);
        }
        self.state.store(BUSY, SeqCst);
        self.thread.get_or_init(|| std::thread::spawn(|| PROCESSOR.work()).thread().clone()).unpark();
        let result = with();
        // Nothing of it is left for the next input.
        self.state.store(STOPPING, SeqCst);
        while self.state.load(SeqCst) != IDLE {
            std::thread::yield_now();
        }
        result
    }

    fn work(&self) {
        let memory = memory();
        for half in [0, 2].into_iter().cycle() {
            match self.state.load(SeqCst) {
                BUSY => put(&memory, HEADER, &[0, 1].map(|at| self.headers[half + at].load(SeqCst).to_le_bytes()).concat()),
                STOPPING => self.state.store(IDLE, SeqCst),
                _ => std::thread::park(),
            }
        }
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len_bytes)).sum()
}

fn check_request(request: Request) {
    let Ok(request) = request.check(SIZE_BYTES, Access::ReadWrite) else { return };
    assert!(request.offset.checked_add(request.len_bytes).is_some_and(|end| end <= SIZE_BYTES));
    assert!(!request.op.moves_data() || request.len_bytes <= MAX_TRANSFER_BYTES);
}

fn check(memory: &GuestMemoryMmap, parsed: &Parsed, honest_places: bool) {
    assert!(memory.check_range(parsed.status, 1, Permissions::Write), "there is a place for the answer");
    match &parsed.command {
        Ok(Command::Transfer(request, segments)) => {
            assert!(request.op.moves_data() && request.len_bytes == total(segments));
            assert!(request.len_bytes > 0 && request.is_aligned() && segments.len() <= MAX_SEGMENTS);
            assert!(segments.iter().all(|segment| segment.len_bytes > 0));
            let wrong = |segment: &Segment| (segment.address.0 >= WRITABLE) != (request.op == Op::Read);
            assert!(!honest_places || !segments.iter().any(wrong), "one direction");
            assert!(request.op != Op::Read || u64::from(parsed.writable_bytes) == request.len_bytes + 1);
            check_request(*request);
        }
        Ok(Command::Change(requests)) => {
            assert!((1..=MAX_DISCARD_SEGMENTS).contains(&requests.len()));
            assert!(requests.iter().all(|request| !request.op.moves_data()));
            requests.iter().copied().for_each(check_request);
        }
        Ok(Command::Flush) => {}
        Ok(Command::Identify(segments)) => assert!(total(segments) < u64::from(parsed.writable_bytes)),
        Err(_) => {}
    }
}

fn run(input: Input) {
    let memory = memory();
    put(&memory, 0, &[0; READABLE as usize + 0x2000]);
    // Without changes and tables in tables, the place of a part says its direction.
    let mut honest_places = input.changes.is_empty() && input.indirect.is_empty();
    for (table, parts) in [(TABLE, &input.table), (INDIRECT, &input.indirect)] {
        for (at, part) in parts.iter().take(40).enumerate() {
            let descriptor = part.descriptor(at);
            let fits = matches!(part.place, Place::Header | Place::Readable(_) | Place::Writable(_)) && part.flags < 220;
            honest_places &= fits;
            put(&memory, table + at as u64 * 16, descriptor.as_slice());
        }
    }
    put(&memory, HEADER, &input.header.bytes());
    for (at, (sector, sectors, flags)) in (READABLE..READABLE + 0x2000).step_by(16).zip(&input.ranges) {
        put(&memory, at, &[u64::from(*sector).to_le_bytes().as_slice(), &sectors.to_le_bytes(), &u32::from(*flags).to_le_bytes()].concat());
    }
    let descriptors = Descriptors::of(&memory, GuestAddress(TABLE), QUEUE_SIZE, u16::from(input.head % 40));
    let chain = Restless { descriptors, memory: &memory, changes: input.changes.into_iter(), looks: 0 };
    let other = Header { kind: input.header.kind ^ 1, ..input.header };
    let parse = || chain::parse(&memory, chain, &mut Spares::default());
    let parsed = if input.restless % 64 == 1 { PROCESSOR.beside(input.header.bytes(), other.bytes(), parse) } else { parse() };
    if let Ok(parsed) = parsed {
        check(&memory, &parsed, honest_places);
    }
}

fuzz_target!(|data: &[u8]| {
    if let Some(input) = made_of(data) {
        run(input);
    }
});
