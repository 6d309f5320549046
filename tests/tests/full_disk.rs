//! File systems that are full, at either site: an error or a clear state, and on it goes when there is room.

/// Needs root: a small file system is made and mounted.
mod privileged {
    use rand::Rng;
    use std::fs::{self, File};
    use std::path::PathBuf;
    use std::process::Command;
    use tern_tests::{NbdClient, Pair, Site, client, dice, eventually, is_installed, try_client};

    const MIB: u64 = 1 << 20;
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;

    /// A file system of its own, most of which a file fills that can go. Dropped, it is unmounted.
    struct SmallDisk {
        path: PathBuf,
        _directory: tempfile::TempDir,
    }

    impl SmallDisk {
        /// `None` where none can be mounted.
        fn mount(size_mib: u64, free_mib: u64) -> Option<Self> {
            if !["mkfs.ext4", "mount"].iter().all(|program| is_installed(program)) {
                return None;
            }
            let directory = tempfile::tempdir().unwrap();
            let (image, path) = (directory.path().join("image"), directory.path().join("mounted"));
            fs::create_dir(&path).unwrap();
            File::create(&image).unwrap().set_len(size_mib * MIB).unwrap();
            client("mkfs.ext4", &["-q", "-F", "-m", "0", image.to_str().unwrap()]);
            let mounted = try_client("mount", &["-o", "loop", image.to_str().unwrap(), path.to_str().unwrap()]);
            if !mounted.status.success() {
                eprintln!("left out: a small file system cannot be mounted here: {}", String::from_utf8_lossy(&mounted.stderr).trim());
                return None;
            }
            let disk = Self { path, _directory: directory };
            let free = client("stat", &["-f", "-c", "%a %S", disk.path.to_str().unwrap()]);
            let (blocks, block_bytes) = free.trim().split_once(' ').unwrap();
            let free_bytes = blocks.parse::<u64>().unwrap() * block_bytes.parse::<u64>().unwrap();
            let ballast_bytes = free_bytes.checked_sub(free_mib * MIB).unwrap();
            client("fallocate", &["-l", &ballast_bytes.to_string(), disk.ballast().to_str().unwrap()]);
            Some(disk)
        }

        fn ballast(&self) -> PathBuf {
            self.path.join("ballast")
        }

        fn make_room(&self) {
            fs::remove_file(self.ballast()).unwrap();
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
        }
    }

    fn connect(site: &Site, volume: &str) -> NbdClient {
        NbdClient::connect_to(&site.socket("nbd"), volume).unwrap()
    }

    /// Writes mebibytes one after the other; how many were written until an error, and which.
    fn write_until_error(client: &mut NbdClient, mib: u64) -> (u64, Option<i32>) {
        write_pieces(client, mib, MIB as usize)
    }

    /// The same with so many bytes at the beginning of each mebibyte.
    fn write_pieces(client: &mut NbdClient, mib: u64, len_bytes: usize) -> (u64, Option<i32>) {
        let mut content = vec![0; len_bytes];
        let mut rng = dice();
        for at in 0..mib {
            rng.fill_bytes(&mut content);
            if let Err(error) = client.write(at * MIB, &content) {
                return (at, error.raw_os_error());
            }
        }
        (mib, None)
    }

    /// Fills the primary's file system, sees the error, makes room, and sees everything work again.
    fn fill_and_make_room(pair: &Pair, disk: &SmallDisk) {
        let mut client = connect(&pair.a, "vm1");
        let (written, error) = write_until_error(&mut client, 128);
        assert!(written > 0 && error == Some(ENOSPC), "{written} {error:?}");
        // The last blocks go, too, and whatever else wants one.
        for len_bytes in [64 << 10, 4096] {
            let (_, error) = write_pieces(&mut client, 128, len_bytes);
            assert!(matches!(error, Some(EIO | ENOSPC)), "{error:?}");
        }
        let mut content = vec![0; MIB as usize];
        client.read((written - 1) * MIB, &mut content).unwrap();
        assert!(content.iter().any(|byte| *byte != 0), "what was acknowledged is there");
        let full = pair.a.volume();
        assert!(
            full["last_error"].as_str().is_some_and(|error| error.contains("No space left") && error.contains("the client is told")),
            "{full}"
        );
        assert_eq!(
            (&full["role"], &full["promise_held"]),
            (&"primary".into(), &true.into()),
            "what was acknowledged is replicated: {full}"
        );
        disk.make_room();
        eventually("writes work again", || write_until_error(&mut connect(&pair.a, "vm1"), 16).1.is_none());
        let (written, error) = write_until_error(&mut client, 32);
        assert_eq!((written, error), (32, None));
        client.flush().unwrap();
        pair.a.verify();
        let status = pair.a.volume();
        assert_eq!(status["last_error"], serde_json::Value::Null, "{status}");
        pair.assert_no_panic();
    }

    #[test]
    fn a_full_disk_under_the_image_is_an_error_to_the_client_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let Some(disk) = SmallDisk::mount(128, 32) else { return };
        let (a, b) = (Site::start("osaka", directory.path()), Site::start("oregon", directory.path()));
        let backing = disk.path.join("vm1.raw");
        a.tern(&["volume", "create", "other", "--size", "16M"]);
        a.tern(&["volume", "export", "other", "--nbd", &format!("unix:{}", a.socket("nbd").display())]);
        let addresses = [a.listen().to_owned(), b.listen().to_owned()];
        a.tern(&["volume", "create", "vm1", "--size", "128M", "--backing", backing.to_str().unwrap()]);
        let pair = Pair::of(directory, a, b, addresses.each_ref().map(String::as_str), "1s");
        let mut other = connect(&pair.a, "other");
        let mut client = connect(&pair.a, "vm1");
        let (_, error) = write_until_error(&mut client, 128);
        assert_eq!(error, Some(ENOSPC));
        assert_eq!(write_until_error(&mut other, 16), (16, None), "another volume has room");
        fill_and_make_room(&pair, &disk);
    }

    #[test]
    fn a_full_disk_under_the_primarys_state_directory_is_an_error_to_the_client_and_it_recovers() {
        let directory = tempfile::tempdir().unwrap();
        let Some(disk) = SmallDisk::mount(192, 48) else { return };
        let (a, b) = (Site::start("osaka", &disk.path), Site::start("oregon", directory.path()));
        let addresses = [a.listen().to_owned(), b.listen().to_owned()];
        a.tern(&["volume", "create", "vm1", "--size", "128M"]);
        let pair = Pair::of(directory, a, b, addresses.each_ref().map(String::as_str), "1s");
        fill_and_make_room(&pair, &disk);
    }

    /// Fills the standby's file system, sees both sites say so, makes room, and sees both in sync again.
    fn fill_the_standby(mode: &str, on_disconnect: &str, state: &str) {
        let directory = tempfile::tempdir().unwrap();
        let Some(disk) = SmallDisk::mount(256, 24) else { return };
        let (a, b) = (Site::start("osaka", directory.path()), Site::start("oregon", &disk.path));
        let addresses = [a.listen().to_owned(), b.listen().to_owned()];
        a.tern(&["volume", "create", "vm1", "--size", "64M"]);
        let pair = Pair::of(directory, a, b, addresses.each_ref().map(String::as_str), "1s");
        let rule = ["--on-disconnect", on_disconnect, "--ack-timeout", "2s"];
        pair.a.tern(&[&["replicate", "vm1", "--to", "oregon", "--rpo", "1s", "--mode", mode], &rule[..]].concat());
        pair.a.wait_until(mode, |seen| seen["mode"] == mode && seen["promise_held"] == true);
        let mut client = connect(&pair.a, "vm1");
        let waits = on_disconnect == "suspend";
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| assert_eq!(write_until_error(&mut client, 48), (48, None), "the primary works on"));
            let says_full = |error: &str| error.contains("space") || error.contains("full");
            for (site, state) in [(&pair.b, "suspended"), (&pair.a, state)] {
                let seen = site.wait_until(state, |volume| volume["state"] == state);
                assert!(seen["last_error"].as_str().is_some_and(says_full), "{seen}");
            }
            pair.a.wait_until("sure of its promise", |seen| seen["promise_held"] == waits);
            if waits {
                disk.make_room();
            }
            writer.join().unwrap();
        });
        if !waits {
            assert_eq!(write_until_error(&mut client, 16), (16, None), "the primary still works on");
            disk.make_room();
        }
        pair.a.verify();
        for site in [&pair.a, &pair.b] {
            let status = site.wait_until("in sync", |volume| volume["state"] == "in-sync");
            assert_eq!(status["last_error"], serde_json::Value::Null, "{status}");
            site.assert_no_panic();
        }
    }

    /// Lesson: whatever stands still says why (drbd#40).
    #[test]
    fn a_full_disk_at_the_standby_suspends_replication_until_there_is_room() {
        fill_the_standby("async", "continue", "suspended");
    }

    #[test]
    fn a_full_disk_at_the_standby_degrades_mode_sync_until_there_is_room() {
        fill_the_standby("sync", "degrade", "degraded");
    }

    #[test]
    fn a_full_disk_at_the_standby_suspends_the_client_if_it_was_told_to_and_nothing_promised_is_lost() {
        fill_the_standby("sync", "suspend", "suspended");
    }
}
