//! Volumes that are served in this process by the daemon's own services. They stay for all inputs: to make them anew for each would take
//! longer than most inputs do.

use crate::disk::Pairs;
use crate::sys::ignore_broken_pipes;
use blockd::metrics::VolumeMetrics;
use blockd::nbd::{NbdOptions, NbdService, Reach};
use blockd::request::Access;
use blockd::store::Image;
use blockd::unix_socket::SocketAccess;
use blockd::vhost_user::{VhostUserOptions, VhostUserService};
use blockd::volume::{Clients, Gate, GateState, Volume};
use replicator::intake::{ActivityLog, Intake, KeptLimits};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Sockets that a volume is served at over vhost-user.
const SOCKETS: usize = 48;
/// Longest that anything may take that has to happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A volume, and where it is served.
pub struct Served {
    /// The volume.
    pub volume: Arc<Volume>,
    sockets: Vec<PathBuf>,
    turn: AtomicUsize,
    _directory: TempDir,
    _service: Service,
}

enum Service {
    Nbd(#[expect(dead_code, reason = "held, not used")] NbdService, #[expect(dead_code, reason = "held, not used")] Runtime),
    VhostUser(#[expect(dead_code, reason = "held, not used")] VhostUserService),
}

impl Served {
    /// A volume named `vm1`, served over NBD.
    pub fn nbd(size_bytes: u64) -> Self {
        let (directory, volume) = make(size_bytes);
        let options = NbdOptions {
            max_connections: 32,
            handshake_timeout: PATIENCE,
            stall_timeout: PATIENCE,
            access: SocketAccess::PRIVATE,
            reach: Reach::Loopback,
            tls: None,
            threads: 1,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let service = NbdService::start(options).expect("a service");
        let socket = directory.path().join("nbd.sock");
        let address = format!("unix:{}", socket.display()).parse().expect("an address");
        let exported = service.export(volume.clone(), Arc::new(VolumeMetrics::default()), &address, Access::ReadWrite);
        runtime.block_on(exported).expect("an export");
        Self::new(volume, vec![socket], directory, Service::Nbd(service, runtime))
    }

    /// A volume named `vm1`, served over vhost-user.
    pub fn vhost_user(size_bytes: u64) -> Self {
        let (directory, volume) = make(size_bytes);
        let options = VhostUserOptions { access: SocketAccess::PRIVATE, threads: 1, cpus: Arc::new([]), poll: Duration::ZERO };
        let service = VhostUserService::start(options);
        // A socket whose client had to be hung up on takes no other for a while.
        let sockets: Vec<_> = (0..SOCKETS).map(|number| directory.path().join(format!("{number}.sock"))).collect();
        for socket in &sockets {
            service.export(volume.clone(), Arc::new(VolumeMetrics::default()), socket, Access::ReadWrite).expect("an export");
        }
        Self::new(volume, sockets, directory, Service::VhostUser(service))
    }

    fn new(volume: Arc<Volume>, sockets: Vec<PathBuf>, directory: TempDir, service: Service) -> Self {
        Self { volume, sockets, turn: AtomicUsize::new(0), _directory: directory, _service: service }
    }

    /// Where the next client connects.
    pub fn socket(&self) -> &Path {
        &self.sockets[self.turn.fetch_add(1, Relaxed) % self.sockets.len()]
    }

    /// What the volume holds.
    pub fn content(&self, offset: u64, len_bytes: usize) -> Vec<u8> {
        let mut content = vec![0; len_bytes];
        self.volume.image.read_at(&mut content, offset).expect("a readable image");
        content
    }
}

/// In memory, if the system has a place for that.
fn make(size_bytes: u64) -> (TempDir, Arc<Volume>) {
    ignore_broken_pipes();
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    let image = Image::create(&directory.path().join("image"), size_bytes).expect("an image");
    let log = ActivityLog::open(Arc::<Pairs>::default(), b"log/".to_vec()).expect("a log");
    let limits = KeptLimits { memory_bytes: 16 << 20, spill_bytes: 16 << 20, spill_dir: directory.path().into() };
    let intake = Arc::new(Intake::new(1, Arc::new(image.clone()), log, limits));
    let (gate, clients, counters) = (Gate::new(GateState::Open), Clients::default(), Default::default());
    (directory, Arc::new(Volume { name: "vm1".into(), image, gate, intake, clients, counters, origin: Default::default() }))
}

/// Returns when the condition holds. That it does not is a finding.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    for round in 0.. {
        if condition() {
            return;
        }
        assert!(Instant::now() < deadline, "in time: {what}");
        // Mostly it is a matter of microseconds.
        if round < 200 { std::thread::yield_now() } else { std::thread::sleep(Duration::from_millis(1)) }
    }
}
