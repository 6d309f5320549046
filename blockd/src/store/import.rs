//! Content to begin with, from a raw or qcow2 file, through `qemu-img convert`.
//!
//! The format is said, by an argument or by the file's extension, and never guessed from the content: a guest may have written a qcow2
//! header into its raw disk. A qcow2 file that refers to other files is refused, since it would draw in whatever its author named.

mod progress;
mod qcow2;

use super::{Image, PAGE_BYTES};
use progress::Percentages;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// How long the caller waits to be asked again. For a large image a percent takes minutes.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Longest message of `qemu-img` that is repeated.
const MAX_MESSAGE_BYTES: usize = 500;

/// How a file holds a disk's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportFormat {
    /// As it is.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// Why an import failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The extension does not tell the format.
    #[error("{}: cannot tell the format from the name: rename it to end in .qcow2, .raw or .img, whichever is true", .0.display())]
    UnknownFormat(PathBuf),
    /// The source cannot be read.
    #[error("reading {}: {source}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not what it is said to be, or not whole.
    #[error("{}: {why}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The reason, with the cure.
        why: &'static str,
    },
    /// The volume is smaller than the content.
    #[error("the content of {} takes {needed_bytes} bytes, and the volume has {size_bytes}: make it larger", path.display())]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// What it needs.
        needed_bytes: u64,
        /// What there is.
        size_bytes: u64,
    },
    /// No qemu-img.
    #[error("qemu-img is not installed: install the package qemu-utils (Debian) or qemu-img (Fedora), restart blockd, then try again")]
    NoQemuImg,
    /// It came after the daemon had given up to execute anything new.
    #[error("qemu-img may not be executed: if it was installed or upgraded since blockd was started, restart blockd, then try again")]
    NewQemuImg,
    /// It could not be run, or the image could not be prepared.
    #[error("importing: {0}")]
    Io(#[from] io::Error),
    /// It failed.
    #[error("qemu-img failed: {0}")]
    Failed(String),
    /// The caller wanted no more of it.
    #[error("the import was cancelled")]
    Cancelled,
}

/// A file to import from, examined.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    format: ImportFormat,
    size_bytes: u64,
}

impl ImportFormat {
    /// By the extension: `.qcow2`, `.raw` or `.img`.
    pub fn of(path: &Path) -> Result<Self, ImportError> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("qcow2") => Ok(Self::Qcow2),
            Some("raw" | "img") => Ok(Self::Raw),
            _ => Err(ImportError::UnknownFormat(path.to_owned())),
        }
    }

    /// The name that `qemu-img` knows it by.
    fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl Source {
    /// Examines the file.
    pub fn open(path: &Path, format: ImportFormat) -> Result<Self, ImportError> {
        let failed = |source| ImportError::Source { path: path.to_owned(), source };
        // An absolute path cannot be taken for one of QEMU's protocols or option strings.
        let path = &path.canonicalize().map_err(failed)?;
        let failed = |source| ImportError::Source { path: path.clone(), source };
        let mut file = File::open(path).map_err(failed)?;
        let size_bytes = match format {
            ImportFormat::Raw => rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|error| failed(error.into()))?,
            ImportFormat::Qcow2 => {
                let mut header = Vec::with_capacity(qcow2::HEADER_BYTES);
                file.by_ref().take(qcow2::HEADER_BYTES as u64).read_to_end(&mut header).map_err(failed)?;
                qcow2::virtual_size(&header).map_err(|why| ImportError::Refused { path: path.clone(), why })?
            }
        };
        match size_bytes.checked_next_multiple_of(PAGE_BYTES) {
            Some(size_bytes) if size_bytes > 0 => Ok(Self { path: path.clone(), format, size_bytes }),
            _ => Err(ImportError::Refused { path: path.clone(), why: "it holds no disk that a volume could take" }),
        }
    }

    /// Size of the smallest volume that takes the content.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Copies the content to the beginning of `image`, durably; what lies behind it in the image reads as zeroes afterwards. Blocks.
    ///
    /// `progress` is told how far it is, from 0 to 1, and may break it off: the image's content is of no use then.
    pub fn import(&self, image: &Image, mut progress: impl FnMut(f64) -> ControlFlow<()>) -> Result<(), ImportError> {
        let size_bytes = image.size_bytes();
        if size_bytes < self.size_bytes {
            return Err(ImportError::TooSmall { path: self.path.clone(), needed_bytes: self.size_bytes, size_bytes });
        }
        if image.allocated(0..size_bytes).next().transpose()?.is_some() {
            image.punch(0, size_bytes)?;
        }
        let child = self.command(image).spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImportError::NoQemuImg,
            io::ErrorKind::PermissionDenied => ImportError::NewQemuImg,
            _ => ImportError::Io(error),
        })?;
        follow(child, &mut progress)?;
        image.sync_data()?;
        Ok(())
    }

    fn command(&self, image: &Image) -> Command {
        // The lock on the image is ours, and is held for the child.
        let mut target = OsString::from("driver=raw,file.locking=off,file.driver=");
        target.push(if image.is_device() { "host_device" } else { "file" });
        target.push(",file.filename=");
        target.push(commas_doubled(image.path()));
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-p", "-n", "--target-is-zero", "-T", "none", "-t", "none", "-f", self.format.driver()]);
        command.arg("--target-image-opts").arg(&self.path).arg(target);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// Reads what the child says until it ends. `progress` is asked at least every [`PATIENCE`].
fn follow(mut child: Child, progress: &mut dyn FnMut(f64) -> ControlFlow<()>) -> Result<(), ImportError> {
    let stderr = child.stderr.take();
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.by_ref().take(64 << 10).read_to_end(&mut text);
            let _ = io::copy(&mut stderr, &mut io::sink());
        }
        text
    });
    let mut percentages = Percentages::default();
    let (mut cancelled, mut done) = (false, 0.0);
    if let Some(mut stdout) = child.stdout.take() {
        let mut chunk = [0; 256];
        loop {
            if says_something(&stdout) {
                match stdout.read(&mut chunk) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Ok(0) | Err(_) => break,
                    Ok(len) => done = percentages.feed(&chunk[..len]).last().copied().unwrap_or(done),
                }
            }
            cancelled = progress(done).is_break();
            if cancelled {
                child.kill()?;
                break;
            }
        }
    }
    let status = child.wait()?;
    let complaints = complaints.join().unwrap_or_default();
    match () {
        () if cancelled => Err(ImportError::Cancelled),
        () if status.success() => Ok(()),
        () => Err(ImportError::Failed(one_line(&complaints, &status.to_string()))),
    }
}

/// Whether there is something to read, or the end, within [`PATIENCE`].
fn says_something(stdout: &ChildStdout) -> bool {
    let mut waiting = [PollFd::new(stdout, PollFlags::IN)];
    // An interruption is a time that is over, too.
    rustix::event::poll(&mut waiting, Some(&PATIENCE)).is_ok_and(|ready| ready > 0)
}

/// QEMU's option strings end a value at a comma and take two for one.
fn commas_doubled(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut doubled = Vec::with_capacity(path.as_os_str().len());
    for &byte in path.as_os_str().as_bytes() {
        doubled.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    }
    OsString::from_vec(doubled)
}

fn one_line(message: &[u8], fallback: &str) -> String {
    let text = String::from_utf8_lossy(&message[..message.len().min(MAX_MESSAGE_BYTES)]);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() { fallback.to_owned() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn an_import_that_says_nothing_for_long_can_be_broken_off() {
        let mut silent = Command::new("sleep");
        let child = silent.arg("60").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (began, mut asked) = (Instant::now(), 0);
        let mut progress = |_| {
            asked += 1;
            if asked < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        assert!(matches!(follow(child, &mut progress), Err(ImportError::Cancelled)));
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
