//! What the queues of one connection share.

use super::config_space::CacheMode;
use crate::metrics::VolumeMetrics;
use crate::request::{Access, SECTOR_BYTES};
use crate::volume::Volume;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

/// A volume as one client sees it.
pub(super) struct Device {
    pub(super) volume: Arc<Volume>,
    pub(super) metrics: Arc<VolumeMetrics>,
    pub(super) access: Access,
    /// Whether the guest may flush.
    can_flush: AtomicBool,
    /// Whether it has chosen to have no cache.
    write_through: AtomicBool,
    /// A bit for each queue that is started. The volume counts this client while one is set.
    started: Mutex<u64>,
}

impl Device {
    pub(super) fn new(volume: Arc<Volume>, metrics: Arc<VolumeMetrics>, access: Access) -> Self {
        Self { volume, metrics, access, can_flush: AtomicBool::new(true), write_through: AtomicBool::new(false), started: Mutex::new(0) }
    }

    pub(super) fn cache(&self) -> CacheMode {
        if self.can_flush.load(SeqCst) { self.chosen_cache() } else { CacheMode::WriteThrough }
    }

    /// What the guest has chosen; it counts if it may flush. Who cannot flush must not need to.
    pub(super) fn chosen_cache(&self) -> CacheMode {
        if self.write_through.load(SeqCst) { CacheMode::WriteThrough } else { CacheMode::WriteBack }
    }

    pub(super) fn choose_cache(&self, mode: CacheMode) {
        self.write_through.store(mode == CacheMode::WriteThrough, SeqCst);
    }

    /// Whether the guest may flush, as the features say.
    pub(super) fn set_can_flush(&self, can_flush: bool) {
        self.can_flush.store(can_flush, SeqCst);
    }

    /// The unit of requests: what direct I/O needs.
    pub(super) fn block_bytes(&self) -> u64 {
        self.volume.image.align_bytes().max(SECTOR_BYTES)
    }

    /// A queue is in use.
    pub(super) fn start(&self, queue: usize) {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if *started == 0 {
            self.volume.clients.vhost_user.fetch_add(1, SeqCst);
        }
        *started |= 1 << queue;
    }

    /// A queue is not in use any more, if it was.
    pub(super) fn stop(&self, queue: usize) {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *started;
        *started &= !(1 << queue);
        if before != 0 && *started == 0 {
            self.volume.clients.vhost_user.fetch_sub(1, SeqCst);
        }
    }
}
