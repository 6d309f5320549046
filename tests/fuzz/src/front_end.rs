//! A vhost-user front end, with its guest, that does what the fuzzer says.

use crate::served::{Served, eventually};
use crate::wire::{self, Wire, ring, words};
use arbitrary::Arbitrary;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::SeqCst;

/// Messages that the tests of blockd have no name for.
const SET_VRING_ADDR: u32 = 9;
const RESET_DEVICE: u32 = 34;
const REM_MEM_REG: u32 = 38;
/// What the memory of a front end is called, to be found among the mappings.
const MEMORY_NAME: &str = "tern-fuzz-guest";
const MEMORY_BYTES: u64 = 256 << 10;
/// Where the front end says that it has mapped the memory.
const HOST: u64 = 1 << 40;
const QUEUE_SIZE: u16 = 16;
/// Queues that are played with. Each has its rings in memory of its own.
const QUEUES: u8 = 3;
const RINGS_BYTES: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADERS: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;

/// What the fuzzer makes up.
#[derive(Arbitrary, Debug)]
pub struct Input {
    /// Begin as a front end should.
    orderly: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Set a queue up and start it.
    Start { queue: u8, base: u16 },
    /// Stop a queue.
    Stop(u8),
    /// A message with numbers for its body.
    Message { request: u8, flags: u8, numbers: Vec<Number>, descriptors: Vec<Descriptor> },
    /// A message about one ring.
    Ring { request: u8, queue: u8, value: u32, descriptors: Vec<Descriptor> },
    /// Memory, as a table or one region more or less.
    Memory { request: MemoryRequest, regions: Vec<Region>, descriptors: u8 },
    /// Bytes.
    Raw { bytes: Vec<u8>, descriptors: Vec<Descriptor> },
    /// A whole request, as a driver makes it.
    Request { queue: u8, kind: u8, sector: u16, sectors: u8 },
    /// A descriptor in a table.
    Entry { queue: u8, at: u8, address: Address, len: u32, flags: u8, next: u8 },
    /// A chain that may be none.
    Publish { queue: u8, head: u8 },
    /// An index that nobody expects.
    Available { queue: u8, index: u16 },
    /// Anything, anywhere in memory.
    Scribble { at: u32, bytes: Vec<u8> },
    /// Wake the device.
    Kick(u8),
    /// Reset the device.
    Reset,
}

#[derive(Arbitrary, Debug)]
enum Number {
    Small(u8),
    Queue(u8),
    Host(u32),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Address {
    Header(u8),
    Data(u16),
    Any(u64),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Descriptor {
    Event,
    Memory,
    Pipe,
}

#[derive(Arbitrary, Debug)]
enum MemoryRequest {
    Table,
    Add,
    Remove,
}

#[derive(Arbitrary, Debug)]
struct Region {
    guest: Number,
    pages: Number,
    host: Number,
    offset: Number,
}

impl Number {
    fn value(&self) -> u64 {
        match self {
            Self::Small(number) => u64::from(*number),
            Self::Queue(number) => u64::from(number % QUEUES),
            Self::Host(offset) => HOST + u64::from(*offset),
            Self::Any(number) => *number,
        }
    }
}

impl Address {
    fn value(&self) -> u64 {
        match self {
            Self::Header(slot) => HEADERS + u64::from(*slot) * 16,
            Self::Data(at) => DATA + u64::from(*at),
            Self::Any(address) => *address,
        }
    }
}

/// The guest's memory. It is written to as a file: no reference to what a device may change.
struct Guest {
    memory: File,
    kicks: Vec<OwnedFd>,
    calls: Vec<OwnedFd>,
    /// Where each queue goes on.
    available: RefCell<Vec<u16>>,
}

impl Guest {
    fn new() -> Self {
        let memory: File = memfd_create(MEMORY_NAME, MemfdFlags::CLOEXEC).expect("memory").into();
        memory.set_len(MEMORY_BYTES).expect("memory");
        let events = || (0..QUEUES).map(|_| event()).collect();
        Self { memory, kicks: events(), calls: events(), available: RefCell::new(vec![0; usize::from(QUEUES)]) }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        if at.checked_add(bytes.len() as u64).is_some_and(|end| end <= MEMORY_BYTES) {
            self.memory.write_all_at(bytes, at).expect("within the memory");
        }
    }

    fn entry(&self, queue: u8, at: u8, address: u64, len: u32, flags: u16, next: u16) {
        let descriptor = [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        self.put(rings(queue) + u64::from(at % 32) * 16, &descriptor);
    }

    fn publish(&self, queue: u8, head: u16) {
        let index = self.available.borrow()[usize::from(queue)];
        self.put(rings(queue) + AVAILABLE + 4 + u64::from(index % QUEUE_SIZE) * 2, &head.to_le_bytes());
        self.set_available(queue, index.wrapping_add(1));
    }

    fn set_available(&self, queue: u8, index: u16) {
        self.available.borrow_mut()[usize::from(queue)] = index;
        self.put(rings(queue) + AVAILABLE + 2, &index.to_le_bytes());
    }

    fn kick(&self, queue: u8) {
        // A full counter is as good.
        let _ = rustix::io::write(&self.kicks[usize::from(queue)], &1_u64.to_ne_bytes());
    }

    fn request(&self, queue: u8, kind: u8, sector: u16, sectors: u8) {
        let slot = self.available.borrow()[usize::from(queue)] % 4;
        let (header, data) = (HEADERS + u64::from(slot) * 32, DATA + u64::from(slot) * 0x8000);
        let kind = [0_u32, 1, 4, 8, 11, 13, 77][usize::from(kind % 7)];
        self.put(header, &[&kind.to_le_bytes()[..], &[0; 4], &u64::from(sector).to_le_bytes()].concat());
        let first = slot as u8 * 4;
        let writable = if kind == 0 || kind == 8 { 2 } else { 0 };
        self.entry(queue, first, header, 16, 1, u16::from(first) + 1);
        self.entry(queue, first + 1, data, u32::from(sectors % 64) * 512, writable | 1, u16::from(first) + 2);
        self.entry(queue, first + 2, header + 16, 1, 2, 0);
        self.publish(queue, u16::from(first));
        self.kick(queue);
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("a descriptor")
}

fn rings(queue: u8) -> u64 {
    u64::from(queue) * RINGS_BYTES
}

/// A front end and its connection.
struct FrontEnd {
    guest: Guest,
    wire: Wire,
    /// Every message so far was one, and asked for an answer that it got: only then is it certain that the next one is answered.
    in_step: bool,
}

/// The connection is over.
struct Over;

/// Carries an input out.
pub fn run(served: &Served, input: Input) {
    // To list them takes as long as all the rest, so it is done once for each input.
    static BEFORE: OnceLock<usize> = OnceLock::new();
    let before = *BEFORE.get_or_init(open_descriptors);
    {
        let mut wire = Wire::connect(served.socket()).expect("a place for a client");
        if input.orderly {
            wire.negotiate().expect("an orderly beginning");
        }
        let mut front_end = FrontEnd { guest: Guest::new(), wire, in_step: input.orderly };
        if input.orderly {
            assert!(front_end.set_memory().is_ok(), "an orderly beginning");
        }
        // Whoever is hung up on stops.
        let _ = input.steps.iter().take(200).try_for_each(|step| front_end.step(step));
    }
    eventually("nothing is kept of a client that is gone", || {
        served.volume.clients.vhost_user.load(SeqCst) == 0 && open_descriptors() <= before && !is_mapped()
    });
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn is_mapped() -> bool {
    std::fs::read_to_string("/proc/self/maps").is_ok_and(|maps| maps.contains(MEMORY_NAME))
}

impl FrontEnd {
    fn step(&mut self, step: &Step) -> Result<(), Over> {
        let guest = &self.guest;
        match step {
            Step::Start { queue, base } => return self.start(queue % QUEUES, *base),
            Step::Stop(queue) => return self.tell(wire::GET_VRING_BASE, &ring(u32::from(queue % QUEUES), 0), &[]),
            Step::Message { request, flags, numbers, descriptors } => {
                let body: Vec<u8> = numbers.iter().take(40).flat_map(|number| number.value().to_ne_bytes()).collect();
                let request = u32::from(request % 45);
                // Some change whether the next one is answered.
                self.in_step &= *flags < 128 && ![wire::SET_FEATURES, wire::SET_PROTOCOL_FEATURES].contains(&request);
                let flags = if *flags < 128 { wire::VERSION | wire::NEED_REPLY } else { u32::from(flags & 15) };
                return self.send(request, flags, &body, descriptors);
            }
            Step::Ring { request, queue, value, descriptors } => {
                let request = wire::SET_VRING_NUM + u32::from(request % 11);
                self.in_step &= ![wire::GET_PROTOCOL_FEATURES, wire::SET_PROTOCOL_FEATURES].contains(&request);
                return self.send(request, wire::VERSION | wire::NEED_REPLY, &ring(u32::from(*queue), *value), descriptors);
            }
            Step::Memory { request, regions, descriptors } => return self.change_memory(request, regions, *descriptors),
            Step::Raw { bytes, descriptors } => {
                let made = make(guest, descriptors);
                let lent: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).collect();
                self.in_step &= bytes.is_empty();
                return if bytes.is_empty() { Ok(()) } else { self.wire.send_bytes(bytes, &lent).map_err(|_| Over) };
            }
            Step::Request { queue, kind, sector, sectors } => guest.request(queue % QUEUES, *kind, *sector, *sectors),
            Step::Entry { queue, at, address, len, flags, next } => {
                guest.entry(queue % QUEUES, *at, address.value(), *len, u16::from(flags & 7), u16::from(*next));
            }
            Step::Publish { queue, head } => guest.publish(queue % QUEUES, u16::from(*head)),
            Step::Available { queue, index } => guest.set_available(queue % QUEUES, *index),
            Step::Scribble { at, bytes } => guest.put(u64::from(*at) % MEMORY_BYTES, bytes),
            Step::Kick(queue) => guest.kick(queue % QUEUES),
            Step::Reset => return self.tell(RESET_DEVICE, &[], &[]),
        }
        Ok(())
    }

    fn send(&mut self, request: u32, flags: u32, body: &[u8], descriptors: &[Descriptor]) -> Result<(), Over> {
        let made = make(&self.guest, descriptors);
        let lent: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).collect();
        self.wire.send(request, flags, body, &lent).map_err(|_| Over)?;
        self.answer()
    }

    /// Sends a message that asks for an answer.
    fn tell(&mut self, request: u32, body: &[u8], lent: &[BorrowedFd<'_>]) -> Result<(), Over> {
        self.wire.send(request, wire::VERSION | wire::NEED_REPLY, body, lent).map_err(|_| Over)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<(), Over> {
        if !self.in_step {
            return Ok(());
        }
        self.wire.receive().map(drop).map_err(|error| {
            assert!(error.kind() != std::io::ErrorKind::WouldBlock, "an answer or the end, in time");
            Over
        })
    }

    fn set_memory(&mut self) -> Result<(), Over> {
        let table = [&[1_u32, 0].map(u32::to_ne_bytes).concat()[..], &words([0, MEMORY_BYTES, HOST, 0])].concat();
        let memory = self.guest.memory.try_clone().expect("a descriptor");
        self.tell(wire::SET_MEM_TABLE, &table, &[memory.as_fd()])
    }

    fn start(&mut self, queue: u8, base: u16) -> Result<(), Over> {
        let (index, at) = (u32::from(queue), HOST + rings(queue));
        self.guest.available.borrow_mut()[usize::from(queue)] = base;
        self.guest.put(rings(queue) + AVAILABLE + 2, &base.to_le_bytes());
        self.guest.put(rings(queue) + USED + 2, &base.to_le_bytes());
        let addresses = [&ring(index, 0)[..], &words([at, at + USED, at + AVAILABLE, 0])].concat();
        self.tell(wire::SET_VRING_NUM, &ring(index, u32::from(QUEUE_SIZE)), &[])?;
        self.tell(wire::SET_VRING_BASE, &ring(index, u32::from(base)), &[])?;
        self.tell(SET_VRING_ADDR, &addresses, &[])?;
        for (request, events) in [(wire::SET_VRING_CALL, &self.guest.calls), (wire::SET_VRING_KICK, &self.guest.kicks)] {
            let event = &events[usize::from(queue)];
            self.wire.send(request, wire::VERSION | wire::NEED_REPLY, &words([u64::from(queue)]), &[event.as_fd()]).map_err(|_| Over)?;
        }
        self.answer()?;
        self.answer()?;
        self.tell(wire::SET_VRING_ENABLE, &ring(index, 1), &[])
    }

    fn change_memory(&mut self, request: &MemoryRequest, regions: &[Region], descriptors: u8) -> Result<(), Over> {
        let bodies: Vec<Vec<u8>> = regions.iter().take(40).map(|region| words(region.numbers())).collect();
        let memory = self.guest.memory.try_clone().expect("a descriptor");
        let lent = vec![memory.as_fd(); usize::from(descriptors % 12)];
        let one = [words([0]), bodies.first().cloned().unwrap_or_default()].concat();
        match request {
            MemoryRequest::Table => {
                let table = [[bodies.len() as u32, 0].map(u32::to_ne_bytes).concat(), bodies.concat()].concat();
                self.tell(wire::SET_MEM_TABLE, &table, &lent)
            }
            MemoryRequest::Add => self.tell(wire::ADD_MEM_REG, &one, &lent),
            MemoryRequest::Remove => self.tell(REM_MEM_REG, &one, &lent),
        }
    }
}

impl Region {
    fn numbers(&self) -> [u64; 4] {
        let (len_bytes, offset) = match self.pages {
            Number::Any(len_bytes) => (len_bytes, u64::MAX - self.offset.value()),
            _ => (self.pages.value() % 64 * 4096, 0),
        };
        [self.guest.value() & !4095, len_bytes, self.host.value(), offset]
    }
}

fn make(guest: &Guest, wanted: &[Descriptor]) -> Vec<OwnedFd> {
    let make = |wanted: &Descriptor| match wanted {
        Descriptor::Event => event(),
        Descriptor::Memory => guest.memory.try_clone().expect("a descriptor").into(),
        Descriptor::Pipe => std::io::pipe().expect("a pipe").1.into(),
    };
    wanted.iter().take(wire::MAX_DESCRIPTORS).map(make).collect()
}
