//! What an export promises: to whom it lets write, what a flush covers, which zeroes are fast.

use crate::raw::Raw;
use crate::site::{Site, try_client};
use blockd::nbd::wire::{command, command_flag};
use blockd::request::Access;
use blockd::store::Image;

const MIB: u64 = 1 << 20;
const EPERM: u32 = 1;
const ENOTSUP: u32 = 95;

#[test]
fn a_read_only_export_is_read_and_never_changed() {
    let site = Site::new();
    let (volume, _) = site.serve("vm1", MIB);
    let address = site.try_export(&volume, &site.socket("ro.sock"), Access::ReadOnly).unwrap();
    let (mut writer, mut reader) = (Raw::attach(&site.path("nbd.sock")), Raw::attach(&site.path("ro.sock")));
    writer.request(command::WRITE, 1, 4096, 4096, &[7; 4096]);
    assert_eq!(writer.reply(), (0, 1));
    reader.request(command::WRITE, 2, 4096, 4096, &[8; 4096]);
    assert_eq!(reader.reply(), (EPERM, 2));
    for (cookie, kind) in [(3, command::TRIM), (4, command::WRITE_ZEROES)] {
        reader.request(kind, cookie, 4096, 4096, &[]);
        assert_eq!(reader.reply(), (EPERM, cookie));
    }
    reader.request(command::FLUSH, 5, 0, 0, &[]);
    assert_eq!(reader.reply(), (0, 5));
    reader.request(command::READ, 6, 4096, 4096, &[]);
    assert_eq!((reader.reply(), reader.receive(4096).unwrap()), ((0, 6), vec![7; 4096]));
    let uri = address.uri(&"vm1".parse().unwrap());
    for (question, code) in [(["--is", "read-only"], 0), (["--can", "write"], 2), (["--can", "zero"], 2), (["--can", "multi-conn"], 0)] {
        let Some(answer) = try_client("nbdinfo", &[question[0], question[1], &uri]) else { return };
        assert_eq!(answer.status.code(), Some(code), "{question:?}: {answer:?}");
    }
}

/// A file can have holes and space without content; a file in memory has holes only.
#[test]
fn fast_zeroes_are_made_without_writing_or_refused() {
    let (fast, keep) = (command_flag::FAST_ZERO, command_flag::FAST_ZERO | command_flag::NO_HOLE);
    let site = Site::new();
    let (volume, _) = site.serve("vm1", 16 * MIB);
    let mut client = Raw::attach(&site.path("nbd.sock"));
    for (cookie, flags) in [(1, keep), (2, fast), (3, fast | command_flag::FUA)] {
        client.request(command::WRITE, 0, 0, 2 * MIB as u32, &vec![1; 2 * MIB as usize]);
        assert_eq!(client.reply(), (0, 0));
        client.request_with(flags, command::WRITE_ZEROES, cookie, 4096, MIB as u32, &[]);
        assert_eq!(client.reply(), (0, cookie));
        client.request(command::READ, 0, 4095, MIB as u32 + 2, &[]);
        assert_eq!(client.reply(), (0, 0));
        let content = client.receive(MIB as usize + 2).unwrap();
        assert!(content.iter().enumerate().all(|(at, byte)| *byte == u8::from(at == 0 || at == content.len() - 1)));
        let usage_bytes = volume.image.disk_usage_bytes().unwrap();
        assert_eq!(usage_bytes >= 2 * MIB, flags == keep, "{usage_bytes}");
    }

    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return eprintln!("left out: a file in memory needs /dev/shm") };
    let volume = site.volume_on("vm2", Image::create(&memory.path().join("image"), MIB).unwrap());
    if volume.image.zero_fast(0, 4096).is_ok() {
        return eprintln!("left out: files in memory can keep their space here");
    }
    site.export(&volume, &site.socket("vm2.sock"));
    let mut client = Raw::attach(&site.path("vm2.sock"));
    client.request(command::WRITE, 1, 0, 8192, &[1; 8192]);
    assert_eq!(client.reply(), (0, 1));
    for (offset, len) in [(0, 8192), (100, 8000)] {
        client.request_with(keep, command::WRITE_ZEROES, 2, offset, len, &[]);
        assert_eq!(client.reply(), (ENOTSUP, 2), "and nothing has changed");
    }
    client.request(command::READ, 3, 0, 8192, &[]);
    assert_eq!((client.reply(), client.receive(8192).unwrap()), ((0, 3), vec![1; 8192]));
    for (cookie, flags) in [(4, fast), (5, command_flag::NO_HOLE)] {
        client.request_with(flags, command::WRITE_ZEROES, cookie, 0, 8192, &[]);
        assert_eq!(client.reply(), (0, cookie), "without the flag there is always a way");
    }
}
