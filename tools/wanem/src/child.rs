//! The emulator as a child process, for tests, demo and benchmarks.
//!
//! ```no_run
//! # fn main() -> wanem::Result<()> {
//! use wanem::{Command, Emulator, Options, Side};
//! let options = Options::new("site-a".parse().unwrap(), "site-b".parse().unwrap());
//! let mut wan = Emulator::start("target/release/wanem".as_ref(), &options)?;
//! let _ping = wan.command(Side::A, "ping").args(["-c1", "10.99.0.2"]).status();
//! wan.send(Command::SetRate("20Mbit".parse().unwrap()))?;
//! let delivered = wan.stats()?.a_to_b.counters.delivered.bytes;
//! # let _ = delivered; Ok(())
//! # }
//! ```
//!
//! The child watches a pipe that only this process holds: it ends, and removes what it made, even if this process is killed.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    num::NonZeroU64,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command as Process, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::AsFd,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};

use crate::{
    client::Client,
    command::Command,
    counters::Report,
    error::{Error, Result},
    link::Settings,
    namespace::{Cidr, NamespaceName},
    quantity::{Loss, QueueLimit, Rate},
};

/// How long devices and namespaces may take to appear, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long they may take to go.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

const DEFAULT_RATE: NonZeroU64 = NonZeroU64::new(85_000_000).unwrap();

/// One end of the WAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first namespace.
    A,
    /// The second.
    B,
}

/// How to start an emulator. Fields are as the flags of `wanem run`.
#[derive(Debug, Clone)]
pub struct Options {
    /// `--a`
    pub a: NamespaceName,
    /// `--b`
    pub b: NamespaceName,
    /// `--a-ip`
    pub a_ip: Vec<Cidr>,
    /// `--b-ip`
    pub b_ip: Vec<Cidr>,
    /// `--rate`, `--rtt`, `--loss`, `--queue`
    pub link: Settings,
    /// `--mtu`
    pub mtu_bytes: u32,
    /// `--seed`
    pub seed: u64,
}

impl Options {
    /// 85 Mbit/s, 27 ms, no loss, between 10.99.0.1 and 10.99.0.2; namespaces are made if absent.
    pub fn new(a: NamespaceName, b: NamespaceName) -> Self {
        let prefix_bits = 30;
        Self {
            a,
            b,
            a_ip: vec![Cidr { address: [10, 99, 0, 1].into(), prefix_bits }],
            b_ip: vec![Cidr { address: [10, 99, 0, 2].into(), prefix_bits }],
            link: Settings {
                rate: Rate::BitsPerSecond(DEFAULT_RATE),
                rtt: Duration::from_millis(27),
                loss: Loss::default(),
                queue: QueueLimit::Auto,
            },
            mtu_bytes: 1_500,
            seed: 0,
        }
    }

    fn process(&self, program: &Path, control: &Path) -> Process {
        let mut process = Process::new(program);
        process.args(["run", "--create-namespaces", "--watch-stdin", "--control"]).arg(control);
        process.args(["--a", &self.a.to_string(), "--b", &self.b.to_string()]);
        for (flag, addresses) in [("--a-ip", &self.a_ip), ("--b-ip", &self.b_ip)] {
            for address in addresses {
                process.args([flag, &address.to_string()]);
            }
        }
        let Settings { rate, rtt, loss, queue } = self.link;
        process.args(["--rate", &rate.to_string(), "--rtt", &format!("{}us", rtt.as_micros())]);
        process.args(["--loss", &loss.to_string(), "--queue", &queue.to_string()]);
        process.args(["--mtu", &self.mtu_bytes.to_string(), "--seed", &self.seed.to_string()]);
        process
    }
}

/// A running emulator. Dropping it ends it.
#[derive(Debug)]
pub struct Emulator {
    child: Child,
    control: PathBuf,
    client: Client,
    options: Options,
}

impl Emulator {
    /// Starts `program`, which is the `wanem` binary, and returns once it relays.
    ///
    /// # Errors
    /// [`Error::NotStarted`] with what the child said.
    pub fn start(program: &Path, options: &Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let control = std::env::temp_dir().join(format!("wanem-{}-{count}.sock", std::process::id()));
        let mut child = options
            .process(program, &control)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io(program.display().to_string()))?;
        match wait_until_ready(&mut child).and_then(|()| Client::connect(&control)) {
            Ok(client) => Ok(Self { child, control, client, options: options.clone() }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    /// `program` in the namespace of `side`, ready to be spawned. The process spawned becomes `program` itself: its id and
    /// its exit are `program`'s.
    pub fn command(&self, side: Side, program: impl AsRef<OsStr>) -> Process {
        let namespace = match side {
            Side::A => &self.options.a,
            Side::B => &self.options.b,
        };
        let mut entering = std::ffi::OsString::from("--net=");
        entering.push(namespace.path());
        let mut process = Process::new("nsenter");
        process.arg(entering).arg("--").arg(program);
        process
    }

    /// The path of the control socket.
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// Sends a command.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn send(&mut self, command: Command) -> Result<()> {
        self.client.send(command).map(drop)
    }

    /// The counters.
    ///
    /// # Errors
    /// As [`Client::stats`].
    pub fn stats(&mut self) -> Result<Report> {
        self.client.stats()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn wait_until_ready(child: &mut Child) -> Result<()> {
    let stdout = child.stdout.take().ok_or_else(|| Error::NotStarted("its output is not ours".into()))?;
    if !becomes_readable(&stdout, START_TIMEOUT) {
        return Err(Error::NotStarted(format!("not ready after {START_TIMEOUT:?}")));
    }
    let mut line = String::new();
    let _ = BufReader::<ChildStdout>::new(stdout).read_line(&mut line);
    if line.trim_end() == "ready" {
        return Ok(());
    }
    // Its output ended without the line: it is on its way out, and its last words are in the pipe.
    let mut message = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut message);
    }
    Err(Error::NotStarted(message.trim().into()))
}

/// Ends the child: politely, so that it removes what it made; by force if it does not go.
fn end(child: &mut Child) {
    drop(child.stdin.take());
    let pid = Pid::from_child(child);
    let gone = pidfd_open(pid, PidfdFlags::empty()).is_ok_and(|pidfd| {
        let _ = kill_process(pid, Signal::TERM);
        becomes_readable(&pidfd, STOP_TIMEOUT)
    });
    if !gone {
        let _ = child.kill();
    }
    let _ = child.wait();
}

fn becomes_readable(fd: impl AsFd, timeout: Duration) -> bool {
    let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
    // An interruption counts as a timeout: signals without handlers do not interrupt.
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}
