//! A VM outlives its daemon: killed or ended in order, the next one finishes what was in flight.

use std::path::Path;
use tern_tests::{Guest, Site, guest_parts, rounds};

const DISK_MIB: u32 = 1024;

/// The volume as a disk of two queues that QEMU connects again and again.
fn disk(socket: &Path) -> [String; 6] {
    let chardev = format!("socket,id=disk,path={},reconnect=1", socket.display());
    let device = "vhost-user-blk-pci,chardev=disk,num-queues=2";
    ["-smp".into(), "2".into(), "-chardev".into(), chardev, "-device".into(), device.into()]
}

/// `RESTARTS=50 cargo test -p tern-tests --test restarts` is the long run.
#[test]
fn a_guest_under_load_sees_a_pause_and_no_error_when_its_daemon_is_killed_or_ends() {
    if guest_parts().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut site = Site::start("osaka", directory.path());
    let disk = disk(&site.socket("vhost"));
    site.tern(&["volume", "create", "vm1", "--size", &format!("{DISK_MIB}M")]);
    site.tern(&["volume", "export", "vm1", "--vhost-user", site.socket("vhost").to_str().unwrap()]);
    let load = "tern.job=write tern.files=0 tern.kib=512 tern.readers=2 loglevel=6";
    let guest = Guest::boot(load, &disk);
    guest.wait_for_more(2);
    for round in 0..rounds("RESTARTS", 3) {
        if round % 2 == 0 {
            site.kill();
        } else {
            site.stop();
        }
        site.restart();
        guest.wait_for_more(2);
        println!("round {round}: {} files", guest.synced());
    }
    // It sees what changes while it runs.
    site.tern(&["volume", "resize", "vm1", &format!("{}M", 2 * DISK_MIB)]);
    guest.wait_for(&format!("[vda] new size: {} 512-byte logical blocks", DISK_MIB * 2 * 2048));
    let files = guest.synced();
    let said = guest.pull_the_plug();
    assert!(!said.contains("I/O error") && !said.contains("tern: error"), "{said}");

    // QEMU is started again beside the same daemon.
    let said = Guest::boot("tern.job=check", &disk).end();
    let checked = said.lines().find_map(|line| line.strip_prefix("tern: checked ")?.strip_suffix(" ok 0 bad"));
    assert!(said.contains("tern: fsck clean"), "{said}");
    assert!(checked.is_some_and(|count| count.parse::<u64>().is_ok_and(|count| count >= files)), "{files} files: {said}");
    site.assert_no_panic();
}
