//! A Linux guest with its root on a disk of the daemon's, by NBD and by vhost-user-blk.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use tern_tests::{Guest, Site, client, eventually, guest_parts, guest_script, is_installed};

/// Where the guest's parts lie, if it and what looks at its disk are there.
fn guest() -> Option<PathBuf> {
    let tools = ["qemu-img", "debugfs", "e2fsck", "nbdcopy"].iter().all(|program| is_installed(program));
    tools.then(guest_parts).flatten()
}

/// Boots a guest, and returns what it said until it powered off.
fn boot(site: &Site, parameters: &str, disk: &[String]) -> String {
    let said = Guest::boot(parameters, disk).end();
    eventually("the guest is gone", || site.volume()["attached"].as_array().is_some_and(Vec::is_empty));
    said
}

/// The files that the guest said it wrote, with their checksums.
fn written(said: &str) -> Vec<(String, String)> {
    let words = said.lines().filter_map(|line| line.trim().strip_prefix("tern: wrote "));
    words.map(|words| words.split(' ').collect::<Vec<_>>()).map(|words| (words[0].to_owned(), words[2].to_owned())).collect()
}

/// Looks into the disk from outside: the file system is clean, and each file is there.
fn check_from_outside(uri: &str, copy: &Path, files: &[(String, String)]) {
    let (file, image) = (copy.with_extension("file"), copy.to_str().unwrap());
    client("nbdcopy", &[uri, image]);
    client("e2fsck", &["-f", "-n", image]);
    for (name, sum) in files {
        client("debugfs", &["-R", &format!("dump /data/{name} {}", file.display()), image]);
        assert_eq!(client("sha256sum", &[&file]).split(' ').next(), Some(sum.as_str()), "{name}");
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn a_guest_boots_from_nbd_and_from_vhost_user_and_what_it_made_durable_is_there() {
    let Some(guest) = guest() else { return };
    let directory = tempfile::tempdir().unwrap();
    let site = Site::start("osaka", directory.path());
    let (nbd, vhost_user) = (site.socket("nbd"), site.socket("vhost"));
    site.tern(&["volume", "create", "vm1", "--import", guest.join("rootfs.img").to_str().unwrap()]);
    site.tern(&["volume", "export", "vm1", "--nbd", &format!("unix:{}", nbd.display())]);
    site.tern(&["volume", "export", "vm1", "--vhost-user", vhost_user.to_str().unwrap()]);
    let uri = format!("nbd+unix:///vm1?socket={}", nbd.display());

    // The kernel tells a disk's size when it finds it, if it may.
    let job = "tern.job=root tern.after=write tern.files=2 tern.kib=64 loglevel=7";
    let said = boot(&site, job, &["-drive".into(), format!("file={uri},if=virtio,format=raw,cache=none")]);
    assert!(said.contains("tern: booted from disk") && said.contains("[vda] 131072 512-byte logical blocks"), "{said}");
    let mut files = written(&said);
    assert_eq!(files.len(), 2, "{said}");
    let copy = directory.path().join("copy");
    check_from_outside(&uri, &copy, &files);

    // A disk that has grown is larger for a guest that attaches after that.
    site.tern(&["volume", "resize", "vm1", "96M"]);
    let chardev = format!("socket,id=disk,path={}", vhost_user.display());
    let disk = ["-chardev".into(), chardev, "-device".into(), "vhost-user-blk-pci,chardev=disk".into()];
    let said = boot(&site, job, &disk);
    assert!(said.contains("tern: booted from disk") && said.contains("[vda] 196608 512-byte logical blocks"), "{said}");
    assert!(said.contains("tern: synced 4"), "it goes on where the first one ended: {said}");
    files.extend(written(&said));
    assert_eq!(files.len(), 4, "{said}");
    check_from_outside(&uri, &copy, &files);
    site.assert_no_panic();
}

/// `RESTARTS=50 cargo test -p tern-tests --test guests` is the long run.
#[test]
fn a_guest_attached_by_nbd_as_tern_says_sees_a_pause_and_no_error_when_the_daemon_dies_or_restarts() {
    if guest().is_none() {
        return;
    }
    let restarts = std::env::var("RESTARTS").ok().and_then(|count| count.parse().ok()).unwrap_or(4);
    let directory = tempfile::tempdir().unwrap();
    let mut site = Site::start("osaka", directory.path());
    site.tern(&["volume", "create", "vm1", "--size", "1G"]);
    site.tern(&["volume", "export", "vm1", "--nbd", &format!("unix:{}", site.socket("nbd").display())]);
    let printed = site.tern(&["volume", "show", "vm1", "--qemu", "--memory", "256M"])["qemu"].clone();
    let disk: Vec<String> = serde_json::from_value(printed).unwrap();

    let guest = Guest::boot("tern.job=write tern.files=0 tern.kib=16", &disk);
    for round in 0..restarts {
        guest.wait_for_more(3);
        if round % 2 == 0 {
            site.kill();
        } else {
            site.stop();
        }
        site.restart();
    }
    guest.wait_for_more(3);
    let files = guest.synced();
    let said = guest.pull_the_plug();
    assert!(!said.contains("I/O error") && !said.contains("tern: error"), "{said}");
    let said = boot(&site, "tern.job=check", &disk);
    assert!(said.contains("tern: fsck clean") && said.contains(" ok 0 bad"), "{said}");
    let checked = said.matches(" ok\n").count() as u64;
    assert!(checked >= files, "{checked} of {files} files: {said}");
    site.assert_no_panic();
}

#[test]
fn the_kernels_nbd_client_in_a_guest_makes_a_file_system_fills_it_trims_it_and_finds_it_again() {
    if guest().is_none() || !is_installed("nbd-client") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let initrd = directory.path().join("initrd");
    client(guest_script("build.sh").to_str().unwrap(), &["initrd", initrd.to_str().unwrap(), "nbd-client"]);
    let site = Site::start("osaka", directory.path());
    site.tern(&["volume", "create", "vm1", "--size", "128M"]);
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port();
    site.tern(&["volume", "export", "vm1", "--nbd", &format!("tcp:127.0.0.1:{port}")]);

    let network = ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="].map(str::to_owned);
    let arguments = [&["-initrd".to_owned(), initrd.display().to_string()], &network[..]].concat();
    let said = boot(&site, &format!("tern.job=nbd tern.files=10 tern.port={port}"), &arguments);
    for expected in ["tern: nbd attached 134217728", "tern: made file system", "tern: fsck clean", "tern: checked 10 ok 0 bad"] {
        assert!(said.contains(expected), "{expected} is not in {said}");
    }
    assert_eq!(said.matches("tern: nbd detached").count(), 2, "{said}");
    check_from_outside(&format!("nbd://127.0.0.1:{port}/vm1"), &directory.path().join("copy"), &[]);
    site.assert_no_panic();
}
