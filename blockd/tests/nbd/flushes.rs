//! What a flush covers, as the disk sees it: a disk that logs its writes and flushes in their order, as after each of which the power could
//! fail.

use crate::raw::Raw;
use crate::site::{Site, eventually};
use blockd::nbd::wire::{command, command_flag};
use blockd::store::Image;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const SIZE_BYTES: u64 = 1 << 20;
const SECTOR_BYTES: usize = 512;
const BLOCK_BYTES: u64 = 4096;

/// A disk of QEMU's, mounted as a file (`blklogwrites` has the format of Linux' dm-log-writes).
struct Disk {
    directory: tempfile::TempDir,
    daemon: Child,
}

impl Disk {
    /// `None` where that cannot be.
    fn start() -> Option<Self> {
        let program = "qemu-storage-daemon";
        let help = Command::new(program).arg("--help").output().ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let can = help.is_some_and(|help| help.contains("fuse")) && File::options().read(true).write(true).open("/dev/fuse").is_ok();
        if !can {
            eprintln!("left out: this needs {program} with FUSE, and /dev/fuse");
            return None;
        }
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = |name: &str| directory.path().join(name);
        for (name, size_bytes) in [("data", SIZE_BYTES), ("log", 0), ("disk", 0)] {
            File::create_new(path(name)).unwrap().set_len(size_bytes).unwrap();
        }
        let file = |name: &str| format!("driver=file,node-name={name},filename={}", path(name).display());
        let export = format!("type=fuse,id=disk,node-name=logged,mountpoint={},writable=on", path("disk").display());
        let daemon = Command::new(program)
            .args(["--blockdev", &file("data"), "--blockdev", &file("log")])
            .args(["--blockdev", "driver=blklogwrites,node-name=logged,file=data,log=log", "--export", &export])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let disk = Self { daemon, directory };
        eventually("the disk is mounted", || fs::metadata(disk.path("disk")).is_ok_and(|disk| disk.len() == SIZE_BYTES));
        Some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The content that is left if the power fails now, and the disk loses all that it may.
    fn after_power_failure(&self) -> Vec<u8> {
        let content = replay(&fs::read(self.path("log")).unwrap());
        assert_eq!(content.len(), SIZE_BYTES as usize);
        content
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Of its own will it takes the mount with it.
        let _ = Command::new("kill").arg(self.daemon.id().to_string()).status();
        let _ = self.daemon.wait();
    }
}

/// Applies the entries of a log up to its last flush. An entry is a sector, and then its data.
fn replay(log: &[u8]) -> Vec<u8> {
    const FLUSH: u64 = 1;
    let (mut durable, mut content) = (vec![0; SIZE_BYTES as usize], vec![0; SIZE_BYTES as usize]);
    let mut rest = log.get(SECTOR_BYTES..).unwrap_or_default();
    while let Some((head, behind)) = rest.split_at_checked(SECTOR_BYTES) {
        let [sector, sectors, flags] = [0, 8, 16].map(|at| u64::from_le_bytes(head[at..at + 8].try_into().unwrap()));
        let (at, len) = (sector as usize * SECTOR_BYTES, sectors as usize * SECTOR_BYTES);
        assert_eq!(flags & !FLUSH, 0, "writes and flushes only");
        content[at..at + len].copy_from_slice(&behind[..len]);
        if flags & FLUSH != 0 {
            durable.copy_from_slice(&content);
        }
        rest = &behind[len..];
    }
    durable
}

fn serve(site: &Site, disk: &Disk) -> impl Fn() -> Raw + use<> {
    let volume = site.volume_on("vm1", Image::open(&disk.path("disk"), None).unwrap());
    site.export(&volume, &site.socket("nbd.sock"));
    let path = site.path("nbd.sock");
    move || Raw::attach(&path)
}

/// Block `number` as it is after a power failure.
fn block(content: &[u8], number: u64) -> &[u8] {
    &content[(number * BLOCK_BYTES) as usize..][..BLOCK_BYTES as usize]
}

/// That an export can have many connections is this promise. They are served by two threads.
#[test]
fn a_flush_on_one_connection_makes_durable_what_was_answered_on_all() {
    let Some(disk) = Disk::start() else { return };
    let site = Site::new();
    let attach = serve(&site, &disk);
    let mut writers: Vec<_> = (0..5).map(|_| attach()).collect();
    let mut flushers = [attach(), attach()];
    for round in 1..=6_u8 {
        for (number, writer) in (0..).zip(&mut writers) {
            writer.request(command::WRITE, number, number * BLOCK_BYTES, BLOCK_BYTES as u32, &[round; BLOCK_BYTES as usize]);
        }
        for (number, writer) in (0..).zip(&mut writers) {
            assert_eq!(writer.reply(), (0, number));
        }
        let before = disk.after_power_failure();
        assert!((0..5).all(|number| block(&before, number).iter().all(|byte| *byte == round - 1)), "nothing else flushes");
        let flusher = &mut flushers[usize::from(round) % 2];
        flusher.request(command::FLUSH, 9, 0, 0, &[]);
        assert_eq!(flusher.reply(), (0, 9));
        let after = disk.after_power_failure();
        assert!((0..5).all(|number| block(&after, number).iter().all(|byte| *byte == round)), "round {round}");
    }
}

#[test]
fn a_write_with_fua_is_durable_when_it_is_answered() {
    let Some(disk) = Disk::start() else { return };
    let site = Site::new();
    let mut client = serve(&site, &disk)();
    // Whole sectors, and parts of them.
    for (round, offset, len) in [(1, 0, 8192), (2, 100, 5000)] {
        client.request_with(command_flag::FUA, command::WRITE, 1, offset, len, &vec![round; len as usize]);
        assert_eq!(client.reply(), (0, 1));
        let content = disk.after_power_failure();
        assert!(content[offset as usize..][..len as usize].iter().all(|byte| *byte == round), "{offset} {len}");
    }
    client.request_with(command_flag::FUA, command::WRITE_ZEROES, 2, 100, 1000, &[]);
    assert_eq!(client.reply(), (0, 2));
    assert!(disk.after_power_failure()[100..1100].iter().all(|byte| *byte == 0));
}
