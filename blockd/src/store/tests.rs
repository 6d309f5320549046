//! One suite for every place where an image can lie: a file, and a block device where the tests may make one.

use super::import::{ImportError, ImportFormat, Source};
use super::{AlignedBuf, Image, StoreError};
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// A directory on a real disk: the system's temporary directory may be in memory.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn read(image: &Image, offset: u64, len_bytes: usize) -> Vec<u8> {
    let mut content = AlignedBuf::new(len_bytes);
    image.read_at(&mut content, offset).unwrap();
    content.to_vec()
}

/// What holds of every image of 16 MiB that reads as zeroes.
fn conforms(image: &Image) {
    assert_eq!(image.size_bytes(), 16 * MIB);
    let align = image.align_bytes();
    assert!(align.is_power_of_two() && align <= 4096);

    let content: Vec<u8> = (0..3 * MIB).map(|i| (i % 251) as u8).collect();
    image.write_at(&content, MIB).unwrap();
    assert_eq!(read(image, MIB, content.len()), content, "what was written is read");
    let mut unaligned = vec![0; content.len() + 1];
    image.read_at(&mut unaligned[1..], MIB).unwrap();
    assert_eq!(&unaligned[1..], content, "an unaligned buffer works, too");
    image.sync_data().unwrap();

    image.punch(2 * MIB, MIB).unwrap();
    image.zero(3 * MIB, 4096).unwrap();
    let mut expected = content.clone();
    expected[MIB as usize..2 * MIB as usize + 4096].fill(0);
    assert_eq!(read(image, MIB, content.len()), expected, "holes and zeroes read as zeroes, and nothing else does");
    image.punch(0, 0).unwrap();

    let allocated: Vec<_> = image.allocated(0..u64::MAX).collect::<Result<_, _>>().unwrap();
    for block in (0..16 * MIB).step_by(4096) {
        let covered = allocated.iter().any(|extent| extent.start <= block && block + 4096 <= extent.end);
        assert!(covered || read(image, block, 4096).iter().all(|byte| *byte == 0), "data at {block} is in an extent");
    }
    assert!(allocated.windows(2).all(|pair| pair[0].end <= pair[1].start), "extents ascend");
    let part: Vec<_> = image.allocated(MIB + 4096..MIB + 8192).collect::<Result<_, _>>().unwrap();
    assert!(matches!(&part[..], [only] if *only == (MIB + 4096..MIB + 8192)), "extents are clamped to what was asked for");

    let mut sector = AlignedBuf::new(4096);
    for (offset, len) in [(16 * MIB, 4096), (16 * MIB - 512, 4096), (u64::MAX - 511, 512)] {
        sector.set_len(len);
        assert!(image.read_at(&mut sector, offset).is_err() && image.write_at(&sector, offset).is_err(), "beyond the end: {offset}");
        assert!(image.punch(offset, len as u64).is_err() && image.zero(offset, len as u64).is_err());
    }
    if align > 1 {
        assert!(image.read_at(&mut sector[..512], 1).is_err(), "an unaligned offset is refused");
    }
    assert!(matches!(Image::open(image.path(), None), Err(StoreError::InUse(_))), "nobody else opens it");
}

#[test]
fn a_file_conforms() {
    let directory = directory();
    let path = directory.path().join("image");
    let image = Image::create(&path, 16 * MIB).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(image.disk_usage_bytes().unwrap(), 0);
    conforms(&image);
    image.punch_fast(4096, 4096).unwrap();
    assert!((2 * MIB..4 * MIB).contains(&image.disk_usage_bytes().unwrap()), "holes take no space");
    assert!(matches!(Image::create(&path, 16 * MIB), Err(StoreError::Exists(_))));
}

#[test]
fn a_file_in_memory_conforms() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else { return eprintln!("left out: a file in memory needs /dev/shm") };
    let image = Image::create(&directory.path().join("image"), 16 * MIB).unwrap();
    conforms(&image);
    image.write_at(&[1; 4096], 0).unwrap();
    // Linux 6.1 and others can punch holes in memory, and not keep the space.
    if let Err(error) = image.zero_fast(0, 4096) {
        assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
        assert_eq!(read(&image, 0, 4096), [1; 4096], "nothing is changed");
    }
    image.punch_fast(0, 4096).unwrap();
    assert_eq!(read(&image, 0, 4096), [0; 4096]);
}

/// A loop device over a file; detached at the end.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn attach(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file).output().ok()?;
        output.status.success().then(|| Self(String::from_utf8(output.stdout).unwrap().trim().into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_conforms() {
    let directory = directory();
    let path = directory.path().join("disk");
    File::create(&path).unwrap().set_len(16 * MIB).unwrap();
    let Some(device) = LoopDevice::attach(&path) else {
        eprintln!("left out: a block device needs leave to make a loop device");
        return;
    };
    let image = Image::open(&device.0, None).unwrap();
    assert!(image.is_device());
    conforms(&image);
    assert!(matches!(image.grow(32 * MIB), Err(StoreError::CannotGrow { .. })));
    image.grow(16 * MIB).unwrap();
}

#[test]
fn growing_is_durable_and_never_shrinks() {
    let directory = directory();
    let path = directory.path().join("image");
    let image = Image::create(&path, 4 * MIB).unwrap();
    let other = image.clone();
    image.grow(8 * MIB).unwrap();
    assert_eq!(other.size_bytes(), 8 * MIB);
    assert_eq!(read(&other, 4 * MIB, 4096), [0; 4096]);
    assert!(matches!(image.grow(4 * MIB), Err(StoreError::CannotGrow { .. })));
    assert!(matches!(image.grow(8 * MIB + 1), Err(StoreError::BadSize(_))));
    drop((image, other));
    assert_eq!(Image::open(&path, Some(4 * MIB)).unwrap().size_bytes(), 4 * MIB, "the catalogue's size counts");
    assert_eq!(Image::open(&path, None).unwrap().size_bytes(), 8 * MIB);
}

#[test]
fn a_size_is_shown_once_it_is_recorded_and_never_if_it_cannot_be() {
    let directory = directory();
    let path = directory.path().join("image");
    let image = Image::create(&path, 4 * MIB).unwrap();
    let (ring, rung) = std::sync::mpsc::channel();
    let _rope = image.resized().add(move || ring.send(()).unwrap());
    let shown = || (image.size_bytes(), rung.try_iter().count());
    let failed = image.grow_once(8 * MIB, || {
        assert_eq!((shown(), fs::metadata(&path).unwrap().len()), ((4 * MIB, 0), 8 * MIB), "the file comes first, and the guest last");
        Err(StoreError::BadSize(0))
    });
    assert!(failed.is_err());
    assert_eq!(shown(), (4 * MIB, 0), "what is not recorded is not shown");
    assert!(image.write_at(&AlignedBuf::new(4096), 4 * MIB).is_err());
    image.grow_once(8 * MIB, || Ok::<(), StoreError>(())).unwrap();
    assert_eq!(shown(), (8 * MIB, 1));
}

#[test]
fn images_that_are_not_what_they_should_be_are_refused_with_the_cure() {
    let directory = directory();
    let path = directory.path().join("image");
    assert!(matches!(Image::open(&path, None), Err(StoreError::Io { .. })), "missing");
    assert!(matches!(Image::open(directory.path(), None), Err(StoreError::NotADisk(_))));
    assert!(matches!(Image::open(Path::new("/dev/null"), None), Err(StoreError::NotADisk(_))));
    for size in [0, 4095, 4097, 1 << 44, u64::MAX] {
        assert!(matches!(Image::create(&path, size), Err(StoreError::BadSize(_))), "{size}");
    }
    let file = File::create(&path).unwrap();
    assert!(matches!(Image::open(&path, None), Err(StoreError::BadSize(0))), "empty");
    file.set_len(4097).unwrap();
    let odd = Image::open(&path, None).unwrap_err().to_string();
    assert!(odd.contains("truncate"), "{odd}");
    file.set_len(4096).unwrap();
    let shrunk = Image::open(&path, Some(8192)).unwrap_err();
    assert!(matches!(shrunk, StoreError::Shrunk { expected_bytes: 8192, size_bytes: 4096, .. }), "{shrunk}");
}

#[test]
fn a_file_that_shrinks_while_it_is_open_is_an_error_and_not_zeroes() {
    let directory = directory();
    let path = directory.path().join("image");
    let image = Image::create(&path, MIB).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    let error = image.read_at(&mut AlignedBuf::new(8192), 4096).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert!(image.allocated(0..MIB).last().unwrap().is_err(), "what was cut off is no hole");
    image.write_at(&[1; 4096], MIB - 4096).unwrap();
    assert!(image.sync_data().is_err(), "now it is as long as before, and what was there is still lost");
}

#[test]
fn a_flush_finds_out_that_a_file_has_shrunk() {
    let directory = directory();
    let path = directory.path().join("image");
    let image = Image::create(&path, MIB).unwrap();
    image.sync_data().unwrap();
    File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    assert!(image.sync_data().is_err() && image.sync_data().is_err());
}

#[test]
fn after_a_failed_sync_none_succeeds() {
    let directory = directory();
    let image = Image::create(&directory.path().join("image"), MIB).unwrap();
    image.sync_data().unwrap();
    assert!(image.note_sync(Err(std::io::Error::other("x"))).is_err());
    assert!(image.note_sync(Ok(())).is_err() && image.sync_data().is_err());
}

#[test]
fn qemu_and_we_keep_each_other_out() {
    let directory = directory();
    let path = directory.path().join("image");
    let image = Image::create(&path, MIB).unwrap();
    let qemu_io = || Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 4k"]).arg(&path).output();
    let Ok(output) = qemu_io() else { return eprintln!("left out: qemu-io is not installed") };
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("lock"), "{output:?}");
    drop(image);
    assert!(qemu_io().unwrap().status.success());
}

#[test]
fn imports_hold_what_the_source_held_whatever_its_format() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let content: Vec<u8> = (0..2 * MIB + 512).map(|i| (i / 7 % 253) as u8).collect();
    let raw = File::create(path("a,b.raw")).unwrap();
    raw.write_all_at(&content, MIB).unwrap();
    let convert = Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).args([path("a,b.raw"), path("a.qcow2")]).status();
    let Ok(status) = convert else { return eprintln!("left out: qemu-img is not installed") };
    assert!(status.success());

    for name in ["a,b.raw", "a.qcow2"] {
        let source = Source::open(&path(name), ImportFormat::of(&path(name)).unwrap()).unwrap();
        assert_eq!(source.size_bytes(), 3 * MIB + 4096);
        let image = Image::create(&path(&format!("{name},image")), 8 * MIB).unwrap();
        image.write_at(&[9; 4096], 0).unwrap();
        image.write_at(&[9; 4096], 5 * MIB).unwrap();
        let mut progress = Vec::new();
        let seen = |fraction| {
            progress.push(fraction);
            ControlFlow::Continue(())
        };
        source.import(&image, seen).unwrap();
        assert!(progress.is_sorted() && progress.last() == Some(&1.0), "{progress:?}");
        let mut expected = vec![0; 8 * MIB as usize];
        expected[MIB as usize..][..content.len()].copy_from_slice(&content);
        assert!(read(&image, 0, expected.len()) == expected, "{name}");
        assert!(image.disk_usage_bytes().unwrap() < 4 * MIB, "holes stay holes");
    }
}

/// Lesson: image format guessed (Cloud Hypervisor 2026-27211): a guest wrote a qcow2 header into its raw disk.
#[test]
fn a_raw_disk_that_looks_like_qcow2_is_imported_as_it_is() {
    let directory = directory();
    let (disguised, secret) = (directory.path().join("guest.raw"), directory.path().join("secret.raw"));
    fs::write(&secret, vec![7; MIB as usize]).unwrap();
    let create = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).args([&secret, &disguised]).status();
    let Ok(status) = create else { return eprintln!("left out: qemu-img is not installed") };
    assert!(status.success());
    File::options().write(true).open(&disguised).unwrap().set_len(MIB).unwrap();
    let source = Source::open(&disguised, ImportFormat::of(&disguised).unwrap()).unwrap();
    let image = Image::create(&directory.path().join("image"), MIB).unwrap();
    source.import(&image, |_| ControlFlow::Continue(())).unwrap();
    assert!(read(&image, 0, MIB as usize) == fs::read(&disguised).unwrap(), "every byte of it, and none of the secret");
}

/// Lesson: a copy tool that ignored errors (libnbd CVE-2022-0485).
#[test]
fn imports_that_cannot_be_are_refused_with_the_reason() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let open = |name: &str| Source::open(&path(name), ImportFormat::of(&path(name))?);
    fs::write(path("short.qcow2"), b"QFI\xfb").unwrap();
    fs::write(path("lie.qcow2"), [0; 4096]).unwrap();
    fs::write(path("empty.raw"), []).unwrap();
    fs::write(path("disk.vmdk"), [0; 4096]).unwrap();
    for name in ["short.qcow2", "lie.qcow2", "empty.raw"] {
        assert!(matches!(open(name), Err(ImportError::Refused { .. })), "{name}");
    }
    assert!(matches!(open("disk.vmdk"), Err(ImportError::UnknownFormat(_))));
    assert!(matches!(open("missing.raw"), Err(ImportError::Source { .. })));

    fs::write(path("a.raw"), vec![1; 8192]).unwrap();
    let source = open("a.raw").unwrap();
    let small = Image::create(&path("small"), 4096).unwrap();
    assert!(matches!(source.import(&small, |_| ControlFlow::Continue(())), Err(ImportError::TooSmall { .. })));
    let image = Image::create(&path("image"), 8192).unwrap();
    match source.import(&image, |_| ControlFlow::Break(())) {
        Err(ImportError::Cancelled | ImportError::NoQemuImg) => {}
        other => panic!("{other:?}"),
    }
    fs::remove_file(path("a.raw")).unwrap();
    match source.import(&image, |_| ControlFlow::Continue(())) {
        Err(ImportError::Failed(message)) => assert!(!message.contains('\n') && message.contains("a.raw"), "{message}"),
        Err(ImportError::NoQemuImg) => {}
        other => panic!("{other:?}"),
    }
}
