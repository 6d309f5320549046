//! An export of a site as a disk of this host, with a file system: nbdfuse makes a file of it, a loop device makes a disk of the file.

use crate::{Site, client, eventually, is_installed, try_client};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// See the module's documentation. Dropped, it is taken off; nobody may have files open on it.
pub struct Disk {
    fuse: Child,
    directory: PathBuf,
    device: Option<String>,
}

impl Disk {
    /// Attaches the site's `vm1`, and mounts it below the directory; `None`, and a word why, where that cannot be done.
    pub fn attach(site: &Site, directory: &Path) -> Option<Self> {
        if !["nbdfuse", "losetup", "mkfs.ext4", "mount"].iter().all(|program| is_installed(program)) {
            return None;
        }
        ["fuse", "mounted"].iter().for_each(|name| fs::create_dir_all(directory.join(name)).expect("a directory"));
        let file = directory.join("fuse/disk");
        let uri = format!("nbd+unix:///vm1?socket={}", site.socket("nbd").display());
        let mut nbdfuse = Command::new("setpriv");
        let fuse =
            nbdfuse.args(["--pdeathsig", "KILL", "nbdfuse"]).arg(&file).arg(uri).stderr(Stdio::null()).spawn().expect("setpriv runs");
        let mut disk = Self { fuse, directory: directory.to_owned(), device: None };
        eventually("nbdfuse shows the disk or ends", || file.exists() || !Path::new(&format!("/proc/{}/fd", disk.fuse.id())).exists());
        let attached = try_client("losetup", &["--find", "--show", file.to_str().expect("plain names")]);
        if !attached.status.success() {
            eprintln!("left out: a disk over FUSE needs /dev/fuse and a loop device");
            return None;
        }
        let device = String::from_utf8_lossy(&attached.stdout).trim().to_owned();
        disk.device = Some(device.clone());
        if try_client("blkid", &[&device]).stdout.is_empty() {
            client("mkfs.ext4", &["-q", "-E", "nodiscard", &device]);
        }
        client("mount", &[&device, disk.path().to_str().expect("plain names")]);
        Some(disk)
    }

    /// Where its file system is.
    pub fn path(&self) -> PathBuf {
        self.directory.join("mounted")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(device) = &self.device {
            let _ = Command::new("umount").arg("--quiet").arg(self.path()).status();
            let _ = Command::new("losetup").args(["--detach", device]).stderr(Stdio::null()).status();
        }
        let _ = Command::new("fusermount3").args(["-q", "-u", "-z"]).arg(self.directory.join("fuse")).status();
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}
