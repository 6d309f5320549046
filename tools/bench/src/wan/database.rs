//! A PostgreSQL server on a file system on a volume: nbdfuse makes a file of the export, a loop device a disk of the file.

use crate::program::{self, DIES_WITH_US};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// Checkpoints often enough that a short run has several.
const SETTINGS: [&str; 3] = ["listen_addresses=", "checkpoint_timeout=30s", "max_wal_size=256MB"];
/// Its own user: it refuses to be root.
const USER: &str = "postgres";

/// See the module's documentation. Dropped, all of it ends.
pub struct Database {
    server: Child,
    programs: PathBuf,
    // After the server.
    disk: Disk,
}

struct Disk {
    fuse: Child,
    device: Option<String>,
    dir: TempDir,
}

impl Database {
    /// Makes a file system and an empty database on the export at `socket`. Needs root.
    pub fn create(socket: &Path) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "mounting a file system needs root");
        let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
        let programs = versions.flatten().map(|version| version.path().join("bin")).filter(|programs| programs.join("postgres").exists());
        let programs = programs.max().context("PostgreSQL is not installed")?;
        let disk = Disk::attach(socket)?;
        for place in [disk.dir.path().join("mounted/data"), disk.dir.path().join("sockets")] {
            fs::create_dir(&place)?;
            let id = |flag| program::output(Command::new("id").args([flag, USER]))?.trim().parse::<u32>().context("a number");
            chown(&place, Some(id("-u")?), Some(id("-g")?))?;
        }
        let data = disk.dir.path().join("mounted/data");
        program::output(as_its_user(&programs.join("initdb")).args(["--auth=trust", "--no-instructions", "--no-locale", "-D"]).arg(&data))?;
        let mut server = as_its_user(&programs.join("postgres"));
        server
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(disk.dir.path().join("sockets"))
            .args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        let log = File::create(disk.dir.path().join("log"))?;
        let server = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("PostgreSQL cannot be started")?;
        let database = Self { server, programs, disk };
        let began = Instant::now();
        while let Err(error) = database.run("pg_isready", &[]) {
            ensure!(began.elapsed() < LIMIT, "PostgreSQL does not start: {error:#}");
            sleep(POLL);
        }
        Ok(database)
    }

    /// Runs one of its programs to the end.
    pub fn run(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut command = program::bounded(LIMIT, self.programs.join(name));
        command.arg("-h").arg(self.disk.dir.path().join("sockets")).args(["-U", USER]).args(arguments).env("PGDATABASE", USER);
        program::output(&mut command)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        // The others of its processes see that, and end.
        let began = Instant::now();
        while self.disk.unmount().is_err() && began.elapsed() < LIMIT {
            sleep(POLL);
        }
    }
}

fn as_its_user(program: &Path) -> Command {
    let [setpriv, options @ ..] = DIES_WITH_US;
    let mut command = Command::new(setpriv);
    command.args(["--reuid", USER, "--regid", USER, "--init-groups"]).args(options).arg(program);
    command
}

impl Disk {
    fn attach(socket: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let (fuse, mounted) = (dir.path().join("fuse"), dir.path().join("mounted"));
        [&fuse, &mounted].iter().try_for_each(fs::create_dir)?;
        let [setpriv, options @ ..] = DIES_WITH_US;
        let uri = format!("nbd+unix:///vm1?socket={}", socket.display());
        let child = Command::new(setpriv).args(options).arg("nbdfuse").arg(fuse.join("disk")).arg(uri).spawn().context("nbdfuse")?;
        let mut disk = Self { fuse: child, device: None, dir };
        let began = Instant::now();
        while !fuse.join("disk").exists() {
            ensure!(disk.fuse.try_wait()?.is_none() && began.elapsed() < LIMIT, "nbdfuse shows no disk");
            sleep(POLL);
        }
        let device = program::output(Command::new("losetup").args(["--find", "--show"]).arg(fuse.join("disk")))?.trim().to_owned();
        disk.device = Some(device.clone());
        program::output(program::bounded(LIMIT, "mkfs.ext4").args(["-q", "-E", "nodiscard", &device]))?;
        program::output(program::bounded(LIMIT, "mount").arg(&device).arg(&mounted))?;
        Ok(disk)
    }

    fn unmount(&self) -> Result<()> {
        let mounted = self.dir.path().join("mounted");
        if fs::read_dir(&mounted)?.next().is_none() {
            return Ok(());
        }
        program::output(program::bounded(LIMIT, "umount").arg(mounted)).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(device) = &self.device {
            let _ = program::output(Command::new("losetup").args(["--detach", device]));
        }
        let _ = Command::new("fusermount3").args(["-q", "-u", "-z"]).arg(self.dir.path().join("fuse")).status();
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}
