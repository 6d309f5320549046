//! What public tools take of the same link for the first copy of an image, in the same run: QEMU's mirror to an NBD server, and `rsync`.

use crate::pair::{self, Pair};
use crate::program::{self, DIES_WITH_US};
use crate::record::{Benchmark, Figure, Record, Target};
use crate::site::{LONG_PATIENCE, PATIENCE};
use crate::workshop::Workshop;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use wanem::{Emulator, Side};

const AT_STANDBY: &str = "10.99.0.2";
const NBD_PORT: &str = "10809";
const RSYNC_PORT: &str = "8730";
const POLL: Duration = Duration::from_millis(50);

const LESS: Option<Target> = Some(Target { at_least: 1.0, aim: 0.5 });

pub const BENCHMARK: Benchmark = Benchmark {
    name: "first-sync-peers",
    about: "the same beside QEMU's mirror to an NBD server, rsync --inplace and rsync --inplace -z",
    figures: &[
        Figure { what: "bytes, against QEMU's mirror", unit: "x", target: LESS },
        Figure { what: "time, against QEMU's mirror", unit: "x", target: LESS },
        Figure { what: "bytes, against rsync", unit: "x", target: LESS },
        Figure { what: "time, against rsync", unit: "x", target: LESS },
        Figure { what: "bytes, against rsync -z", unit: "x", target: LESS },
        Figure { what: "time, against rsync -z", unit: "x", target: LESS },
        Figure { what: "time", unit: "s", target: None },
    ],
    run,
};

/// What a copy took.
#[derive(Clone, Copy)]
struct Cost {
    /// IP bytes to the standby, headers included.
    bytes: f64,
    seconds: f64,
}

fn run(workshop: &Workshop, record: &mut Record) -> Result<()> {
    let image = workshop.real_image()?;
    for _ in 0..workshop.rounds() {
        let ours = on_a_link(|wan| {
            let pair = Pair::start([workshop.dir(); 2], Some(wan))?;
            pair.import(&image)?;
            costs(wan, || pair.replicate("5s").map(drop))
        })?;
        let mirror = copied(workshop, &image, mirrored)?;
        let rsync = copied(workshop, &image, |wan, image, copy| rsynced(wan, image, copy, &[]))?;
        let compressed = copied(workshop, &image, |wan, image, copy| rsynced(wan, image, copy, &["-z"]))?;
        let against = |theirs: Cost| [ours.bytes / theirs.bytes, ours.seconds / theirs.seconds];
        let [[a, b], [c, d], [e, f]] = [mirror, rsync, compressed].map(against);
        record.add([a, b, c, d, e, f, ours.seconds]);
    }
    Ok(())
}

fn on_a_link<T>(measure: impl FnOnce(&mut Emulator) -> Result<T>) -> Result<T> {
    measure(&mut pair::wan()?)
}

/// What the link carries, and how long it takes, while something runs.
fn costs(wan: &mut Emulator, running: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (before, began) = (wan.stats()?.a_to_b.counters.delivered.bytes, Instant::now());
    running()?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Cost { bytes: (wan.stats()?.a_to_b.counters.delivered.bytes - before) as f64, seconds })
}

/// A tool's copy, which has to be one.
fn copied(workshop: &Workshop, image: &Path, tool: impl FnOnce(&mut Emulator, &Path, &Path) -> Result<Cost>) -> Result<Cost> {
    let dir = tempfile::tempdir_in(workshop.dir())?;
    let copy = dir.path().join("copy.raw");
    File::create(&copy)?.set_len(image.metadata()?.len())?;
    let cost = on_a_link(|wan| tool(wan, image, &copy))?;
    program::output(program::bounded(LONG_PATIENCE, "cmp").arg(image).arg(&copy)).context("the copy is none")?;
    Ok(cost)
}

/// A program of the tool that runs until this goes.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn().with_context(|| format!("{} cannot be started", program::command_line(command)))?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program at one end of the link, which goes when this process does, or at its limit.
fn at(wan: &Emulator, side: Side, program: &str) -> Command {
    let inside = wan.command(side, DIES_WITH_US[0]);
    let mut command = Command::new(DIES_WITH_US[0]);
    command.args(&DIES_WITH_US[1..]).args(["timeout", "--foreground", "--kill-after=5", &LONG_PATIENCE.as_secs().to_string()]);
    command.arg(inside.get_program()).args(inside.get_args()).args(&DIES_WITH_US[1..]).arg(program);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn mirrored(wan: &mut Emulator, image: &Path, copy: &Path) -> Result<Cost> {
    let mut server = at(wan, Side::B, "qemu-nbd");
    server.args(["--persistent", "--format=raw", "--discard=unmap", "--bind", AT_STANDBY, "--port", NBD_PORT, "--export-name=vm1"]);
    let _server = Running::start(server.arg(copy))?;
    let uri = format!("nbd://{AT_STANDBY}:{NBD_PORT}/vm1");
    answers("the NBD server", || program::output(at(wan, Side::A, "qemu-img").args(["info", &uri])).is_ok())?;
    let mut command = at(wan, Side::A, "qemu-system-x86_64");
    command.args(["-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]);
    let mut qemu = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let mut monitor = Monitor::of(&mut qemu.0)?;
    monitor.run("qmp_capabilities", json!({}))?;
    let from = json!({"node-name": "from", "driver": "raw", "file": {"driver": "file", "filename": image, "discard": "unmap"}});
    monitor.run("blockdev-add", from)?;
    let server = json!({"type": "inet", "host": AT_STANDBY, "port": NBD_PORT});
    monitor.run("blockdev-add", json!({"node-name": "to", "driver": "nbd", "server": server, "export": "vm1", "discard": "unmap"}))?;
    let job = json!({"job-id": "mirror", "device": "from", "target": "to", "sync": "full"});
    let cost = costs(wan, || {
        monitor.run("blockdev-mirror", job)?;
        monitor.wait_for("BLOCK_JOB_READY")
    })?;
    monitor.run("block-job-complete", json!({"device": "mirror"}))?;
    monitor.wait_for("BLOCK_JOB_COMPLETED")?;
    Ok(cost)
}

fn rsynced(wan: &mut Emulator, image: &Path, copy: &Path, options: &[&str]) -> Result<Cost> {
    let dir = copy.parent().context("the copy lies in no directory")?;
    let config = dir.join("rsyncd.conf");
    std::fs::write(
        &config,
        format!("use chroot = false\nuid = root\ngid = root\n[copies]\npath = {}\nread only = false\n", dir.display()),
    )?;
    let mut server = at(wan, Side::B, "rsync");
    server.args(["--daemon", "--no-detach", "--address", AT_STANDBY, "--port", RSYNC_PORT, "--config"]);
    let _server = Running::start(server.arg(&config))?;
    let there = format!("rsync://{AT_STANDBY}:{RSYNC_PORT}/copies/");
    answers("the rsync daemon", || program::output(at(wan, Side::A, "rsync").arg(&there)).is_ok())?;
    let mut rsync = at(wan, Side::A, "rsync");
    rsync.args(["--inplace", "--sparse"]).args(options).arg(image).arg(format!("{there}copy.raw"));
    costs(wan, || program::output(&mut rsync).map(drop))
}

fn answers(what: &str, mut does: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !does() {
        ensure!(began.elapsed() < PATIENCE, "{what} does not answer");
        sleep(POLL);
    }
    Ok(())
}

/// QEMU's monitor.
struct Monitor {
    to: std::process::ChildStdin,
    from: BufReader<std::process::ChildStdout>,
    events: VecDeque<Value>,
}

impl Monitor {
    fn of(qemu: &mut Child) -> Result<Self> {
        let from = BufReader::new(qemu.stdout.take().context("QEMU says nothing")?);
        let mut monitor = Self { to: qemu.stdin.take().context("QEMU hears nothing")?, from, events: VecDeque::new() };
        monitor.next().map(|_greeting| monitor)
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.from.read_line(&mut line)? > 0, "QEMU is gone");
        Ok(serde_json::from_str(&line)?)
    }

    fn run(&mut self, command: &str, arguments: Value) -> Result<()> {
        writeln!(self.to, "{}", json!({"execute": command, "arguments": arguments}))?;
        loop {
            let said = self.next()?;
            ensure!(said.get("error").is_none(), "{command}: {said}");
            if said.get("return").is_some() {
                return Ok(());
            }
            self.events.push_back(said);
        }
    }

    fn wait_for(&mut self, event: &str) -> Result<()> {
        loop {
            let said = self.events.pop_front().map_or_else(|| self.next(), Ok)?;
            let is = |name: &str| said["event"] == name;
            let failed = is("BLOCK_JOB_ERROR") || (is("BLOCK_JOB_COMPLETED") && said["data"].get("error").is_some());
            ensure!(!failed, "{said}");
            if is(event) {
                return Ok(());
            }
        }
    }
}
