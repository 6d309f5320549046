//! A real VM with a Linux that knows nothing of us. Not part of the usual run: it takes half a minute, without KVM.

use crate::site::{Site, eventually};
use blockd::request::Access;
use std::path::Path;
use std::process::{Command, Stdio};

/// Longest that a guest may take.
const GUEST_SECONDS: &str = "240";

/// Boots the test guest with a job and returns what it says.
fn guest(site: &Site, job: &str) -> String {
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guest/run.sh");
    let chardev = format!("socket,id=disk,path={}", site.socket().display());
    let device = "vhost-user-blk-pci,chardev=disk,num-queues=2";
    let arguments = ["-smp", "2", "-chardev", &chardev, "-device", device];
    let output = Command::new("timeout").arg(GUEST_SECONDS).arg(run).arg(job).args(arguments).stdin(Stdio::null()).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    println!("{said}");
    said.into_owned()
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_makes_a_file_system_and_finds_its_files_again() {
    let site = Site::serve(256 << 20, Access::ReadWrite);
    let said = guest(&site, "tern.job=write tern.files=24 tern.kib=512");
    assert!(said.contains("tern: made file system") && said.contains("tern: synced 24") && said.contains("tern: done"), "{said}");
    eventually("the client is gone", || site.clients() == 0);
    let said = guest(&site, "tern.job=check");
    assert!(said.contains("tern: fsck clean") && said.contains("tern: checked 24 ok 0 bad"), "{said}");
}
