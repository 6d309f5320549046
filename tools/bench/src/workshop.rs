//! What all benchmarks share: the directory to work in, how often to measure, how large.
//!
//! Directories belong to one run at a time. What a run that was interrupted left there goes when the next one takes them.

use crate::{program, scratch};
use anyhow::{Context, Result, ensure};
use clap::Args;
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

/// What a run can be told.
#[derive(Debug, Args)]
pub struct Options {
    /// How often each is repeated; the median counts.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Small sizes and short loads: shows that everything works, measures nothing.
    #[arg(long)]
    quick: bool,
    /// Where images and state directories go; the file system is part of what is measured [default: beside the programs].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where `busy-link` keeps the standby: its disk would be another than the primary's.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    standby_dir: PathBuf,
    /// Files that make up the real data [default: /usr/lib, or /usr/share/doc with --quick].
    #[arg(long, value_name = "DIR")]
    real_files: Option<PathBuf>,
}

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
    dir: OwnDir,
    standby_dir: OwnDir,
    rounds: u32,
    scale: Scale,
    real_files: Option<PathBuf>,
}

/// A directory that only this run uses. Dropped, it is gone.
struct OwnDir {
    path: PathBuf,
    _lock: File,
}

impl OwnDir {
    /// Takes `parent/name`, and empties it.
    fn take(parent: &Path, name: &str) -> Result<Self> {
        let path = parent.join(name);
        let failed = || format!("{}: choose another directory, see --help", path.display());
        fs::create_dir_all(&path).with_context(failed)?;
        let lock = File::create(parent.join(format!("{name}.lock"))).with_context(failed)?;
        ensure!(lock.try_lock().is_ok(), "another run works in {}", failed());
        let path = path.canonicalize()?;
        scratch::unmount_below(&path)?;
        fs::remove_dir_all(&path).with_context(failed)?;
        fs::create_dir(&path).with_context(failed)?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for OwnDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Workshop {
    /// Takes the directories.
    pub fn open(options: &Options) -> Result<Self> {
        let dir = match &options.dir {
            Some(dir) => dir.clone(),
            None => std::env::current_exe()?.parent().context("this program has no directory")?.to_owned(),
        };
        Ok(Self {
            dir: OwnDir::take(&dir, "tern-bench")?,
            standby_dir: OwnDir::take(&options.standby_dir, "tern-bench-standby")?,
            rounds: options.rounds,
            scale: if options.quick { Scale::Quick } else { Scale::Full },
            real_files: options.real_files.clone(),
        })
    }

    /// Where everything large goes.
    pub fn dir(&self) -> &Path {
        &self.dir.path
    }

    /// Where a standby goes that must not share the primary's disk.
    pub fn standby_dir(&self) -> &Path {
        &self.standby_dir.path
    }

    /// How large everything is.
    pub fn scale(&self) -> Scale {
        self.scale
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
    pub fn random_image(&self, name: &str, len_bytes: u64) -> Result<PathBuf> {
        let path = self.dir().join(format!("{name}.raw"));
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
        let files = self.real_files.clone().unwrap_or_else(|| self.size("/usr/lib", "/usr/share/doc").into());
        let mut du = program::bounded(MKFS_LIMIT, "du");
        let used = program::output(du.args(["--summarize", "--block-size=1"]).arg(&files))?;
        let used: u64 = used.split_whitespace().next().and_then(|word| word.parse().ok()).context("du counts no bytes")?;
        let path = self.dir().join("real.raw");
        File::create(&path)?.set_len((used + used / 4 + IMAGE_ROOM).next_multiple_of(MIB))?;
        // An inode for every 4 KiB: system directories are full of small files.
        let mut mkfs = program::bounded(MKFS_LIMIT, "mkfs.ext4");
        program::output(mkfs.args(["-q", "-F", "-i", "4096", "-d"]).arg(&files).arg(&path))?;
        Ok(path)
    }
}
