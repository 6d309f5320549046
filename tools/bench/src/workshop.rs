//! What all benchmarks share: the directory to work in, how often to measure, how large.
//!
//! The directory belongs to one run at a time. What a run that was interrupted left there goes when the next one opens it.

use crate::{program, scratch};
use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// For a file system image with real files.
const MKFS_LIMIT: Duration = Duration::from_secs(600);
/// More than ext4 needs for its tables: with small files it needs many.
const IMAGE_ROOM: u64 = 64 << 20;
const MIB: u64 = 1 << 20;

/// How large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// As documented.
    Full,
    /// Only to see that it works.
    Quick,
}

/// See the module's documentation.
pub struct Workshop {
    dir: PathBuf,
    rounds: u32,
    scale: Scale,
    real_files: PathBuf,
    _lock: File,
}

impl Workshop {
    /// Takes the directory, and empties it.
    pub fn open(dir: Option<&Path>, rounds: u32, scale: Scale, real_files: &Path) -> Result<Self> {
        let parent = match dir {
            Some(dir) => dir.to_owned(),
            None => std::env::current_exe()?.parent().context("this program has no directory")?.to_owned(),
        };
        let dir = parent.join("tern-bench");
        fs::create_dir_all(&dir).with_context(|| format!("{}: use --dir", dir.display()))?;
        let dir = dir.canonicalize()?;
        let lock = File::create(parent.join("tern-bench.lock"))?;
        ensure!(lock.try_lock().is_ok(), "another run works in {}: wait for it, or use --dir", dir.display());
        scratch::unmount_below(&dir)?;
        fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
        fs::create_dir(&dir)?;
        Ok(Self { dir, rounds, scale, real_files: real_files.to_owned(), _lock: lock })
    }

    /// Where everything large goes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How often to measure.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// One or the other, by the scale.
    pub fn size<T>(&self, full: T, quick: T) -> T {
        match self.scale {
            Scale::Full => full,
            Scale::Quick => quick,
        }
    }

    /// A file of bytes that nothing compresses.
    pub fn random_image(&self, len_bytes: u64) -> Result<PathBuf> {
        let path = self.dir.join("random.raw");
        let mut file = File::create(&path)?;
        let mut rng = StdRng::seed_from_u64(len_bytes);
        let mut piece = vec![0; MIB as usize];
        for _ in 0..len_bytes / MIB {
            rng.fill_bytes(&mut piece);
            file.write_all(&piece).with_context(|| path.display().to_string())?;
        }
        file.sync_all()?;
        Ok(path)
    }

    /// An ext4 file system with real files.
    pub fn real_image(&self) -> Result<PathBuf> {
        let files = self.size(self.real_files.clone(), self.real_files.join("x86_64-linux-gnu/perl-base"));
        let mut du = program::bounded(MKFS_LIMIT, "du");
        let used = program::output(du.args(["--summarize", "--block-size=1"]).arg(&files))?;
        let used: u64 = used.split_whitespace().next().and_then(|word| word.parse().ok()).context("du counts no bytes")?;
        let path = self.dir.join("real.raw");
        File::create(&path)?.set_len((used + used / 4 + IMAGE_ROOM).next_multiple_of(MIB))?;
        // An inode for every 4 KiB: system directories are full of small files.
        let mut mkfs = program::bounded(MKFS_LIMIT, "mkfs.ext4");
        program::output(mkfs.args(["-q", "-F", "-i", "4096", "-d"]).arg(&files).arg(&path))?;
        Ok(path)
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
