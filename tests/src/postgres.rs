//! A PostgreSQL server, as Debian has it, whose data lies wherever the test wants.

use crate::{client, eventually, is_installed, try_client};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Little log to keep on a small disk, and checkpoints all the time.
const SETTINGS: [&str; 4] = ["listen_addresses=", "max_wal_size=64MB", "checkpoint_timeout=30s", "wal_recycle=off"];
/// Its own user: it refuses to be root.
const USER: &str = "postgres";

/// Where the newest version's programs lie; `None`, and a word why, if there is none.
pub fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|version| version.path().join("bin"));
    let programs = versions.filter(|programs| programs.join("postgres").exists()).max();
    if programs.is_none() {
        eprintln!("left out: PostgreSQL is not installed");
    }
    programs.filter(|_| is_installed("setpriv"))
}

/// See the module's documentation. Dropped, it dies as with its host.
pub struct Postgres {
    server: Child,
    programs: PathBuf,
    sockets: PathBuf,
}

fn as_its_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--pdeathsig", "KILL"]).arg(program);
    command
}

impl Postgres {
    /// Makes an empty database cluster.
    pub fn create(programs: &Path, data: &Path) {
        fs::create_dir(data).expect("a directory for the data");
        client("chown", &[USER, data.to_str().expect("plain names")]);
        let mut initdb = as_its_user(&programs.join("initdb"));
        let made = initdb.args(["--auth=trust", "--no-instructions", "--data-checksums", "--no-locale", "-D"]).arg(data);
        assert!(made.stdout(Stdio::null()).status().expect("initdb runs").success());
    }

    /// Starts a server, and waits until it has recovered; its sockets lie in a directory of the test.
    pub fn start(programs: &Path, data: &Path, sockets: &Path) -> Self {
        fs::create_dir_all(sockets).expect("a directory for the sockets");
        client("chown", &[USER, sockets.to_str().expect("plain names")]);
        let log = fs::File::options().create(true).append(true).open(sockets.join("log")).expect("a log");
        let mut command = as_its_user(&programs.join("postgres"));
        command.arg("-D").arg(data).arg("-k").arg(sockets);
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        let server = command.stderr(log).stdout(Stdio::null()).spawn().expect("setpriv runs");
        let postgres = Self { server, programs: programs.to_owned(), sockets: sockets.to_owned() };
        eventually("PostgreSQL recovers", || postgres.command("pg_isready").stdout(Stdio::null()).status().is_ok_and(|end| end.success()));
        postgres
    }

    /// One of its programs, which connects to it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(self.programs.join(program))
            .arg("-h")
            .arg(&self.sockets)
            .args(["-U", USER])
            .env("PGDATABASE", USER);
        command
    }

    /// Runs one of its programs to its end; it succeeds, and returns what it said.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let done = self.command(program).args(arguments).output().expect("setpriv runs");
        let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{program} {arguments:?}: {said}\n{}", self.log());
        said.into_owned()
    }

    /// What a query returns, bare.
    pub fn query(&self, sql: &str) -> String {
        self.run("psql", &["-XAtqc", sql]).trim().to_owned()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.sockets.join("log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let listed = try_client("pgrep", &["--parent", &self.server.id().to_string()]).stdout;
        let children: Vec<_> = String::from_utf8_lossy(&listed).split_whitespace().map(str::to_owned).collect();
        let _ = self.server.kill();
        let _ = self.server.wait();
        // One that waits for another's lock would not notice.
        let _ = Command::new("kill").arg("-9").args(&children).stderr(Stdio::null()).status();
        let is_there = |child: &String| Path::new("/proc").join(child).exists();
        eventually("PostgreSQL's processes end, and close their files", || !children.iter().any(is_there));
    }
}
