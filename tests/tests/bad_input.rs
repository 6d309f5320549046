//! What operators get wrong: configuration, state directories, addresses, tokens. Each is one line that names it and the cure.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};
use tern_tests::{NbdClient, Site, eventually, program};

/// Starts a daemon that is to refuse; it would run for ever if it did not.
fn blockd(arguments: &[&str]) -> Output {
    Command::new("timeout").arg("20").arg(program("blockd")).args(arguments).output().unwrap()
}

/// It ends with code 2 and one line that has all these words.
fn assert_refused(arguments: &[&str], words: &[&str]) {
    let run = blockd(arguments);
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!((run.status.code(), said.trim_end().lines().count()), (Some(2), 1), "{arguments:?}: {said}");
    assert!(words.iter().all(|word| said.contains(word)), "{arguments:?}: {words:?} are not all in {said}");
    assert!(run.stdout.is_empty());
}

/// Flags of a daemon in a directory of its own that would start.
fn flags(directory: &Path) -> Vec<String> {
    let at = |name: &str| directory.join(name).display().to_string();
    ["--site", "osaka", "--listen", "127.0.0.1:0", "--state-dir", &at("state"), "--admin", &at("admin")].map(str::to_owned).to_vec()
}

/// The same with one of them changed.
fn with<'a>(flags: &'a [String], flag: &str, value: &'a str) -> Vec<&'a str> {
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    match flags.iter().position(|word| *word == flag) {
        Some(at) => flags[at + 1] = value,
        None => panic!("{flag} is not among {flags:?}"),
    }
    flags
}

/// Runs `tern`, which fails with this code and one line that has all these words.
fn assert_fails(site: &Site, arguments: &[&str], code: i32, words: &[&str]) {
    let run =
        Command::new("timeout").arg("60").arg(program("tern")).arg("--admin").arg(site.socket("admin")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!((run.status.code(), said.trim_end().lines().count()), (Some(code), 1), "{arguments:?}: {said}");
    assert!(words.iter().all(|word| said.contains(word)), "{arguments:?}: {words:?} are not all in {said}");
}

#[test]
fn a_wrong_configuration_is_one_line_with_the_place_and_the_cure() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("blockd.toml");
    for (text, words) in [
        ("[journal]\nqutoa = \"1G\"\n", ["blockd.toml:2", "qutoa", "quota"]),
        ("plain_nbd_anywhere = true\n", ["blockd.toml:1", "plain_nbd_anywhere", "expected"]),
        ("[spill]\nquota = \"a lot\"\n", ["blockd.toml:2", "quota", "10G"]),
        ("site = [\n", ["blockd.toml:1", "site", ""]),
    ] {
        fs::write(&file, text).unwrap();
        assert_refused(&["--config", file.to_str().unwrap()], &words);
    }
    assert_refused(&["--config", "/nonexistent/blockd.toml"], &["/nonexistent/blockd.toml", "give the path"]);
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named_with_the_cure_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let running = Site::start("osaka", directory.path());
    let flags = flags(directory.path());
    let locked = running.state_dir();
    assert_refused(&with(&flags, "--state-dir", locked.to_str().unwrap()), &["state_dir", locked.to_str().unwrap(), "stop that one"]);
    running.tern(&["status"]);

    let file = directory.path().join("file");
    fs::write(&file, "mine").unwrap();
    for path in [file.to_str().unwrap(), &format!("{}/below", file.display()), "/sys/kernel/tern"] {
        assert_refused(&with(&flags, "--state-dir", path), &["state_dir", path, "must be a directory that blockd can write to"]);
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
fn a_key_that_is_damaged_or_that_others_can_read_is_named_with_the_cure_and_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let mut site = Site::start("osaka", directory.path());
    site.kill();
    let flags = flags(directory.path());
    let (state, key) = (site.state_dir(), site.state_dir().join("site.key"));
    let refused = |words: &[&str]| assert_refused(&with(&flags, "--state-dir", state.to_str().unwrap()), words);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&["site.key", "can be read by others", "chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let good = fs::read(&key).unwrap();
    fs::write(&key, &good[..good.len() / 2]).unwrap();
    refused(&["site.key", "backup"]);
    assert_eq!(fs::read(&key).unwrap(), good[..good.len() / 2]);
    fs::write(&key, good).unwrap();
    site.restart();
}

#[test]
fn addresses_that_are_taken_are_named_with_the_cure_and_whoever_has_them_works_on() {
    let directory = tempfile::tempdir().unwrap();
    let running = Site::start("osaka", directory.path());
    let flags = flags(directory.path());
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _holder = UdpSocket::bind(taken).unwrap();
    assert_refused(&with(&flags, "--listen", &taken.to_string()), &["listen", &taken.to_string(), "choose an address", "free"]);
    assert_refused(&with(&flags, "--listen", "192.0.2.1:7447"), &["listen", "192.0.2.1:7447", "choose an address"]);
    let metrics = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = metrics.local_addr().unwrap().to_string();
    let with_metrics = [&with(&flags, "--site", "osaka")[..], &["--metrics", &address]].concat();
    assert_refused(&with_metrics, &["metrics", &address, "choose an address that is free"]);

    let admin = running.socket("admin");
    assert_refused(&with(&flags, "--admin", admin.to_str().unwrap()), &["admin", admin.to_str().unwrap(), "stop", "another path"]);
    let file = directory.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert_refused(&with(&flags, "--admin", file.to_str().unwrap()), &["admin", file.to_str().unwrap(), "another path"]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    running.tern(&["status"]);
    running.assert_no_panic();
}

/// Needs root: gives a directory away.
mod privileged {
    use super::{assert_refused, flags, with};
    use std::os::unix::fs::chown;

    #[test]
    fn a_state_directory_of_somebody_else_is_refused_and_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let foreign = directory.path().join("foreign");
        std::fs::create_dir(&foreign).unwrap();
        chown(&foreign, Some(65534), None).unwrap();
        let flags = flags(directory.path());
        let words = ["state_dir", foreign.to_str().unwrap(), "user 65534", "change its owner or choose another"];
        assert_refused(&with(&flags, "--state-dir", foreign.to_str().unwrap()), &words);
        assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 0, "nothing was put there");
    }
}

#[test]
fn a_token_is_good_once_in_time_and_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let [osaka, oregon, third] = ["osaka", "oregon", "third"].map(|name| Site::start(name, directory.path()));
    let invite = |arguments: &[&str]| osaka.tern(&[&["peer", "invite"], arguments].concat())["token"].as_str().unwrap().to_owned();
    let token = invite(&[]);
    let join = |site: &Site, token: &str, words: &[&str]| assert_fails(site, &["peer", "join", token], 1, words);

    join(&oregon, &token[..token.len() - 1], &["cut short", "copy the whole line"]);
    join(&oregon, &token[..20], &["cut short", "copy the whole line"]);
    join(&oregon, &format!("{}AAAA{}", &token[..40], &token[44..]), &["damaged", "copy it again"]);
    join(&oregon, &token.replacen("tern1-", "tern2-", 1), &["later release", "upgrade this site"]);
    join(&oregon, "hello", &["no token", "tern1-"]);
    join(&osaka, &token, &["this site made the token", "paste it at the other site"]);
    assert!(osaka.tern(&["peer", "list"])["peers"].as_array().unwrap().is_empty());
    assert!(oregon.tern(&["peer", "list"])["peers"].as_array().unwrap().is_empty());

    oregon.tern(&["peer", "join", &token]);
    join(&third, &token, &["no invitation is open", "tern peer invite"]);
    let short = osaka.tern(&["peer", "invite", "--ttl", "1s"]);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let until = now() + 2;
    eventually("the token is old", || now() > until);
    join(&third, short["token"].as_str().unwrap(), &["expired", "make a new one with tern peer invite"]);
    // Another one is open, so that the third site is heard at all.
    let fresh = invite(&[]);
    join(&third, &token, &["osaka refused", "already used"]);
    assert_eq!(osaka.logged(&["WARN", "pairing refused", "already used"]).len(), 1, "one line");
    third.tern(&["peer", "join", &fresh]);
    assert_eq!(osaka.tern(&["peer", "list"])["peers"].as_array().unwrap().len(), 2);
    [osaka, oregon, third].iter().for_each(Site::assert_no_panic);
}

#[test]
fn a_command_that_makes_no_sense_has_the_exit_code_of_its_kind() {
    let directory = tempfile::tempdir().unwrap();
    let mut site = Site::start("osaka", directory.path());
    site.tern(&["volume", "create", "vm1", "--size", "16M"]);
    assert_fails(&site, &["volume", "create", "vm1", "--size", "16M"], 1, &["vm1", "exists"]);
    assert_fails(&site, &["volume", "show", "vm2"], 1, &["vm2", "tern volume list"]);
    assert_fails(&site, &["volume", "delete", "vm1"], 4, &["--yes"]);
    assert_fails(&site, &["volume", "resize", "vm1", "4M"], 4, &["vm1", "12582912 bytes"]);
    assert_fails(&site, &["replicate", "vm1", "--to", "oregon"], 1, &["oregon", "tern peer invite"]);
    assert_fails(&site, &["wait", "vm1", "--for", "committed=5", "--timeout", "200ms"], 3, &["vm1"]);
    NbdClient::connect(&site.socket("nbd")).map(drop).expect_err("no export yet");
    site.kill();
    assert_fails(&site, &["status"], 1, &["admin", "blockd"]);
}
