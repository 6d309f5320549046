//! What a running daemon has given up, as the kernel and its users see it.

use std::fs;
use std::path::Path;
use std::process::Command;
use tern_tests::{NbdClient, Site, is_installed};

/// Of root's: DAC_OVERRIDE, CHOWN, FOWNER, NET_BIND_SERVICE, IPC_LOCK.
const KEPT: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 10 | 1 << 14;

/// A field of every thread of the daemon.
fn threads(site: &Site, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", site.pid())).unwrap();
    let read = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap_or_default();
        line.split_whitespace().next().unwrap_or_default().to_owned()
    };
    tasks.map(|task| read(task.unwrap())).collect()
}

fn hexadecimal(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}

#[track_caller]
fn assert_outside(refused: Result<serde_json::Value, (i32, String)>, path: &Path) {
    let (code, said) = refused.expect_err("it lies outside");
    assert_eq!(code, 1, "{said}");
    assert!([path.to_str().unwrap(), "outside", "[sandbox]", "restart blockd"].iter().all(|word| said.contains(word)), "{said}");
}

fn nbd(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[test]
fn every_thread_is_confined_and_the_system_s_directories_are_closed() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::start("osaka", directory.path());
    site.tern(&["volume", "create", "vm1", "--size", "16M"]);
    site.tern(&["volume", "export", "vm1", "--nbd", &nbd(&site.socket("nbd"))]);
    let _client = NbdClient::connect(&site.socket("nbd")).unwrap();
    let count = threads(&site, "Seccomp").len();
    assert!(count > 3, "{count} threads");
    assert_eq!(threads(&site, "Seccomp"), vec!["2"; count]);
    assert_eq!(threads(&site, "NoNewPrivs"), vec!["1"; count]);
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert!(threads(&site, set).iter().all(|held| hexadecimal(held) & !KEPT == 0), "{set}: {:?}", threads(&site, set));
    }
    let (backing, socket) = (Path::new("/etc/tern-test.raw"), Path::new("/usr/lib/tern-test.sock"));
    assert_outside(site.try_tern(&["volume", "create", "vm2", "--size", "16M", "--backing", backing.to_str().unwrap()]), backing);
    assert_outside(site.try_tern(&["volume", "export", "vm1", "--nbd", &nbd(socket)]), socket);
    assert!(!backing.exists() && !socket.exists());
    assert!(site.logged(&["sandbox refused"]).is_empty());
}

#[test]
fn with_a_list_of_directories_nothing_else_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let [inside, outside] = ["inside", "outside"].map(|name| directory.path().join(name));
    [&inside, &outside].iter().for_each(|path| fs::create_dir(path).unwrap());
    let site = Site::start_with("osaka", directory.path(), &["--sandbox-paths", inside.to_str().unwrap()]);
    let create =
        |name: &str, flag: &str, path: &Path| site.try_tern(&["volume", "create", name, "--size", "16M", flag, path.to_str().unwrap()]);
    create("vm1", "--backing", &inside.join("vm1.raw")).unwrap();
    assert_outside(create("vm2", "--backing", &outside.join("vm2.raw")), &outside.join("vm2.raw"));
    fs::File::create(outside.join("disk.raw")).unwrap().set_len(16 << 20).unwrap();
    assert_outside(create("vm3", "--import", &outside.join("disk.raw")), &outside.join("disk.raw"));
    assert_outside(site.try_tern(&["volume", "export", "vm1", "--vhost-user", outside.join("s").to_str().unwrap()]), &outside.join("s"));
    site.tern(&["volume", "export", "vm1", "--nbd", &nbd(&inside.join("nbd"))]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "the disk that was not imported");
}

#[test]
fn an_image_is_imported_by_the_one_program_that_may_be_executed() {
    if !is_installed("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let site = Site::start("osaka", directory.path());
    let source = directory.path().join("disk.qcow2");
    assert!(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&source).arg("16M").status().unwrap().success());
    site.tern(&["volume", "create", "vm1", "--import", source.to_str().unwrap()]);
    assert!(site.logged(&["sandbox refused"]).is_empty());
}

#[test]
fn a_volume_outside_of_a_new_list_is_kept_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let backing = directory.path().join("vm1.raw");
    let mut site = Site::start("osaka", directory.path());
    site.tern(&["volume", "create", "vm1", "--size", "16M", "--backing", backing.to_str().unwrap()]);
    site.set_flags(&["--sandbox-paths", site.state_dir().to_str().unwrap()]);
    site.restart();
    let seen = site.volume();
    assert_eq!(seen["state"], "error", "{seen}");
    assert!(seen["last_error"].as_str().unwrap().contains("outside"), "{seen}");
    site.set_flags(&[]);
    site.restart();
    assert_eq!(site.volume()["last_error"], serde_json::Value::Null);
}

/// Needs root: becomes somebody else.
mod privileged {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn root_becomes_the_user_and_keeps_nothing() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let nobody = 65534;
        let home = directory.path().join("osaka");
        fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(nobody), Some(nobody)).unwrap();
        let site = Site::start_with("osaka", directory.path(), &["--user", "nobody"]);
        assert!(threads(&site, "Uid").iter().all(|user| *user == nobody.to_string()));
        assert!(threads(&site, "CapPrm").iter().all(|held| hexadecimal(held) == 0));
        assert_eq!(site.state_dir().metadata().unwrap().uid(), nobody);
        site.tern(&["volume", "create", "vm1", "--size", "16M"]);
        site.tern(&["volume", "export", "vm1", "--nbd", &nbd(&site.socket("nbd"))]);
        NbdClient::connect(&site.socket("nbd")).unwrap();
        let (code, said) = site.try_tern(&["volume", "create", "vm2", "--size", "16M", "--backing", "/var/vm2.raw"]).unwrap_err();
        assert!(code == 1 && said.contains("Permission denied"), "{said}");
    }
}
