//! A daemon, its state directory, and `tern` at its socket.

use crate::PATIENCE;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// One site. Dropped, its daemon is killed.
pub struct Site {
    /// Its name.
    pub name: &'static str,
    directory: PathBuf,
    /// What runs the daemon: in another network, perhaps.
    program: Vec<OsString>,
    listen: String,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    daemon: Option<Child>,
}

/// Where one of our programs lies.
pub fn program(name: &str) -> PathBuf {
    let beside = || {
        let own = std::env::current_exe().expect("a test has a path");
        own.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").to_owned()
    };
    std::env::var_os("TERN_BIN_DIR").map_or_else(beside, PathBuf::from).join(name)
}

impl Site {
    /// Starts a site whose state lies in `parent`.
    pub fn start(name: &'static str, parent: &Path) -> Self {
        Self::start_with(name, parent, &[])
    }

    /// The same with more flags for the daemon.
    pub fn start_with(name: &'static str, parent: &Path, flags: &[&str]) -> Self {
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
        Self::start_by(name, parent, vec![program("blockd").into()], &free.to_string(), flags)
    }

    /// The same with a daemon that this command starts, and that listens there.
    pub fn start_at(name: &'static str, parent: &Path, command: &Command, listen: &str) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        Self::start_by(name, parent, words.map(OsStr::to_owned).collect(), listen, &[])
    }

    fn start_by(name: &'static str, parent: &Path, program: Vec<OsString>, listen: &str, flags: &[&str]) -> Self {
        let directory = parent.join(name);
        let mut site = Self { name, directory, program, listen: listen.into(), flags: Vec::new(), environment: Vec::new(), daemon: None };
        site.set_flags(flags);
        std::fs::create_dir_all(&site.directory).expect("a temporary directory");
        site.restart();
        site
    }

    /// Where a socket of this site with this name lies.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where it keeps everything.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Where other sites connect.
    pub fn listen(&self) -> &str {
        &self.listen
    }

    /// Other flags for the daemon, from its next start on.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    /// More environment for the daemon, from its next start on.
    pub fn set_environment(&mut self, variables: &[(&str, &str)]) {
        self.environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    }

    /// Its daemon's process id.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon that runs").id()
    }

    /// Starts the daemon again, and waits until it answers.
    pub fn restart(&mut self) {
        self.kill();
        let log = File::options().create(true).append(true).open(self.directory.join("log")).expect("a log");
        let daemon = Command::new(&self.program[0])
            .args(&self.program[1..])
            .args(["--site", self.name, "--listen", &self.listen])
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--admin")
            .arg(self.socket("admin"))
            .args(&self.flags)
            .envs(self.environment.iter().cloned())
            .stderr(log)
            .stdout(Stdio::null())
            .spawn();
        self.daemon = Some(daemon.expect("blockd starts: is $TERN_BIN_DIR right?"));
        let began = Instant::now();
        while self.try_tern(&["status"]).is_err() {
            assert!(began.elapsed() < PATIENCE, "{} does not answer: {}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().expect("a process to kill");
            daemon.wait().expect("its end");
        }
    }

    /// Sends its daemon a signal.
    pub fn signal(&self, signal: Signal) {
        let daemon = self.daemon.as_ref().expect("a daemon that runs");
        kill_process(Pid::from_child(daemon), signal).expect("a process to signal");
    }

    /// `SIGSTOP`, and none of its threads does anything any more. The signal alone is only sent: they stop one by one.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let daemon = WaitId::Pid(Pid::from_child(self.daemon.as_ref().expect("a daemon that runs")));
        let state = waitid(daemon, WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).expect("a child to wait for");
        assert!(state.is_some_and(|state| state.stopped()), "the daemon has ended");
    }

    /// `SIGTERM`, and its end.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let mut daemon = self.daemon.take().expect("a daemon that runs");
        assert!(daemon.wait().expect("its end").success(), "{}", self.log());
    }

    /// How long threads of its daemon with this name were ready to run, and did not, since they began.
    pub fn run_delay_seconds(&self, threads: &str) -> f64 {
        let of_thread = |thread: PathBuf| -> Option<f64> {
            let name = std::fs::read_to_string(thread.join("comm")).ok()?;
            let times = std::fs::read_to_string(thread.join("schedstat")).ok()?;
            let waited_ns: f64 = times.split_ascii_whitespace().nth(1)?.parse().ok()?;
            name.starts_with(threads).then_some(waited_ns / 1e9)
        };
        let all = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("a process");
        all.flatten().filter_map(|thread| of_thread(thread.path())).sum()
    }

    /// Runs `tern --json`; an error is its exit code and what it said.
    pub fn try_tern(&self, arguments: &[&str]) -> Result<Value, (i32, String)> {
        let run = Command::new("timeout")
            .arg("120")
            .arg(program("tern"))
            .args(["--json", "--admin"])
            .arg(self.socket("admin"))
            .args(arguments)
            .output()
            .expect("tern runs");
        let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        if run.status.success() {
            serde_json::from_slice(&run.stdout).map_err(|error| (0, format!("{error}: {said}")))
        } else {
            Err((run.status.code().unwrap_or(-1), said))
        }
    }

    /// Starts `tern`.
    pub fn start_tern(&self, arguments: &[&str]) -> Child {
        let mut tern = Command::new(program("tern"));
        tern.arg("--admin").arg(self.socket("admin")).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        tern.spawn().expect("tern runs")
    }

    /// Runs `tern --json`, which must succeed.
    pub fn tern(&self, arguments: &[&str]) -> Value {
        self.try_tern(arguments)
            .unwrap_or_else(|(code, said)| panic!("{}: tern {arguments:?}: exit {code}: {said}\n{}", self.name, self.log()))
    }

    /// The status of `vm1`.
    pub fn volume(&self) -> Value {
        self.tern(&["status", "vm1"])["volumes"][0].clone()
    }

    /// Waits until the status says so.
    pub fn wait_until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let seen = self.volume();
            if holds(&seen) {
                return seen;
            }
            assert!(began.elapsed() < PATIENCE, "{} is not {what}: {seen}\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Compares both sites; panics if they differ.
    pub fn verify(&self) {
        self.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
        let found = self.tern(&["verify", "vm1"]);
        assert_eq!(found["blocks_different"], 0, "{found}");
        assert!(found["blocks_compared"].as_u64() > Some(0), "{found}");
    }

    /// The lines of its log that have all these words.
    pub fn logged(&self, words: &[&str]) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        log.lines().filter(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned).collect()
    }

    /// The end of its log.
    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let from = log.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
        log[from..].to_owned()
    }

    /// Panics if the daemon ever did, or made a system call that its sandbox does not know.
    pub fn assert_no_panic(&self) {
        assert!(self.logged(&["panicked"]).is_empty(), "{}", self.log());
        assert!(self.logged(&["sandbox refused"]).is_empty(), "{}", self.log());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two paired sites; `vm1` is at the first, served over NBD, and replicated to the second.
pub struct Pair {
    /// The primary at first.
    pub a: Site,
    /// The standby at first.
    pub b: Site,
    _directory: tempfile::TempDir,
}

impl Pair {
    /// Starts both and the replication of a volume of so many MiB; returns when it is in sync.
    pub fn start(size_mib: u32, rpo: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (a, b) = (Site::start("osaka", directory.path()), Site::start("oregon", directory.path()));
        let addresses = [a.listen.clone(), b.listen.clone()];
        a.tern(&["volume", "create", "vm1", "--size", &format!("{size_mib}M")]);
        Self::of(directory, a, b, [&addresses[0], &addresses[1]], rpo)
    }

    /// Neither of them has met what should not be.
    pub fn assert_no_panic(&self) {
        self.a.assert_no_panic();
        self.b.assert_no_panic();
    }

    /// The same with sites that run already, of which the first has the volume, and where each reaches the other.
    pub fn of(directory: tempfile::TempDir, a: Site, b: Site, [a_at, b_at]: [&str; 2], rpo: &str) -> Self {
        let invite = a.tern(&["peer", "invite", "--address", a_at]);
        b.tern(&["peer", "join", invite["token"].as_str().expect("a token"), "--address", b_at]);
        let began = Instant::now();
        while a.tern(&["peer", "list"])["peers"][0]["connected"] != true {
            assert!(began.elapsed() < PATIENCE, "the sites do not connect");
            std::thread::sleep(Duration::from_millis(20));
        }
        let pair = Self { a, b, _directory: directory };
        pair.a.tern(&["replicate", "vm1", "--to", "oregon", "--rpo", rpo]);
        for site in [&pair.a, &pair.b] {
            let began = Instant::now();
            while site.try_tern(&["volume", "export", "vm1", "--nbd", &format!("unix:{}", site.socket("nbd").display())]).is_err() {
                assert!(began.elapsed() < PATIENCE, "{} cannot export", site.name);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        pair.a.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
        pair
    }
}
