//! A front end's messages: what they change, and in which order they may come.
//!
//! ```text
//!                 size, base, addresses, kick, enabled: all are known
//!   configured  ────────────────────────────────────────────────────►  running
//!               ◄────────────────────────────────────────────────────
//!                 GET_VRING_BASE, RESET_DEVICE
//! ```
//!
//! The front end is trusted with its guest's memory, and with nothing else. Any message may come at any time and twice. One that
//! contradicts what was offered, or changes where a running queue lies, is an error, which ends the connection; one that says again what holds
//! already is none. What may change while a queue runs is what to notify, whether it is enabled, and the memory.

use super::config_space::{CacheMode, ConfigSpace};
use super::device::Device;
use super::inflight::Inflight;
use super::memory::{MAX_SLOTS, MemoryTable};
use super::queue::{Change, Layout, MAX_QUEUE_SIZE, Setup, Suppression};
use super::workers::Workers;
use crate::request::Access;
use std::fs::File;
use std::io;
use std::sync::Arc;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog, VhostUserMemoryRegion,
    VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::{virtio_blk as blk, virtio_config, virtio_ring};

/// Queues that a device offers: many, because QEMU asks for one per virtual CPU and takes no less.
pub(super) const QUEUES: usize = 64;

/// See the module's documentation.
pub(super) struct Handler {
    device: Arc<Device>,
    workers: Workers,
    memory: MemoryTable,
    inflight: Option<Inflight>,
    features: u64,
    queues: Vec<Queue>,
}

/// What is known of a queue.
struct Queue {
    size: u16,
    base: u16,
    /// In the front end's addresses.
    addresses: Option<Addresses>,
    kick: Option<File>,
    call: Option<File>,
    error: Option<File>,
    enabled: bool,
    running: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Addresses {
    descriptors: u64,
    available: u64,
    used: u64,
}

impl Default for Queue {
    fn default() -> Self {
        let (addresses, kick, call, error) = (None, None, None, None);
        Self { size: MAX_QUEUE_SIZE, base: 0, addresses, kick, call, error, enabled: false, running: false }
    }
}

impl Queue {
    /// Changes a part of the configuration that a running queue keeps.
    fn configure<T: PartialEq>(&mut self, part: impl FnOnce(&mut Self) -> &mut T, value: T) -> Result<()> {
        let running = self.running;
        let part = part(self);
        if running && *part != value {
            return Err(Error::InvalidOperation("the queue runs"));
        }
        *part = value;
        Ok(())
    }
}

impl Handler {
    pub(super) fn new(device: Arc<Device>, workers: Workers) -> Self {
        let queues = (0..QUEUES).map(|_| Queue::default()).collect();
        Self { device, workers, memory: MemoryTable::default(), inflight: None, features: 0, queues }
    }

    fn queue(&mut self, index: usize) -> Result<&mut Queue> {
        self.queues.get_mut(index).ok_or(Error::InvalidParam)
    }

    /// Has a queue run, once everything is known that it needs.
    fn start_if_ready(&mut self, index: usize) -> Result<()> {
        let queue = &self.queues[index];
        let (Some(addresses), Some(kick), true, false) = (queue.addresses, &queue.kick, queue.enabled, queue.running) else {
            return Ok(());
        };
        let guest = |address| self.memory.guest_address(address).ok_or(Error::InvalidParam);
        let layout = Layout {
            size: queue.size,
            descriptors: guest(addresses.descriptors)?,
            available: guest(addresses.available)?,
            used: guest(addresses.used)?,
        };
        let has_event_index = self.features & 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX != 0;
        let setup = Setup {
            place: self.workers.place(index),
            number: index,
            layout,
            suppression: if has_event_index { Suppression::EventIndex } else { Suppression::Flag },
            base: queue.base,
            kick: clone(kick)?,
            call: queue.call.as_ref().map(clone).transpose()?,
            error: queue.error.as_ref().map(clone).transpose()?,
            log: self.inflight.as_ref().map(|inflight| inflight.queue(index, queue.size)).transpose().map_err(failed)?.flatten(),
        };
        self.workers.start(setup, self.memory.memory()).map_err(failed)?;
        self.queues[index].running = true;
        Ok(())
    }

    /// Stops a queue; what it would take next is its base from then on.
    fn stop(&mut self, index: usize) -> Result<()> {
        let stopped = if self.queues[index].running { self.workers.stop(index).map_err(failed)? } else { None };
        let queue = &mut self.queues[index];
        queue.base = stopped.unwrap_or(queue.base);
        queue.running = false;
        (queue.kick, queue.call) = (None, None);
        Ok(())
    }

    fn stop_all(&mut self) -> Result<()> {
        (0..QUEUES).try_for_each(|index| self.stop(index))
    }

    fn enable(&mut self, index: usize, enabled: bool) -> Result<()> {
        self.queues[index].enabled = enabled;
        if self.queues[index].running {
            return self.workers.change(index, Change::Enabled(enabled)).map_err(failed);
        }
        self.start_if_ready(index)
    }

    fn memory_changed(&self) -> Result<()> {
        self.workers.use_memory(self.memory.memory()).map_err(failed)
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace {
            size_bytes: self.device.volume.size_bytes(),
            block_bytes: self.device.block_bytes() as u32,
            queues: QUEUES as u16,
            cache: self.device.cache(),
        }
    }

    fn offered(&self) -> u64 {
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
}

/// What the protocol offers beyond its first version.
pub(super) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::BACKEND_REQ
}

fn clone(file: &File) -> Result<std::os::fd::OwnedFd> {
    Ok(file.try_clone().map_err(failed)?.into())
}

fn failed(error: io::Error) -> Error {
    Error::ReqHandlerError(error)
}

fn not_offered<T>() -> Result<T> {
    Err(Error::InvalidOperation("not offered"))
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.stop_all()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_all()?;
        self.queues.iter_mut().for_each(|queue| *queue = Queue::default());
        self.features = 0;
        self.inflight = None;
        // The cache mode stays: QEMU keeps what the guest has chosen and says it once.
        self.device.set_can_flush(true);
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered() != 0 {
            return Err(Error::InvalidParam);
        }
        if features != self.features && self.queues.iter().any(|queue| queue.running) {
            return Err(Error::InvalidOperation("a queue runs"));
        }
        self.features = features;
        self.device.set_can_flush(features & (1 << blk::VIRTIO_BLK_F_FLUSH) != 0);
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return (0..QUEUES).try_for_each(|index| self.enable(index, true));
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.memory.replace(regions, files)?;
        self.memory_changed().map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|size| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE);
        let size = size.ok_or(Error::InvalidParam)?;
        self.queue(index as usize)?.configure(|queue| &mut queue.size, size)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = Addresses { descriptors, available, used };
        let known = [descriptors, used, available].iter().all(|address| self.memory.guest_address(*address).is_some());
        if !known {
            return Err(Error::InvalidParam);
        }
        self.queue(index as usize)?.configure(|queue| &mut queue.addresses, Some(addresses))?;
        self.start_if_ready(index as usize)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.queue(index as usize)?.configure(|queue| &mut queue.base, base)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.queue(index as usize)?;
        self.stop(index as usize)?;
        Ok(VhostUserVringState::new(index, u32::from(self.queues[index as usize].base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let index = usize::from(index);
        let file = file.ok_or(Error::InvalidOperation("a queue without kicks would have to be looked at all the time"))?;
        let queue = self.queue(index)?;
        let kick = clone(&file)?;
        queue.kick = Some(file);
        if queue.running {
            return self.workers.change(index, Change::Kick(kick)).map_err(failed);
        }
        self.start_if_ready(index)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let index = usize::from(index);
        let call = file.as_ref().map(clone).transpose()?;
        let queue = self.queue(index)?;
        queue.call = file;
        if queue.running { self.workers.change(index, Change::Call(call)).map_err(failed) } else { Ok(()) }
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let index = usize::from(index);
        let error = file.as_ref().map(clone).transpose()?;
        let queue = self.queue(index)?;
        queue.error = file;
        if queue.running { self.workers.change(index, Change::Error(error)).map_err(failed) } else { Ok(()) }
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !protocol_features().bits() == 0 { Ok(()) } else { Err(Error::InvalidParam) }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.queue(index as usize)?;
        self.enable(index as usize, enable)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(self.config().read(offset, size))
    }

    fn set_config(&mut self, offset: u32, content: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let mode = ConfigSpace::written(offset, content).ok_or(Error::InvalidParam)?;
        self.device.choose_cache(mode);
        self.inflight.iter().for_each(|inflight| inflight.note_cache(mode));
        Ok(())
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, queue_size) = inflight_shape(wanted)?;
        let (inflight, file) = Inflight::create(queues, queue_size).map_err(failed)?;
        self.use_inflight(inflight)?;
        Ok((VhostUserInflight::new(Inflight::size_bytes(queues, queue_size), 0, queues, queue_size), file))
    }

    fn set_inflight_fd(&mut self, kept: &VhostUserInflight, file: File) -> Result<()> {
        let (queues, queue_size) = inflight_shape(kept)?;
        if kept.mmap_size < Inflight::size_bytes(queues, queue_size) {
            return Err(Error::InvalidParam);
        }
        self.use_inflight(Inflight::open(file, kept.mmap_offset, queues, queue_size).map_err(failed)?)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_SLOTS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.memory.add(region, file)?;
        self.memory_changed().map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory.remove(region)?;
        self.memory_changed()
    }

    fn set_gpu_socket(&mut self, _socket: GpuBackend) -> Result<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        not_offered()
    }

    fn set_device_state_fd(&mut self, _: VhostTransferStateDirection, _: VhostTransferStatePhase, _: File) -> Result<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered()
    }
}

impl Handler {
    /// Queues that start from now on keep their record there. A daemon before this one may have been told how the guest wants to have writes
    /// cached; this one will not be.
    fn use_inflight(&mut self, inflight: Inflight) -> Result<()> {
        if self.queues.iter().any(|queue| queue.running) {
            return Err(Error::InvalidOperation("a queue runs"));
        }
        if inflight.noted_cache() == CacheMode::WriteThrough {
            self.device.choose_cache(CacheMode::WriteThrough);
        }
        inflight.note_cache(self.device.chosen_cache());
        self.inflight = Some(inflight);
        Ok(())
    }
}

/// Queues and their size, within our limits.
fn inflight_shape(inflight: &VhostUserInflight) -> Result<(u16, u16)> {
    let (queues, queue_size) = (inflight.num_queues, inflight.queue_size);
    let fits = (1..=QUEUES as u16).contains(&queues) && (1..=MAX_QUEUE_SIZE).contains(&queue_size);
    if fits { Ok((queues, queue_size)) } else { Err(Error::InvalidParam) }
}
