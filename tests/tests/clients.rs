//! Real clients at the daemon: what they copy in and out, and what they see of it.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use tern_tests::{NbdClient, Pair, Site, client, eventually, is_installed, try_client};

const MIB: u64 = 1 << 20;

fn uri(site: &Site, volume: &str) -> String {
    format!("nbd+unix:///{volume}?socket={}", site.socket("nbd").display())
}

fn serve(site: &Site, volume: &str, size: &str) {
    site.tern(&["volume", "create", volume, "--size", size]);
    site.tern(&["volume", "export", volume, "--nbd", &format!("unix:{}", site.socket("nbd").display())]);
}

/// An ext4 with this repository's sources in it, 64 MiB.
fn file_system(path: &Path) {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../blockd");
    let status = Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(tree).arg(path).arg("64M").status();
    assert!(status.expect("mkfs.ext4 runs").success());
}

#[test]
fn nbdcopy_takes_a_file_system_in_and_out_unchanged() {
    if !["nbdcopy", "qemu-img", "mkfs.ext4", "e2fsck"].iter().all(|program| is_installed(program)) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut site = Site::start("osaka", directory.path());
    let (source, copy) = (directory.path().join("source.raw"), directory.path().join("copy.raw"));
    file_system(&source);
    let expected = fs::read(&source).unwrap();
    serve(&site, "vm1", "64M");
    let uri = uri(&site, "vm1");
    client("nbdcopy", &["--flush", source.to_str().unwrap(), &uri]);
    site.kill();
    site.restart();
    client("nbdcopy", &[&uri, copy.to_str().unwrap()]);
    assert!(fs::read(&copy).unwrap() == expected, "what came out is not what went in");
    client("e2fsck", &["-f", "-n", copy.to_str().unwrap()]);
    let allocated = site.tern(&["volume", "show", "vm1"])["allocated_bytes"].as_u64().unwrap();
    assert!((MIB..32 * MIB).contains(&allocated), "holes stay holes: {allocated} bytes are allocated");

    site.tern(&["volume", "create", "vm2", "--import", source.to_str().unwrap()]);
    site.tern(&["volume", "export", "vm2", "--nbd", &format!("unix:{}", site.socket("nbd").display())]);
    client("nbdcopy", &[&self::uri(&site, "vm2"), copy.to_str().unwrap()]);
    assert!(fs::read(&copy).unwrap() == expected, "what came out is not what was imported");
    site.assert_no_panic();
}

#[test]
fn nbdinfo_lists_every_export_with_all_it_can_do() {
    if !is_installed("nbdinfo") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let site = Site::start("osaka", directory.path());
    serve(&site, "vm1", "64M");
    serve(&site, "vm2", "96M");
    let list = client("nbdinfo", &["--list", "--json", &uri(&site, "")]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list["protocol"], &list["structured"]), (&"newstyle-fixed".into(), &true.into()), "{list}");
    let exports = list["exports"].as_array().unwrap();
    let shown: Vec<_> =
        exports.iter().map(|export| (export["export-name"].as_str().unwrap(), export["export-size"].as_u64().unwrap())).collect();
    assert_eq!(shown, [("vm1", 64 * MIB), ("vm2", 96 * MIB)]);
    for export in exports {
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation", "tern:dirty"]), "{export}");
        for can in ["can_cache", "can_df", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
            assert_eq!(export[can], true, "{can}: {export}");
        }
        assert_eq!(export["is_read_only"], false, "{export}");
    }
}

#[test]
fn nbdinfo_answers_for_each_thing_that_an_export_can_do() {
    if !is_installed("nbdinfo") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let site = Site::start("osaka", directory.path());
    serve(&site, "vm1", "64M");
    let answer = |question: [&str; 2]| try_client("nbdinfo", &[question[0], question[1], &uri(&site, "vm1")]).status.code();
    for can in ["connect", "read", "write", "flush", "fua", "zero", "trim", "cache", "df", "multi-conn", "structured-reply"] {
        assert_eq!(answer(["--can", can]), Some(0), "{can}");
    }
    for is in ["read-only", "rotational", "tls"] {
        assert_eq!(answer(["--is", is]), Some(2), "{is}");
    }
}

#[test]
fn nbdcopy_copies_one_volume_to_another_over_several_connections() {
    if !["nbdcopy", "qemu-img"].iter().all(|program| is_installed(program)) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let site = Site::start("osaka", directory.path());
    let source = directory.path().join("source.raw");
    file_system(&source);
    serve(&site, "vm1", "64M");
    serve(&site, "vm2", "64M");
    let (vm1, vm2) = (uri(&site, "vm1"), uri(&site, "vm2"));
    let many = ["--connections=4", "--requests=16", "--threads=2", "--flush"];
    client("nbdcopy", &[&many[..], &[source.to_str().unwrap(), &vm1]].concat());
    client("nbdcopy", &[&many[..], &[&vm1, &vm2]].concat());
    client("qemu-img", &["compare", "-f", "raw", "-F", "raw", source.to_str().unwrap(), &vm2]);
}

#[test]
fn a_file_system_is_made_and_filled_through_nbdfuse() {
    if !["nbdfuse", "fusermount3", "mkfs.ext4", "debugfs", "e2fsck"].iter().all(|program| is_installed(program)) {
        return;
    }
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        eprintln!("left out: nbdfuse needs /dev/fuse");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let site = Site::start("osaka", directory.path());
    serve(&site, "vm1", "64M");
    let (mounted, ready, copy) = (directory.path().join("mounted"), directory.path().join("ready"), directory.path().join("copy.raw"));
    fs::create_dir(&mounted).unwrap();
    let mut nbdfuse = Command::new("nbdfuse").arg("-P").arg(&ready).arg(&mounted).arg(uri(&site, "vm1")).spawn().unwrap();
    eventually("the volume is mounted", || ready.exists());
    let disk = mounted.join("nbd");
    let disk = disk.to_str().unwrap();
    client("mkfs.ext4", &["-q", "-F", disk]);
    client("debugfs", &["-w", "-R", concat!("write ", env!("CARGO_MANIFEST_DIR"), "/Cargo.toml file"), disk]);
    client("fusermount3", &["-u", mounted.to_str().unwrap()]);
    assert!(nbdfuse.wait().unwrap().success());

    client("nbdcopy", &[&uri(&site, "vm1"), copy.to_str().unwrap()]);
    client("e2fsck", &["-f", "-n", copy.to_str().unwrap()]);
    let file = client("debugfs", &["-R", "cat file", copy.to_str().unwrap()]);
    assert_eq!(file, fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap());
}

#[test]
fn qemu_img_bench_and_fio_write_verify_and_trim_side_by_side() {
    if !["qemu-img", "fio"].iter().all(|program| is_installed(program)) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let site = Site::start("osaka", directory.path());
    serve(&site, "vm1", "64M");
    let uri = uri(&site, "vm1");
    let bench = ["bench", "-f", "raw", "-t", "none", "-c", "2000", "-d", "32", "-s", "4k"];
    for kind in [&["-w", "--pattern=85", "--flush-interval=200"][..], &[]] {
        let said = client("qemu-img", &[&bench[..], kind, &[&uri]].concat());
        assert!(said.contains("Run completed"), "{said}");
    }
    client("qemu-io", &["-f", "raw", "-c", "read -P 85 0 8192000", &uri]);

    let from = format!("--uri={uri}");
    let shared = ["--ioengine=nbd", &from, "--thread", "--iodepth=16"];
    let verify = ["--name=verify", "--rw=randrw", "--bs=4k", "--size=32m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"];
    let trim = ["--name=trim", "--rw=randtrim", "--bs=64k", "--offset=48m", "--size=16m"];
    client("qemu-io", &["-f", "raw", "-c", "write -P 7 48M 16M", &uri]);
    let said = client("fio", &[&shared[..], &verify, &trim].concat());
    assert_eq!(said.matches("err= 0").count(), 2, "{said}");
    client("qemu-io", &["-f", "raw", "-c", "read -P 0 48M 16M", &uri]);
}

#[test]
fn the_dirty_map_is_what_the_standby_does_not_have() {
    if !is_installed("nbdinfo") {
        return;
    }
    let mut pair = Pair::start(16, "1s");
    let dirty = |site: &Site| {
        let map: Value = serde_json::from_str(&client("nbdinfo", &["--map=tern:dirty", "--json", &uri(site, "vm1")])).unwrap();
        let is_dirty = |extent: &&Value| extent["type"] == 1;
        let range = |extent: &Value| (extent["offset"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        map.as_array().unwrap().iter().filter(is_dirty).map(range).collect::<Vec<_>>()
    };
    pair.a.wait_until("in sync", |volume| volume["state"] == "in-sync" && volume["dirty_blocks"] == 0);
    assert_eq!(dirty(&pair.a), []);
    pair.b.kill();
    let mut disk = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
    for (offset, len) in [(MIB, 8192), (3 * MIB - 100, 200)] {
        disk.write(offset, &vec![7; len]).unwrap();
    }
    assert_eq!(dirty(&pair.a), [(MIB, 8192), (3 * MIB - 4096, 8192)], "whole blocks");
    pair.b.restart();
    pair.a.wait_until("in sync", |volume| volume["state"] == "in-sync" && volume["dirty_blocks"] == 0);
    assert_eq!(dirty(&pair.a), []);
}

#[test]
fn a_read_only_export_stays_one_and_takes_no_change() {
    if !["nbdinfo", "qemu-io"].iter().all(|program| is_installed(program)) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut site = Site::start("osaka", directory.path());
    serve(&site, "vm1", "64M");
    let place = format!("unix:{}", site.socket("read-only").display());
    let export = ["volume", "export", "vm1", "--nbd", &place];
    let info = site.tern(&[&export[..], &["--read-only"]].concat());
    assert_eq!(info["exports"][1]["access"], "read-only", "{info}");
    site.tern(&[&export[..], &["--read-only"]].concat());
    let (code, message) = site.try_tern(&export).unwrap_err();
    assert!(code == 1 && message.contains("read-only") && message.contains("--remove"), "{message}");
    site.kill();
    site.restart();
    let read_only = uri(&site, "vm1").replace(&site.socket("nbd").display().to_string(), &site.socket("read-only").display().to_string());
    client("nbdinfo", &["--is", "read-only", &read_only]);
    client("qemu-io", &["-f", "raw", "-c", "write -P 7 0 64k", &uri(&site, "vm1")]);
    client("qemu-io", &["-r", "-f", "raw", "-c", "read -P 7 0 64k", &read_only]);
    assert!(!try_client("qemu-io", &["-f", "raw", "-c", "write 0 64k", &read_only]).status.success());
    let info = site.tern(&[&export[..], &["--remove"]].concat());
    assert_eq!(info["exports"].as_array().unwrap().len(), 1, "{info}");
}

#[test]
fn a_volume_that_has_grown_shows_it_to_who_connects_anew() {
    if !is_installed("nbdinfo") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let site = Site::start("osaka", directory.path());
    serve(&site, "vm1", "64M");
    let shown = || client("nbdinfo", &["--size", &uri(&site, "vm1")]).trim().parse::<u64>().unwrap();
    assert_eq!(shown(), 64 * MIB);
    site.tern(&["volume", "resize", "vm1", "96M"]);
    assert_eq!(shown(), 96 * MIB);
    let (code, said) = site.try_tern(&["volume", "resize", "vm1", "32M"]).unwrap_err();
    assert!(code == 4 && said.contains("33554432") | said.contains("67108864"), "{code} {said}");
    eventually("nobody is attached", || site.volume()["attached"].as_array().is_some_and(Vec::is_empty));
}
