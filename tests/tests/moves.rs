//! A VM that runs moves onto a volume, and away again, without a stop: QEMU mirrors its disk, then switches.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tern_tests::{Guest, Pair, Qmp, Site, client, guest_parts, guest_script, is_installed};

const DISK_MIB: u32 = 128;

/// A system on a qcow2 disk in `directory`; `None` if it cannot be made here.
fn system(directory: &Path) -> Option<PathBuf> {
    guest_parts()?;
    if !is_installed("qemu-img") {
        return None;
    }
    let (raw, qcow2) = (directory.join("disk.raw"), directory.join("disk.qcow2"));
    let made = Command::new(guest_script("build.sh")).arg("root").arg(&raw).arg(format!("{DISK_MIB}M")).status();
    assert!(made.expect("a script that runs").success());
    client("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw.to_str()?, qcow2.to_str()?]);
    Some(qcow2)
}

/// Boots a system that writes files without end, with QEMU's control socket.
fn boot(control: &Path, disk: &[String]) -> (Guest, Qmp) {
    let mut arguments = vec!["-qmp".into(), format!("unix:{},server=on,wait=off", control.display())];
    arguments.extend_from_slice(disk);
    let guest = Guest::boot("tern.job=root tern.after=write tern.files=0 tern.kib=64", &arguments);
    guest.wait_for_more(5);
    (guest, Qmp::connect(control))
}

/// The volume as a node of QEMU's block layer.
fn volume_node(site: &Site) -> Value {
    json!({ "driver": "nbd", "node-name": "tern-vm1", "export": "vm1", "discard": "unmap", "reconnect-delay": 300,
            "server": { "type": "unix", "path": site.socket("nbd") } })
}

/// Mirrors one node to another under the guest's load, until they are the same but for what is being written.
fn mirror(guest: &Guest, control: &mut Qmp, from: &str, to: &str, copy_mode: &str) {
    let job = json!({ "job-id": "move", "device": from, "target": to, "sync": "full", "copy-mode": copy_mode });
    control.run("blockdev-mirror", job);
    control.wait_for("BLOCK_JOB_READY");
    guest.wait_for_more(5);
}

/// The guest goes on with the other node.
fn switch(control: &mut Qmp, to: &str) {
    control.run("job-complete", json!({ "id": "move" }));
    let completed = control.wait_for("BLOCK_JOB_COMPLETED");
    assert!(completed.get("error").is_none(), "{completed}");
    let disks = control.run("query-block", json!({}));
    assert_eq!(disks[0]["inserted"]["node-name"], to, "{disks}");
}

/// The guest's files are whole and its file system is clean.
fn check(disk: &[String], files: u64) {
    let said = Guest::boot("tern.job=root tern.after=check", disk).end();
    let checked = said.lines().find_map(|line| line.strip_prefix("tern: checked ")?.strip_suffix(" ok 0 bad"));
    assert!(said.contains("tern: fsck clean"), "{said}");
    assert!(checked.is_some_and(|count| count.parse::<u64>().is_ok_and(|count| count >= files)), "{files} files: {said}");
}

#[test]
fn a_running_vm_moves_onto_a_replicated_volume_and_goes_on_over_vhost_user_when_it_is_next_started() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = system(directory.path()) else { return };
    let pair = Pair::start(DISK_MIB, "1s");
    let blockdev = format!("driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename={}", disk.display());
    let disk = ["-blockdev".into(), blockdev, "-device".into(), "virtio-blk-pci,drive=disk".into()];
    let (guest, mut control) = boot(&directory.path().join("qmp"), &disk);
    control.run("blockdev-add", volume_node(&pair.a));
    mirror(&guest, &mut control, "disk", "tern-vm1", "background");
    switch(&mut control, "tern-vm1");
    control.run("blockdev-del", json!({ "node-name": "disk" }));
    pair.a.verify();
    guest.wait_for_more(5);
    let files = guest.synced();
    let said = guest.pull_the_plug();
    assert!(!said.contains("I/O error") && !said.contains("tern: error"), "{said}");

    let socket = pair.a.socket("vhost");
    pair.a.tern(&["volume", "export", "vm1", "--vhost-user", socket.to_str().unwrap()]);
    let chardev = format!("socket,id=disk,path={}", socket.display());
    check(&["-chardev".into(), chardev, "-device".into(), "vhost-user-blk-pci,chardev=disk".into()], files);
    pair.a.verify();
    pair.assert_no_panic();
}

#[test]
fn a_daemon_that_dies_before_the_switch_leaves_the_vm_on_its_old_disk_and_the_next_attempt_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = system(directory.path()) else { return };
    let mut site = Site::start("osaka", directory.path());
    site.tern(&["volume", "create", "vm1", "--size", &format!("{DISK_MIB}M")]);
    site.tern(&["volume", "export", "vm1", "--nbd", &format!("unix:{}", site.socket("nbd").display())]);
    let drive = format!("file={},format=qcow2,if=virtio,id=disk", disk.display());
    let (guest, mut control) = boot(&directory.path().join("qmp"), &["-drive".into(), drive]);
    let mut node = volume_node(&site);
    node["reconnect-delay"] = 0.into();
    control.run("blockdev-add", node);
    mirror(&guest, &mut control, "disk", "tern-vm1", "background");
    site.kill();
    let ended = control.wait_for("BLOCK_JOB_COMPLETED");
    assert!(ended.get("error").is_some(), "{ended}");
    guest.wait_for_more(5);

    site.restart();
    control.run("blockdev-del", json!({ "node-name": "tern-vm1" }));
    control.run("blockdev-add", volume_node(&site));
    mirror(&guest, &mut control, "disk", "tern-vm1", "background");
    switch(&mut control, "tern-vm1");
    guest.wait_for_more(5);
    let said = guest.pull_the_plug();
    assert!(!said.contains("I/O error") && !said.contains("tern: error"), "{said}");
    site.assert_no_panic();
}

#[test]
fn what_a_vm_moves_to_is_bit_for_bit_what_it_leaves_onto_a_volume_and_away_again() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = system(directory.path()) else { return };
    let site = Site::start("osaka", directory.path());
    site.tern(&["volume", "create", "vm1", "--size", &format!("{DISK_MIB}M")]);
    site.tern(&["volume", "export", "vm1", "--nbd", &format!("unix:{}", site.socket("nbd").display())]);
    let drive = format!("file={},format=qcow2,if=virtio,id=disk,discard=unmap", disk.display());
    let (guest, mut control) = boot(&directory.path().join("qmp"), &["-drive".into(), drive]);
    let home = directory.path().join("home.raw");
    fs::File::create(&home).and_then(|file| file.set_len(u64::from(DISK_MIB) << 20)).unwrap();
    let file = json!({ "driver": "file", "filename": home, "discard": "unmap" });
    control.run("blockdev-add", volume_node(&site));
    control.run("blockdev-add", json!({ "driver": "raw", "node-name": "home", "discard": "unmap", "file": file }));

    let uri = format!("nbd+unix:///vm1?socket={}", site.socket("nbd").display());
    let (disk, home) = (disk.to_str().unwrap(), home.to_str().unwrap());
    for (to, left) in [("tern-vm1", ["qcow2", disk]), ("home", ["raw", home])] {
        // Until the switch the VM works on its old disk, and what is acknowledged is at both.
        mirror(&guest, &mut control, "disk", to, "write-blocking");
        // Only for the comparison.
        control.run("stop", json!({}));
        switch(&mut control, to);
        client("qemu-img", &["compare", "-U", "-f", left[0], "-F", "raw", left[1], &uri]);
        control.run("cont", json!({}));
        guest.wait_for_more(5);
    }
    control.run("blockdev-del", json!({ "node-name": "tern-vm1" }));
    site.wait_until("without a client", |volume| volume["attached"].as_array().is_some_and(Vec::is_empty));
    let files = guest.synced();
    let said = guest.pull_the_plug();
    assert!(!said.contains("I/O error") && !said.contains("tern: error"), "{said}");
    check(&["-drive".into(), format!("file={home},if=virtio,format=raw")], files);
    site.assert_no_panic();
}
