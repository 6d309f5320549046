//! What serves the image: our daemon, and the programs that users would take instead.
//!
//! All serve the same file past the page cache, but for `nbdkit`, which knows only to drop from it what it has read or written. Our daemon
//! runs as it comes: without an option for speed.

use crate::pair::loopback;
use crate::program::{self, DIES_WITH_US};
use crate::site::{PATIENCE, Place, Site};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const POLL: Duration = Duration::from_millis(20);

/// Our daemon with volumes on images that are there already.
pub struct Blockd {
    /// The daemon.
    pub site: Site,
    _dirs: [TempDir; 2],
}

impl Blockd {
    /// Starts it without a volume; its state lies in `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        let dirs = [tempfile::tempdir_in(dir)?, tempfile::tempdir()?];
        let [state, sockets] = dirs.each_ref().map(|dir| dir.path().to_owned());
        let site = Site::start(Command::new(DIES_WITH_US[0]), Place { name: "osaka", dir: state, sockets, listen: loopback(1) })?;
        Ok(Self { site, _dirs: dirs })
    }

    /// Makes a volume of an image, or a sparse one of so many bytes.
    pub fn create(&self, volume: &str, content: Content<'_>) -> Result<()> {
        let (option, value) = match content {
            Content::Image(path) => ("--backing", path.to_string_lossy().into_owned()),
            Content::Sparse(size_bytes) => ("--size", size_bytes.to_string()),
        };
        self.site.tern::<Value>(&["volume", "create", volume, option, &value]).map(drop)
    }

    /// Serves a volume; returns its socket.
    pub fn vhost_user(&self, volume: &str) -> Result<PathBuf> {
        let socket = self.site.socket(&format!("{volume}.vhost"));
        self.site.tern::<Value>(&["volume", "export", volume, "--vhost-user", &socket.to_string_lossy()])?;
        Ok(socket)
    }

    /// Serves a volume; returns its socket.
    pub fn nbd(&self, volume: &str) -> Result<PathBuf> {
        let socket = self.site.socket(&format!("{volume}.nbd"));
        self.site.tern::<Value>(&["volume", "export", volume, "--nbd", &format!("unix:{}", socket.display())])?;
        Ok(socket)
    }
}

/// What a volume begins with.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// An image, which stays where it is.
    Image(&'a Path),
    /// Holes.
    Sparse(u64),
}

/// Another's server. Dropped, it is killed.
pub struct Peer {
    server: Child,
    dir: TempDir,
}

impl Peer {
    /// `qemu-storage-daemon` with one vhost-user-blk export, in an I/O thread of its own.
    pub fn qemu_storage_daemon(image: &Path, queues: usize) -> Result<Self> {
        Self::start(|socket| {
            let mut server = Command::new(DIES_WITH_US[0]);
            server.args(&DIES_WITH_US[1..]).arg("qemu-storage-daemon").arg("--object").arg("iothread,id=thread");
            server.arg("--blockdev").arg(format!("{},node-name=file", file_options(image)));
            server.arg("--blockdev").arg("driver=raw,file=file,node-name=disk");
            let address = format!("addr.type=unix,addr.path={}", socket.display());
            server.arg("--export");
            server.arg(format!("vhost-user-blk,id=disk,node-name=disk,writable=on,iothread=thread,num-queues={queues},{address}"));
            server
        })
    }

    /// `qemu-nbd --cache=none --aio=io_uring -t`, by the options behind those; the file is another's, too.
    pub fn qemu_nbd(image: &Path) -> Result<Self> {
        let peer = Self::start(|socket| {
            let mut server = Command::new(DIES_WITH_US[0]);
            server.args(&DIES_WITH_US[1..]).args(["qemu-nbd", "--persistent", "--shared=0", "--cache=none", "--aio=io_uring", "--socket"]);
            let file = file_options(image).replace(',', ",file.").replacen("driver=", "file.driver=", 1);
            server.arg(socket).args(["--image-opts", &format!("driver=raw,{file}")]);
            server
        })?;
        peer.wait_until_listening()?;
        Ok(peer)
    }

    /// `nbdkit file`.
    pub fn nbdkit(image: &Path) -> Result<Self> {
        let peer = Self::start(|socket| {
            let mut server = Command::new(DIES_WITH_US[0]);
            server.args(&DIES_WITH_US[1..]).args(["nbdkit", "--foreground", "--unix"]).arg(socket);
            server.arg("file").arg(image).arg("cache=none");
            server
        })?;
        peer.wait_until_listening()?;
        Ok(peer)
    }

    fn start(command: impl FnOnce(&Path) -> Command) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = command(&socket_in(dir.path()));
        let log = File::create(dir.path().join("log"))?;
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        Ok(Self { server: server.with_context(|| format!("{} cannot be started", program::command_line(&command)))?, dir })
    }

    fn wait_until_listening(&self) -> Result<()> {
        let began = Instant::now();
        while let Err(error) = UnixStream::connect(self.socket()) {
            if began.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                bail!("{}: {error}: {log}", self.socket().display());
            }
            sleep(POLL);
        }
        Ok(())
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        socket_in(self.dir.path())
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.server.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn socket_in(dir: &Path) -> PathBuf {
    dir.join("socket")
}

/// QEMU's options for the image, which our daemon has locked.
fn file_options(image: &Path) -> String {
    format!("driver=file,filename={},aio=io_uring,cache.direct=on,locking=off", image.display())
}
