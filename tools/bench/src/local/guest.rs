//! A guest without a VM: a virtio driver that speaks vhost-user, and keeps queues full.
//!
//! It waits for interrupts as a guest does, and asks the device whether it wants a kick. Queues that run at once have a thread each; many
//! devices under one load share one thread, as they would share a CPU.

use super::sys::Shared;
use super::workload::{Latency, Op, Order, Workload, sample_ns};
use crate::site::PATIENCE;
use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_driver::{EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

/// Descriptors of each queue: three for each request.
const QUEUE_SIZE: u16 = 128;
/// Memory of each queue.
const MEMORY_BYTES: usize = 1 << 20;
/// Longest that a request may take.
const REQUEST_LIMIT: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };
const SECTOR_BYTES: u64 = 512;
/// Between two attempts to connect.
const RETRY_EVERY: Duration = Duration::from_millis(20);

/// A device's driver.
pub struct Guest {
    lanes: Vec<Lane>,
    /// Dropped after the queues, which lie in its memory.
    _transport: Box<VirtioBlkTransport>,
}

/// A queue, and the memory for its requests.
struct Lane {
    queue: VirtioBlkQueue<'static, usize>,
    kick: Box<dyn QueueNotifier>,
    interrupt: Arc<EventFd>,
    memory: Shared,
    size_bytes: u64,
    rng: StdRng,
    /// Of a sequential load.
    next: u64,
    slots: Vec<Slot>,
    in_flight: usize,
}

/// A request under way.
#[derive(Clone, Copy)]
struct Slot {
    begun: Instant,
    flushing: bool,
}

/// What guests did.
pub struct Load {
    /// Requests a second.
    pub per_second: f64,
    /// How long they took.
    pub latency: Latency,
}

impl Guest {
    /// Connects; a server that has just been started is waited for.
    pub fn connect(socket: &Path, queues: usize) -> Result<Self> {
        let path = socket.to_str().context("a socket's path is text")?;
        let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX | VirtioFeatureFlags::RING_INDIRECT_DESC;
        let features = features.bits() | VirtioBlkFeatureFlags::all().bits();
        let began = Instant::now();
        let mut transport: Box<VirtioBlkTransport> = loop {
            match VhostUser::new(path, features) {
                Ok(transport) => break Box::new(transport),
                Err(error) if began.elapsed() > PATIENCE => bail!("{path}: {error}"),
                Err(_) => std::thread::sleep(RETRY_EVERY),
            }
        };
        let size_bytes = u64::from(transport.get_config()?.capacity) * SECTOR_BYTES;
        let set_up = VirtioBlkQueue::setup_queues(&mut *transport, queues, QUEUE_SIZE)?;
        let lanes = set_up.into_iter().enumerate().map(|(index, queue)| Lane::new(&mut *transport, queue, index, size_bytes));
        Ok(Self { lanes: lanes.collect::<Result<_>>()?, _transport: transport })
    }

    /// Loads all queues at once, each as deep as the workload says.
    pub fn run(&mut self, workload: Workload, duration: Duration) -> Result<Load> {
        let deadline = Instant::now() + duration;
        let samples = std::thread::scope(|scope| {
            let threads: Vec<_> = self.lanes.iter_mut().map(|lane| scope.spawn(move || run(&mut [lane], workload, deadline))).collect();
            let ended = threads.into_iter().map(|thread| thread.join().expect("no panic in a client"));
            ended.collect::<Result<Vec<_>>>()
        })?;
        Ok(Load::of(samples.concat(), duration))
    }
}

/// Loads many devices at once from one thread.
pub fn run_all(guests: &mut [Guest], workload: Workload, duration: Duration) -> Result<Load> {
    let mut lanes: Vec<_> = guests.iter_mut().flat_map(|guest| guest.lanes.iter_mut()).collect();
    Ok(Load::of(run(&mut lanes, workload, Instant::now() + duration)?, duration))
}

impl Load {
    fn of(samples_ns: Vec<u32>, duration: Duration) -> Self {
        Self { per_second: samples_ns.len() as f64 / duration.as_secs_f64(), latency: Latency::of(samples_ns) }
    }
}

/// Keeps the lanes full until the deadline, then waits for what is under way. Returns how long each request took that ended in time.
fn run(lanes: &mut [&mut Lane], workload: Workload, deadline: Instant) -> Result<Vec<u32>> {
    let mut samples_ns = Vec::new();
    for lane in &mut *lanes {
        lane.begin(workload)?;
    }
    while lanes.iter().any(|lane| lane.in_flight > 0) {
        let mut idle = true;
        for lane in &mut *lanes {
            idle &= lane.turn(workload, deadline, &mut samples_ns)? == 0;
        }
        if idle {
            wait(lanes)?;
        }
    }
    Ok(samples_ns)
}

/// Waits for an interrupt.
fn wait(lanes: &[&mut Lane]) -> Result<()> {
    let mut fds: Vec<_> = lanes.iter().map(|lane| PollFd::new(&lane.interrupt, PollFlags::IN)).collect();
    ensure!(poll(&mut fds, Some(&REQUEST_LIMIT))? > 0, "no request ended in {} s", REQUEST_LIMIT.tv_sec);
    let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    for (lane, _) in lanes.iter().zip(ready).filter(|(_, ready)| *ready) {
        lane.interrupt.read()?;
    }
    Ok(())
}

impl Lane {
    fn new(transport: &mut VirtioBlkTransport, mut queue: VirtioBlkQueue<'static, usize>, index: usize, size_bytes: u64) -> Result<Self> {
        queue.set_used_notif_enabled(true);
        let file: File = memfd_create("guest", MemfdFlags::CLOEXEC)?.into();
        let memory = Shared::new(file.try_clone()?, MEMORY_BYTES)?;
        transport.map_mem_region(memory.address(), MEMORY_BYTES, file.as_raw_fd(), 0)?;
        Ok(Self {
            queue,
            kick: transport.get_submission_notifier(index),
            interrupt: transport.get_completion_fd(index),
            memory,
            size_bytes,
            rng: StdRng::seed_from_u64(index as u64),
            next: 0,
            slots: Vec::new(),
            in_flight: 0,
        })
    }

    fn begin(&mut self, workload: Workload) -> Result<()> {
        self.slots = vec![Slot { begun: Instant::now(), flushing: false }; workload.depth];
        for slot in 0..workload.depth {
            self.submit(slot, workload)?;
        }
        self.kick()
    }

    /// Takes what has ended, and begins as much again before the deadline; returns how many ended.
    fn turn(&mut self, workload: Workload, deadline: Instant, samples_ns: &mut Vec<u32>) -> Result<usize> {
        let mut ended = 0;
        while let Some(completion) = self.queue.completions().next() {
            ensure!(completion.ret == 0, "a request failed: {}", std::io::Error::from_raw_os_error(-completion.ret));
            ended += 1;
            self.in_flight -= 1;
            let slot = &mut self.slots[completion.context];
            if workload.op == Op::WriteFlush && !slot.flushing {
                slot.flushing = true;
                self.queue.flush(completion.context)?;
                self.in_flight += 1;
                continue;
            }
            let now = Instant::now();
            if now < deadline {
                samples_ns.push(sample_ns(now - slot.begun));
                self.submit(completion.context, workload)?;
            }
        }
        if ended > 0 {
            self.kick()?;
        }
        Ok(ended)
    }

    fn submit(&mut self, slot: usize, workload: Workload) -> Result<()> {
        let blocks = self.size_bytes / workload.block_bytes;
        let block = match workload.order {
            Order::Random => self.rng.random_range(0..blocks),
            Order::Sequential => self.next % blocks,
        };
        self.next = block + 1;
        let len_bytes = workload.block_bytes as usize;
        self.slots[slot] = Slot { begun: Instant::now(), flushing: false };
        self.memory.queue(&mut self.queue, workload.op, block * workload.block_bytes, slot * len_bytes, len_bytes, slot)?;
        self.in_flight += 1;
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        if self.queue.avail_notif_needed() {
            self.kick.notify()?;
        }
        Ok(())
    }
}
