//! The device behind one connection, as the vhost-user crate calls it.
//!
//! Queues are dealt out to a few threads: queue `q` is number `q / threads` of thread `q % threads`. The crate's threads wait for kicks and
//! for the two descriptors that [`Backend::listeners`] names, and call [`VhostUserBackend::handle_event`]; the connection's thread calls the
//! rest.

use super::config_space::{CacheMode, ConfigSpace};
use super::device::{Device, Memory};
use super::mailbox::Mailbox;
use super::sys::ExitEvents;
use super::virtqueue::{VirtQueue, Vring};
use super::worker::{Event, Worker};
use super::zeroing::Job;
use crate::request::Access;
use crate::volume::Volume;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::{virtio_blk as blk, virtio_config, virtio_ring};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

/// Queues that a device offers: as many as the crate can serve, because QEMU asks for one per virtual CPU and takes no less.
pub(super) const QUEUES: usize = 64;
/// Most descriptors of a queue.
const MAX_QUEUE_SIZE: usize = 1024;

/// See the module's documentation.
pub(super) struct Backend {
    device: Arc<Device>,
    threads: Vec<Thread>,
    pub(super) exits: ExitEvents,
}

struct Thread {
    worker: Mutex<Worker>,
    mailbox: Arc<Mailbox>,
    _bell: GateBell,
}

/// Rings a mailbox when the volume's gate changes.
struct GateBell {
    volume: Arc<Volume>,
    id: u64,
}

impl Backend {
    pub(super) fn new(device: Arc<Device>, threads: usize, zeroing: Sender<Job>) -> io::Result<Self> {
        let start = |_| Thread::new(&device, zeroing.clone());
        let threads = (0..threads.clamp(1, QUEUES)).map(start).collect::<io::Result<_>>()?;
        Ok(Self { device, threads, exits: ExitEvents::default() })
    }

    /// For each thread, what else it has to listen to.
    pub(super) fn listeners(&self) -> impl Iterator<Item = [RawFd; 2]> {
        self.threads.iter().map(|thread| [thread.lock().ring_fd(), thread.mailbox.as_raw_fd()])
    }

    /// Completes what was begun, and does nothing more.
    pub(super) fn close(&self) {
        for thread in &self.threads {
            thread.lock().close();
        }
    }

    /// The thread of a queue, and its number there.
    fn place(&self, queue: usize) -> (&Thread, usize) {
        (&self.threads[queue % self.threads.len()], queue / self.threads.len())
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace {
            size_bytes: self.device.volume.size_bytes(),
            block_bytes: self.device.block_bytes() as u32,
            queues: QUEUES as u16,
            cache: self.device.cache(),
        }
    }
}

impl Thread {
    fn new(device: &Arc<Device>, zeroing: Sender<Job>) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        let worker = Mutex::new(Worker::new(device.clone(), mailbox.clone(), zeroing)?);
        let _bell = GateBell::new(device.volume.clone(), mailbox.clone());
        Ok(Self { worker, mailbox, _bell })
    }

    fn lock(&self) -> MutexGuard<'_, Worker> {
        // A panic in a worker ends its thread; what is under way is drained all the same.
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GateBell {
    fn new(volume: Arc<Volume>, mailbox: Arc<Mailbox>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Relaxed);
        volume.gate.add_bell(id, Box::new(move || mailbox.ring()));
        Self { volume, id }
    }
}

impl Drop for GateBell {
    fn drop(&mut self) {
        self.volume.gate.remove_bell(self.id);
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        let offered = [
            virtio_config::VIRTIO_F_VERSION_1,
            virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
            virtio_ring::VIRTIO_RING_F_EVENT_IDX,
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_TOPOLOGY,
            blk::VIRTIO_BLK_F_FLUSH,
            blk::VIRTIO_BLK_F_CONFIG_WCE,
            blk::VIRTIO_BLK_F_MQ,
            blk::VIRTIO_BLK_F_DISCARD,
            blk::VIRTIO_BLK_F_WRITE_ZEROES,
        ];
        let features = offered.iter().fold(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(), |all, bit| all | 1 << bit);
        if self.device.access == Access::ReadOnly { features | 1 << blk::VIRTIO_BLK_F_RO } else { features }
    }

    fn acked_features(&self, features: u64) {
        // Who cannot flush must not need to. Who can may still choose, in the configuration space.
        let can_flush = features & (1 << blk::VIRTIO_BLK_F_FLUSH) != 0;
        self.device.set_cache(if can_flush { CacheMode::WriteBack } else { CacheMode::WriteThrough });
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn reset_device(&self) {
        for queue in 0..QUEUES {
            let (thread, queue) = self.place(queue);
            thread.lock().stop(queue);
        }
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The queues know.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config().read(offset, size)
    }

    fn set_config(&self, offset: u32, content: &[u8]) -> io::Result<()> {
        let mode = ConfigSpace::written(offset, content).ok_or(io::ErrorKind::InvalidInput)?;
        self.device.set_cache(mode);
        Ok(())
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        // The device has a handle of the same memory. What is under way keeps the mapping that it began with.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        let threads = self.threads.len();
        (0..threads).map(|thread| (thread..QUEUES).step_by(threads).fold(0, |mask, queue| mask | 1 << queue)).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let exit = self.exits.make();
        exit.inspect_err(|error| tracing::error!(%error, "vhost-user: no descriptor for the end of a thread")).ok()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        let (thread, queue) = self.place(queue as usize);
        thread.lock().stop(queue);
        Ok(())
    }

    fn handle_event(&self, event: u16, _events: EventSet, vrings: &[Vring], thread: usize) -> io::Result<()> {
        let queues = || {
            let numbers = (thread..).step_by(self.threads.len());
            vrings.iter().zip(numbers).map(|(vring, number)| VirtQueue::new(vring.clone(), number)).collect()
        };
        let event = usize::from(event);
        let event = if event < vrings.len() { Event::Kick(event) } else { Event::Wake };
        self.threads[thread].lock().handle(event, queues);
        Ok(())
    }
}
