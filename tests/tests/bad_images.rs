//! Images that are missing, no disks, or cut off behind the daemon's back. The other volumes of the site never notice.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tern_tests::{NbdClient, Pair, Site};

const MIB: u64 = 1 << 20;
const EIO: Option<i32> = Some(5);

/// A site with `vm1` and a witness, 16 MiB each, in files of this directory.
fn site(directory: &Path) -> (Site, PathBuf) {
    let site = Site::start("osaka", directory);
    let image = directory.join("vm1.raw");
    for volume in ["vm1", "witness"] {
        let backing = directory.join(format!("{volume}.raw"));
        site.tern(&["volume", "create", volume, "--size", "16M", "--backing", backing.to_str().unwrap()]);
        site.tern(&["volume", "export", volume, "--nbd", &format!("unix:{}", site.socket("nbd").display())]);
    }
    connect(&site, "vm1").write(12 * MIB, &[b'x'; 4096]).unwrap();
    (site, image)
}

fn connect(site: &Site, volume: &str) -> NbdClient {
    NbdClient::connect_to(&site.socket("nbd"), volume).unwrap()
}

fn assert_works(site: &Site, volume: &str) {
    let mut client = connect(site, volume);
    client.write(4 * MIB, &[b'w'; 4096]).unwrap();
    let mut content = [0; 4096];
    client.read(4 * MIB, &mut content).unwrap();
    assert_eq!(content, [b'w'; 4096]);
    client.flush().unwrap();
}

fn truncate(image: &Path, size_bytes: u64) {
    File::options().write(true).open(image).unwrap().set_len(size_bytes).unwrap();
}

#[test]
fn what_is_no_disk_does_not_become_a_volume_and_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (site, image) = site(directory.path());
    let refuse = |arguments: &[&str], code: i32, words: &[&str]| {
        let (found, said) = site.try_tern(&[&["volume", "create", "vm2"], arguments].concat()).unwrap_err();
        assert!(found == code && words.iter().all(|word| said.contains(word)), "{arguments:?}: {found} {said}");
    };
    let odd = directory.path().join("odd");
    fs::write(&odd, "five.").unwrap();
    let missing = directory.path().join("missing.raw");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    refuse(&["--backing", &path(directory.path())], 1, &["neither a regular file nor a block device"]);
    refuse(&["--backing", "/dev/null"], 1, &["neither a regular file nor a block device"]);
    refuse(&["--backing", &path(&odd)], 1, &["odd", "not a multiple of 4096", "truncate"]);
    refuse(&["--backing", &path(&image)], 1, &["vm1.raw", "in use", "stop it first"]);
    refuse(&["--backing", &path(&missing)], 2, &["no size", "--size"]);
    refuse(&["--backing", &path(&odd), "--size", "16M"], 1, &["odd"]);
    refuse(&["--import", &path(&missing)], 2, &["missing", "No such file"]);
    refuse(&["--import", &path(&odd)], 2, &["odd", "rename it"]);
    assert_eq!(fs::read(&odd).unwrap(), b"five.");
    assert!(!missing.exists());
    assert_eq!(site.tern(&["volume", "list"])["volumes"].as_array().unwrap().len(), 2);
    assert_works(&site, "vm1");
    site.assert_no_panic();
}

#[test]
fn a_volume_whose_image_is_gone_or_shorter_is_not_served_and_the_others_are() {
    let directory = tempfile::tempdir().unwrap();
    let (mut site, image) = site(directory.path());
    let aside = image.with_extension("aside");
    site.kill();
    fs::rename(&image, &aside).unwrap();
    site.restart();
    assert_eq!(site.logged(&["ERROR", "vm1", "not served", "No such file"]).len(), 1, "one line");
    assert!(!image.exists(), "no new one is made");
    let status = site.volume();
    assert_eq!(status["state"], "error", "{status}");
    assert!(status["last_error"].as_str().is_some_and(|error| error.contains("vm1.raw")), "{status}");
    let (code, said) = site.try_tern(&["volume", "create", "vm1", "--size", "16M"]).unwrap_err();
    assert!(code == 1 && said.contains("exists"), "{code} {said}");
    assert_works(&site, "witness");

    site.kill();
    fs::rename(&aside, &image).unwrap();
    truncate(&image, 8 * MIB);
    site.restart();
    let line = site.logged(&["ERROR", "vm1", "not served", "shrunk from 16777216 to 8388608", "restore it"]);
    assert_eq!(line.len(), 1, "one line");
    assert_eq!(fs::metadata(&image).unwrap().len(), 8 * MIB, "it is not touched");
    assert_works(&site, "witness");

    site.kill();
    truncate(&image, 16 * MIB);
    site.restart();
    assert_works(&site, "vm1");
    site.assert_no_panic();
}

#[test]
fn an_image_that_shrinks_while_it_is_served_gives_errors_where_it_ended_and_one_log_line() {
    let directory = tempfile::tempdir().unwrap();
    let (site, image) = site(directory.path());
    let mut client = connect(&site, "vm1");
    let mut content = [0; 4096];
    client.read(12 * MIB, &mut content).unwrap();
    truncate(&image, 8 * MIB);
    for _ in 0..50 {
        assert_eq!(client.read(12 * MIB, &mut content).unwrap_err().raw_os_error(), EIO);
    }
    client.read(MIB, &mut content).unwrap();
    assert_eq!(client.flush().unwrap_err().raw_os_error(), EIO, "nobody can tell what is durable");
    assert_eq!(site.logged(&["ERROR", "vm1.raw", "shrunk"]).len(), 1, "one line");
    assert_works(&site, "witness");
    site.assert_no_panic();
}

#[test]
fn a_replicated_image_that_shrinks_is_an_error_of_that_volume_only() {
    let pair = Pair::start(16, "500ms");
    let Pair { a, b, .. } = &pair;
    let mut client = connect(a, "vm1");
    client.write(12 * MIB, &[b'x'; 4096]).unwrap();
    a.tern(&["snapshot", "vm1"]);
    let list = a.tern(&["volume", "list"]);
    truncate(Path::new(list["volumes"][0]["backing"].as_str().unwrap()), 8 * MIB);
    // What is gone is an error, and does not pass for a hole.
    let (code, said) = a.try_tern(&["verify", "vm1"]).unwrap_err();
    assert!(code == 1 && said.contains("shrunk"), "{code} {said}");
    client.write(MIB, &[b'y'; 4096]).unwrap();
    a.wait_until("in sync", |volume| volume["state"] == "in-sync");
    a.assert_no_panic();
    b.assert_no_panic();
}
