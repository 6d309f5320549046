//! A volume on a temporary image and a vhost-user service that serves it, in this process.

use blockd::metrics::VolumeMetrics;
use blockd::request::Access;
use blockd::store::Image;
use blockd::unix_socket::SocketAccess;
use blockd::vhost_user::{VhostUserOptions, VhostUserService};
use blockd::volume::{Clients, Gate, GateState, Volume};
use replicator::catalogue::{Catalogue, Change, Persist};
use replicator::intake::{ActivityLog, Intake, KeptLimits};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A catalogue that forgets everything.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl Catalogue for Memory {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }

    fn apply(&self, changes: &[Change], _persist: Persist) -> io::Result<()> {
        let mut map = self.0.lock().unwrap();
        for (key, value) in changes {
            match value {
                Some(value) => drop(map.insert(key.clone(), value.clone())),
                None => drop(map.remove(key)),
            }
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let map = self.0.lock().unwrap();
        Ok(map.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// See the module's documentation.
pub struct Site {
    directory: tempfile::TempDir,
    pub service: VhostUserService,
    pub volume: Arc<Volume>,
    pub metrics: Arc<VolumeMetrics>,
    runtime: tokio::runtime::Runtime,
}

impl Site {
    /// A volume that is served at [`Self::socket`].
    pub fn serve(size_bytes: u64, access: Access) -> Self {
        // The system's temporary directory may be in memory, which is no place for direct I/O.
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let image = Image::create(&directory.path().join("image"), size_bytes).unwrap();
        let log = ActivityLog::open(Arc::new(Memory::default()), b"log/".to_vec()).unwrap();
        let limits = KeptLimits { memory_bytes: 16 << 20, spill_bytes: 16 << 20, spill_dir: directory.path().into() };
        let intake = Arc::new(Intake::new(1, Arc::new(image.clone()), log, limits));
        let (gate, clients) = (Gate::new(GateState::Open), Clients::default());
        let volume =
            Arc::new(Volume { name: "vm1".into(), image, gate, intake, clients, counters: Default::default(), origin: Default::default() });
        let service =
            VhostUserService::start(VhostUserOptions { access: SocketAccess::PRIVATE, threads: 2, cpus: [].into(), poll: Duration::ZERO });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let site = Self { directory, service, volume, metrics: Arc::default(), runtime };
        site.export(access);
        site
    }

    pub fn export(&self, access: Access) {
        self.service.export(self.volume.clone(), self.metrics.clone(), &self.socket(), access).unwrap();
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("vhost.sock")
    }

    /// What the image holds now.
    pub fn content(&self, offset: u64, len_bytes: usize) -> Vec<u8> {
        let mut content = vec![0; len_bytes];
        self.volume.image.read_at(&mut content, offset).unwrap();
        content
    }

    pub fn clients(&self) -> u64 {
        self.volume.clients.vhost_user.load(SeqCst)
    }

    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("done in time") })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.wait(self.service.shutdown());
            assert!(!self.socket().exists(), "the socket's file is gone");
        }
    }
}

/// Returns when the condition holds; fails if that takes too long.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
