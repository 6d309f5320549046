//! Firmware boots from a vhost-user-blk disk: SeaBIOS' and UEFI's own virtio drivers, which know nothing of Linux, and GRUB on them.

use std::fs;
use std::path::Path;
use std::process::Command;
use tern_tests::{Site, client, eventually, guest_script, is_installed};

/// Debian's UEFI firmware (package ovmf), and where it keeps its variables.
const UEFI: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const UEFI_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

fn is_there(file: &str, package: &str) -> bool {
    let there = Path::new(file).exists();
    if !there {
        eprintln!("left out: {file} (package {package}) is not installed");
    }
    there
}

/// Boots from the disk on a socket until GRUB powers off; returns what was said.
fn boot(socket: &Path, device: &str, firmware: &[String]) -> String {
    let machine = "-accel tcg -m 256 -nodefaults -no-user-config -no-reboot -display none -serial stdio -net none \
                   -object memory-backend-memfd,id=mem,size=256M,share=on -machine q35,memory-backend=mem";
    let mut arguments: Vec<String> = machine.split_whitespace().map(str::to_owned).collect();
    arguments.extend(["-chardev".into(), format!("socket,id=disk,path={}", socket.display())]);
    arguments.extend(["-device".into(), format!("{device},chardev=disk,bootindex=0")]);
    arguments.extend_from_slice(firmware);
    client("qemu-system-x86_64", &arguments)
}

#[test]
fn seabios_and_uefi_boot_from_a_vhost_user_disk_and_each_finds_what_the_other_wrote() {
    let programs = ["qemu-system-x86_64", "grub-mkimage", "mcopy", "nbdcopy"].iter().all(|program| is_installed(program));
    let files = [("/usr/lib/grub/i386-pc", "grub-pc-bin"), ("/usr/lib/grub/x86_64-efi", "grub-efi-amd64-bin"), (UEFI, "ovmf")];
    if !programs || !files.iter().all(|(file, package)| is_there(file, package)) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk.raw");
    assert!(Command::new(guest_script("boot-disk.sh")).arg(&disk).status().unwrap().success());
    let site = Site::start("osaka", directory.path());
    let socket = site.socket("vhost");
    site.tern(&["volume", "create", "vm1", "--import", disk.to_str().unwrap()]);
    site.tern(&["volume", "export", "vm1", "--vhost-user", socket.to_str().unwrap()]);

    let variables = directory.path().join("variables");
    fs::copy(UEFI_VARIABLES, &variables).unwrap();
    let uefi = [
        "-drive".to_owned(),
        format!("if=pflash,format=raw,readonly=on,file={UEFI}"),
        "-drive".to_owned(),
        format!("if=pflash,format=raw,file={}", variables.display()),
    ];
    // UEFI has a driver for devices of the old kind, and another one for those that are not.
    let (old, new) = ("vhost-user-blk-pci", "vhost-user-blk-pci,disable-legacy=on");
    for (device, firmware, up_on, found) in [
        (old, &uefi[..0], "pc", ""),
        (old, &uefi[..], "efi", "written-by-pc"),
        (new, &uefi[..0], "pc", "written-by-efi"),
        (new, &uefi[..], "efi", "written-by-pc"),
    ] {
        let said = boot(&socket, device, firmware);
        for expected in [&format!("grub: up on {up_on}"), "grub: files ok", &format!("grub: mark was {found}"), "grub: done"] {
            assert!(said.contains(expected), "{device} {firmware:?}: {expected:?} is not in {said}");
        }
        eventually("the client is gone", || site.volume()["attached"].as_array().is_some_and(Vec::is_empty));
    }
    site.tern(&["volume", "export", "vm1", "--nbd", &format!("unix:{}", site.socket("nbd").display())]);
    client("nbdcopy", &[&format!("nbd+unix:///vm1?socket={}", site.socket("nbd").display()), disk.to_str().unwrap()]);
    let mark = client(guest_script("boot-disk.sh").to_str().unwrap(), &["mark", disk.to_str().unwrap()]);
    assert_eq!(mark.trim(), "written-by-efi");
    site.assert_no_panic();
}
