//! A real VM with a Linux that knows nothing of us. Not part of the usual run: it takes half a minute, without KVM.

use crate::site::{Site, eventually};
use blockd::request::Access;
use blockd::volume::GateState;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// Longest that a guest may take.
const GUEST_SECONDS: &str = "240";

/// Boots the test guest with a job.
fn boot(site: &Site, job: &str) -> Command {
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guest/run.sh");
    let chardev = format!("socket,id=disk,path={},reconnect=1", site.socket().display());
    let device = "vhost-user-blk-pci,chardev=disk,num-queues=2";
    let mut command = Command::new("timeout");
    command.arg(GUEST_SECONDS).arg(run).arg(job).args(["-smp", "2", "-chardev", &chardev, "-device", device]).stdin(Stdio::null());
    command
}

/// Boots the test guest and returns what it says until its end.
fn guest(site: &Site, job: &str) -> String {
    let output = boot(site, job).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    eventually("the client is gone", || site.clients() == 0);
    said.into_owned()
}

fn check(site: &Site, files: u32) {
    let said = guest(site, "tern.job=check");
    assert!(said.contains("tern: fsck clean") && said.contains(&format!("tern: checked {files} ok 0 bad")), "{said}");
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_makes_a_file_system_and_finds_its_files_again() {
    let site = Site::serve(256 << 20, Access::ReadWrite);
    let said = guest(&site, "tern.job=write tern.files=24 tern.kib=512");
    assert!(said.contains("tern: made file system") && said.contains("tern: synced 24") && said.contains("tern: done"), "{said}");
    check(&site, 24);
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_goes_on_after_its_gate_was_shut_and_its_export_was_away() {
    let site = Site::serve(256 << 20, Access::ReadWrite);
    let mut vm = boot(&site, "tern.job=write tern.files=60 tern.kib=512").stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    for line in BufReader::new(vm.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match line.trim() {
            "tern: synced 10" | "tern: synced 20" => {
                site.volume.gate.set(GateState::Shut);
                site.wait(site.volume.gate.drained());
                site.volume.gate.set(GateState::Open);
            }
            "tern: synced 30" | "tern: synced 40" => {
                assert!(site.wait(site.service.unexport("vm1", &site.socket())));
                site.export(Access::ReadWrite);
            }
            _ => {}
        }
        said += &format!("{line}\n");
    }
    assert!(vm.wait().unwrap().success(), "{said}");
    assert!(said.contains("tern: synced 60") && said.contains("tern: done"), "{said}");
    check(&site, 60);
}
