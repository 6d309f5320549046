//! A file system in one file, for volumes of millions of scattered blocks: XFS makes those quickly, and they go as quickly as the one file
//! goes. On ext4 with `discard` it took minutes to delete a hundredth of such a volume.

use crate::program;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);

/// A mounted file system. Dropped, it is gone.
pub struct Scratch {
    image: PathBuf,
    mounted: PathBuf,
}

impl Scratch {
    /// Makes and mounts one of at most `size_bytes` in `dir`. Needs root.
    pub fn mount(dir: &Path, size_bytes: u64) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "mounting a file system needs root");
        let free = rustix::fs::statvfs(dir).map(|stat| stat.f_bavail * stat.f_frsize)?;
        let gib = |bytes: u64| bytes >> 30;
        ensure!(free >= size_bytes, "{} has {} GiB free and {} are needed: use --dir", dir.display(), gib(free), gib(size_bytes));
        let scratch = Self { image: dir.join("scratch.xfs"), mounted: dir.join("scratch") };
        File::create(&scratch.image)?.set_len(size_bytes)?;
        fs::create_dir(&scratch.mounted)?;
        program::output(program::bounded(LIMIT, "mkfs.xfs").args(["-q", "-K"]).arg(&scratch.image))?;
        program::output(program::bounded(LIMIT, "mount").args(["-o", "loop,nodiscard"]).args([&scratch.image, &scratch.mounted]))?;
        Ok(scratch)
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.mounted
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = unmount_below(&self.mounted) {
            eprintln!("bench: {error:#}");
        }
        // What is mounted still must not be emptied.
        let _ = fs::remove_dir(&self.mounted);
        let _ = fs::remove_file(&self.image);
    }
}

/// Unmounts what is mounted at `dir` or below.
pub fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for place in places.filter(|place| place.starts_with(dir)) {
        program::output(program::bounded(LIMIT, "umount").arg(place))?;
    }
    Ok(())
}
