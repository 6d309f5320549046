//! A snapshot for which the guest's file systems stood still, by the real agent in a real guest.

use tern_tests::{Guest, Pair, client, guest_parts, guest_script, is_installed};

/// Whether the ext4 on the standby's disk would have to replay its journal.
fn needs_recovery(pair: &mut Pair) -> bool {
    pair.a.kill();
    pair.b.tern(&["promote", "vm1", "--force"]);
    let copy = pair.b.socket("copy");
    client("nbdcopy", &[&format!("nbd+unix:///vm1?socket={}", pair.b.socket("nbd").display()), copy.to_str().unwrap()]);
    let about = client("dumpe2fs", &["-h", copy.to_str().unwrap()]);
    let needs_recovery = about.contains("needs_recovery");
    if !needs_recovery {
        client("e2fsck", &["-f", "-n", copy.to_str().unwrap()]);
    }
    needs_recovery
}

#[test]
fn a_quiesced_snapshot_is_a_clean_file_system_and_the_guest_writes_on() {
    let tools = ["qemu-ga", "nbdcopy", "dumpe2fs", "e2fsck"].iter().all(|program| is_installed(program));
    if !tools || guest_parts().is_none() {
        return;
    }
    let mut pair = Pair::start(64, "1s");
    pair.a.tern(&["mode", "vm1", "snapshot"]);
    let (initrd, agent) = (pair.a.socket("initrd"), pair.a.socket("agent"));
    client(guest_script("build.sh").to_str().unwrap(), &["initrd", initrd.to_str().unwrap(), "qemu-ga"]);
    let drive = format!("file=nbd+unix:///vm1?socket={},if=virtio,format=raw,cache=none", pair.a.socket("nbd").display());
    let chardev = format!("socket,id=agent,path={},server=on,wait=off", agent.display());
    let arguments = ["-initrd", initrd.to_str().unwrap(), "-drive", &drive, "-chardev", &chardev, "-serial", "chardev:agent"];
    let guest = Guest::boot("tern.job=write tern.files=0 tern.kib=16 tern.agent=serial", &arguments.map(str::to_owned));
    guest.wait_for_more(3);
    let point = pair.a.tern(&["snapshot", "vm1", "--quiesce", agent.to_str().unwrap()]);
    assert_eq!(pair.a.volume()["epoch_committed"], point["epoch"]);
    guest.wait_for_more(3);
    let said = guest.pull_the_plug();
    assert!(!said.contains("I/O error") && !said.contains("tern: error"), "{said}");
    assert!(!needs_recovery(&mut pair), "as after a power cut");
    pair.b.assert_no_panic();
}
