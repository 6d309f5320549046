//! The small Linux guest of `tests/guest`, under QEMU without KVM, while it runs.

use crate::is_installed;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Longest that the guest may take to be made.
const BUILD_SECONDS: &str = "120";
/// For anything that it should do by and by: it has no KVM, and often not a CPU of its own.
const PATIENCE: Duration = Duration::from_secs(120);

/// A file of `tests/guest`.
pub fn guest_script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest").join(name)
}

/// Where the guest's parts lie; `None`, and a word why, if it cannot be made here.
pub fn guest_parts() -> Option<PathBuf> {
    if !is_installed("qemu-system-x86_64") {
        return None;
    }
    let built = Command::new("timeout").arg(BUILD_SECONDS).arg(guest_script("build.sh")).stderr(Stdio::inherit()).output();
    let built = built.expect("a script that runs");
    if !built.status.success() {
        eprintln!("left out: the guest needs Debian's packages, which are not to be had");
        return None;
    }
    Some(PathBuf::from(String::from_utf8(built.stdout).expect("a path").trim()))
}

/// What the guest says on its console.
#[derive(Default)]
struct Console {
    lines: Vec<String>,
    ended: bool,
}

type Shared = Arc<(Mutex<Console>, Condvar)>;

/// A guest that runs. Dropped, its plug is pulled.
pub struct Guest {
    vm: Child,
    console: Shared,
}

impl Guest {
    /// Starts it; see `run.sh` for the parameters, and for what it says.
    pub fn boot(parameters: &str, qemu: &[String]) -> Self {
        // The script becomes QEMU, which dies with this process.
        let mut run = Command::new("setpriv");
        run.args(["--pdeathsig", "KILL"]).arg(guest_script("run.sh")).arg(parameters).args(qemu);
        let mut vm = run.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("setpriv runs");
        let console = Shared::default();
        let (output, shared) = (BufReader::new(vm.stdout.take().expect("a pipe")), console.clone());
        std::thread::spawn(move || listen(output, &shared));
        Self { vm, console }
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.vm.id()
    }

    /// Waits until the guest has said it all so far that a condition asks for.
    fn wait_until(&self, what: &str, holds: impl Fn(&Console) -> bool) {
        let (console, changed) = &*self.console;
        let (began, mut seen) = (Instant::now(), console.lock().expect("no panic"));
        while !holds(&seen) {
            let left = PATIENCE.checked_sub(began.elapsed()).filter(|_| !seen.ended);
            let left = left.unwrap_or_else(|| panic!("{what}: not in time, or not before its end:\n{}", seen.lines.join("\n")));
            seen = changed.wait_timeout(seen, left).expect("no panic").0;
        }
    }

    /// Waits until a line has these words.
    pub fn wait_for(&self, words: &str) {
        self.wait_until(words, |console| console.lines.iter().any(|line| line.contains(words)));
    }

    /// How many files, with their checksums, it said are durable.
    pub fn synced(&self) -> u64 {
        synced(&self.console.0.lock().expect("no panic"))
    }

    /// Waits until so many more files are durable.
    pub fn wait_for_more(&self, files: u64) {
        let until = self.synced() + files;
        self.wait_until("more files", |console| synced(console) >= until);
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        self.console.0.lock().expect("no panic").lines.join("\n")
    }

    /// Waits until it has powered off, its job done; returns what it said.
    pub fn end(mut self) -> String {
        self.wait_for("tern: done");
        assert!(self.vm.wait().expect("a child").success(), "{}", self.said());
        self.said()
    }

    /// Ends it as a power cut does; returns what it said.
    pub fn pull_the_plug(mut self) -> String {
        self.stop();
        let (console, changed) = &*self.console;
        let heard = changed.wait_while(console.lock().expect("no panic"), |console| !console.ended);
        heard.expect("no panic").lines.join("\n")
    }

    fn stop(&mut self) {
        let _ = self.vm.kill();
        let _ = self.vm.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop();
    }
}

fn listen(output: impl BufRead, (console, changed): &(Mutex<Console>, Condvar)) {
    for line in output.split(b'\n').map_while(Result::ok) {
        console.lock().expect("no panic").lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        changed.notify_all();
    }
    console.lock().expect("no panic").ended = true;
    changed.notify_all();
}

fn synced(console: &Console) -> u64 {
    let counts = console.lines.iter().rev().filter_map(|line| line.strip_prefix("tern: synced "));
    counts.flat_map(str::parse).next().unwrap_or(0)
}
