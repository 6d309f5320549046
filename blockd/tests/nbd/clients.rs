//! Real clients.

use crate::site::{Site, client, try_client};
use replicator_engine::tracker::LaneId;
use std::fs;

const MIB: u64 = 1 << 20;

/// Content with repetitions, zeroes and noise.
fn content(len_bytes: u64) -> Vec<u8> {
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len_bytes).map(|at| if at / 65536 % 3 == 0 { 0 } else { noise() }).collect()
}

#[test]
fn nbdinfo_shows_what_an_export_can_do() {
    let site = Site::new();
    let (_volume, uri) = site.serve("vm1", 64 * MIB);
    let Some(shown) = client("nbdinfo", &[&uri]) else { return };
    for wanted in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "export=\"vm1\"",
        "description: Tern volume vm1",
        "export-size: 67108864 (64M)",
        "base:allocation",
        "tern:dirty",
        "is_rotational: false",
        "is_read_only: false",
        "can_cache: true",
        "can_df: true",
        "can_fast_zero: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "block_size_minimum: 1",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(shown.contains(wanted), "{wanted} is not in {shown}");
    }
}

#[test]
fn several_exports_share_an_address_and_are_told_apart_by_name() {
    let site = Site::new();
    let address = site.socket("nbd.sock");
    let (one, two) = (site.volume("one", MIB), site.volume("two", 2 * MIB));
    site.export(&one, &address);
    site.export(&two, &address);
    let uri = |name: &str| format!("nbd+unix:///{name}?socket={}", site.path("nbd.sock").display());
    let Some(list) = client("nbdinfo", &["--list", &uri("")]) else { return };
    assert!(list.contains("export=\"one\"") && list.contains("export=\"two\""), "{list}");
    assert_eq!(client("nbdinfo", &["--size", &uri("two")]).unwrap().trim(), "2097152");
    assert!(!try_client("nbdinfo", &["--size", &uri("")]).unwrap().status.success(), "no default among several");
    assert!(!try_client("nbdinfo", &["--size", &uri("three")]).unwrap().status.success());
    assert!(site.wait(site.service.unexport("one", &address)));
    assert_eq!(client("nbdinfo", &["--size", &uri("")]).unwrap().trim(), "2097152", "the only one is the default");
}

#[test]
fn nbdcopy_in_and_out_is_identical_over_unix_sockets_and_tcp() {
    let site = Site::new();
    let volume = site.volume("vm1", 96 * MIB);
    let addresses = [site.export(&volume, &site.socket("nbd.sock")), site.export(&volume, &"tcp:127.0.0.1:0".parse().unwrap())];
    let (source, copy) = (site.path("source"), site.path("copy"));
    for (address, len_bytes) in addresses.iter().zip([96 * MIB, 50 * MIB + 12_345]) {
        let uri = address.uri(&"vm1".parse().unwrap());
        let mut expected = content(96 * MIB);
        fs::write(&source, &expected[..len_bytes as usize]).unwrap();
        let paths = [source.to_str().unwrap(), copy.to_str().unwrap()];
        if client("nbdcopy", &["--flush", paths[0], &uri]).is_none() {
            return;
        }
        client("nbdcopy", &[&uri, paths[1]]);
        let copied = fs::read(&copy).unwrap();
        // Both rounds write the same content, so what the shorter one does not touch is there from the first.
        assert_eq!(copied.len(), expected.len());
        assert!(copied == expected, "{address}");
        expected.truncate(0);
    }
}

#[test]
fn qemu_img_finds_the_holes_and_copies_only_data() {
    let site = Site::new();
    let (volume, uri) = site.serve("vm1", 64 * MIB);
    volume.image.write_at(&content(MIB)[..MIB as usize], 8 * MIB).unwrap();
    let Some(map) = client("qemu-img", &["map", "--output=json", "-f", "raw", &uri]) else { return };
    let entries = |flag: &str| map.lines().filter(|line| line.contains(flag)).count();
    assert_eq!((entries("\"data\": false"), entries("\"data\": true")), (2, 1), "{map}");
    let copy = site.path("copy.qcow2");
    client("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, copy.to_str().unwrap()]);
    assert!(fs::metadata(&copy).unwrap().len() < 3 * MIB);
    client("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &uri, copy.to_str().unwrap()]);
}

/// What the thread that replicates would say is said here by the test.
#[test]
fn nbdinfo_maps_what_is_not_at_the_standby() {
    let site = Site::new();
    let (volume, uri) = site.serve("vm1", 64 * MIB);
    let arguments = ["--map=tern:dirty", &uri];
    let Some(map) = client("nbdinfo", &arguments) else { return };
    let entries = |map: &str| {
        let fields = |line: &str| line.split_whitespace().take(3).map(|field| field.parse().unwrap()).collect::<Vec<u64>>();
        map.lines().map(fields).collect::<Vec<_>>()
    };
    assert_eq!(entries(&map), [[0, 64 * MIB, 0]], "without a standby nothing is dirty");
    let dirty = roaring::RoaringBitmap::from_iter((0..3).chain(256..512));
    volume.intake.behind().set(
        LaneId::FIRST,
        Box::new(move |run, reply| {
            let asked = roaring::RoaringBitmap::from_iter(run.blocks());
            reply.send(&dirty & asked).unwrap();
        }),
    );
    let map = client("nbdinfo", &arguments).unwrap();
    assert_eq!(entries(&map), [[0, 12288, 1], [12288, MIB - 12288, 0], [MIB, MIB, 1], [2 * MIB, 62 * MIB, 0]]);
    let totals = client("nbdinfo", &["--map=tern:dirty", "--totals", &uri]).unwrap();
    assert!(totals.lines().any(|line| line.contains("1060864")), "{totals}");
}

#[test]
fn qemu_io_reads_back_what_each_kind_of_request_wrote() {
    let site = Site::new();
    let (volume, uri) = site.serve("vm1", 64 * MIB);
    let commands = [
        "write -P 1 0 1M",
        "write -P 2 -f 4k 4k",
        "write -P 3 511 3",
        "write -P 4 65535 70000",
        "write -z 8k 4k",
        "write -z -u 100k 100k",
        "write -z 700001 9999",
        "discard 512k 64k",
        "flush",
        "read -P 1 0 511",
        "read -P 3 511 3",
        "read -P 1 514 3582",
        "read -P 2 4k 4k",
        "read -P 0 8k 4k",
        "read -P 1 12k 53247",
        "read -P 4 65535 36865",
        "read -P 0 100k 100k",
        "read -P 1 200k 312k",
        "read -P 0 512k 64k",
        "read -P 1 700000 1",
        "read -P 0 700001 9999",
        "read -P 1 710000 1000",
    ];
    let mut arguments = vec!["-f", "raw", "-t", "none", &uri];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    let Some(said) = client("qemu-io", &arguments) else { return };
    assert!(!said.contains("Pattern verification failed") && !said.contains("error"), "{said}");
    assert_eq!(said.matches("bytes at offset").count(), commands.len() - 1, "{said}");
    let usage = volume.image.disk_usage_bytes().unwrap();
    assert!(usage < MIB, "zeroes with leave to unmap and discards free space: {usage}");
}

#[test]
fn fio_finds_what_it_wrote_with_many_requests_under_way() {
    let site = Site::new();
    let (_volume, uri) = site.serve("vm1", 64 * MIB);
    let uri = format!("--uri={uri}");
    let mut arguments = vec!["--name=verify", "--ioengine=nbd", &uri, "--rw=randrw", "--bsrange=512-128k", "--bs_unaligned"];
    arguments.extend([
        "--iodepth=64",
        "--size=48m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--thread",
        "--randseed=7",
        "--verify_state_save=0",
    ]);
    let Some(said) = client("fio", &arguments) else { return };
    assert!(said.contains("err= 0"), "{said}");
}
