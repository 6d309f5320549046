//! A volume on a temporary image and an NBD service that serves it, in this process.

use blockd::metrics::VolumeMetrics;
use blockd::nbd::{ExportError, NbdOptions, NbdService, Reach, STALL_TIMEOUT};
use blockd::request::Access;
use blockd::store::Image;
use blockd::unix_socket::SocketAccess;
use blockd::volume::{Clients, Gate, GateState, Volume};
use blockd_api::NbdAddress;
use replicator::catalogue::{Catalogue, Change, Persist};
use replicator::disk::BlockDevice;
use replicator::intake::{ActivityLog, Intake, KeptLimits};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longest that a client program may take.
const CLIENT_SECONDS: &str = "120";

/// The volume's image as replication sees it.
struct Blocks(Image);

impl BlockDevice for Blocks {
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()> {
        self.0.read_at(content, run.offset())
    }

    fn write(&self, run: Run, content: &[u8]) -> io::Result<()> {
        self.0.write_at(content, run.offset())
    }

    fn zero(&self, run: Run) -> io::Result<()> {
        self.0.punch(run.offset(), run.len_bytes())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocated(&self, from: BlockNumber) -> io::Result<Option<Run>> {
        let first = self.0.allocated(u64::from(from) * BLOCK_BYTES as u64..self.0.size_bytes()).next().transpose()?;
        Ok(first.and_then(|extent| Run::covering(extent.start, extent.end - extent.start)))
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.0.grow(size_bytes).map_err(io::Error::other)
    }
}

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
    pub service: Arc<NbdService>,
    runtime: tokio::runtime::Runtime,
}

impl Site {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut NbdOptions)) -> Self {
        let mut options = NbdOptions {
            max_connections: 32,
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: STALL_TIMEOUT,
            access: SocketAccess { mode: 0o660, ..SocketAccess::PRIVATE },
            reach: Reach::Loopback,
            tls: None,
            threads: 2,
        };
        change(&mut options);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        // The system's temporary directory may be in memory, which is no place for direct I/O.
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        Self { directory, service: Arc::new(NbdService::start(options).unwrap()), runtime }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A volume of its own, not exported.
    pub fn volume(&self, name: &str, size_bytes: u64) -> Arc<Volume> {
        self.volume_on(name, Image::create(&self.path(&format!("{name}.image")), size_bytes).unwrap())
    }

    /// A volume on an image, not exported.
    pub fn volume_on(&self, name: &str, image: Image) -> Arc<Volume> {
        let log = ActivityLog::open(Arc::new(Memory::default()), b"log/".to_vec()).unwrap();
        let limits = KeptLimits { memory_bytes: 16 << 20, spill_bytes: 16 << 20, spill_dir: self.directory.path().into() };
        let intake = Arc::new(Intake::new(1, Arc::new(Blocks(image.clone())), log, limits));
        Arc::new(Volume {
            name: name.into(),
            image,
            gate: Gate::new(GateState::Open),
            intake,
            clients: Clients::default(),
            counters: Default::default(),
            origin: Default::default(),
        })
    }

    /// The address of a unix socket.
    pub fn socket(&self, name: &str) -> NbdAddress {
        format!("unix:{}", self.path(name).display()).parse().unwrap()
    }

    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("done in time") })
    }

    pub fn export(&self, volume: &Arc<Volume>, address: &NbdAddress) -> NbdAddress {
        self.try_export(volume, address, Access::ReadWrite).unwrap()
    }

    pub fn try_export(&self, volume: &Arc<Volume>, address: &NbdAddress, access: Access) -> Result<NbdAddress, ExportError> {
        self.wait(self.service.export(volume.clone(), Arc::new(VolumeMetrics::default()), address, access))
    }

    /// A volume that is served at a unix socket; its URI is that of the default export.
    pub fn serve(&self, name: &str, size_bytes: u64) -> (Arc<Volume>, String) {
        let volume = self.volume(name, size_bytes);
        let address = self.export(&volume, &self.socket("nbd.sock"));
        (volume, address.uri(&name.parse().unwrap()))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.wait(self.service.shutdown());
        }
    }
}

/// Runs a client program; `None` if it is not installed here.
pub fn try_client(program: &str, arguments: &[&str]) -> Option<Output> {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().unwrap().status.success();
    if !found {
        eprintln!("left out: {program} is not installed");
        return None;
    }
    Some(Command::new("timeout").arg(CLIENT_SECONDS).arg(program).args(arguments).output().unwrap())
}

/// Runs a client program, which succeeds; returns what it says, or `None` if it is not installed here.
pub fn client(program: &str, arguments: &[&str]) -> Option<String> {
    let output = try_client(program, arguments)?;
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns when the condition holds; fails if that takes too long.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
