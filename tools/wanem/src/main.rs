//! `wanem`: start the emulator, or talk to one that runs.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use wanem::{
    Client, Command, Error, Loss, QueueLimit, Rate, Report, Wan,
    control::Server,
    link::Settings,
    namespace::{Cidr, Device, End, Missing, NamespaceName, Namespaces},
    quantity::parse_rtt,
    relay::{self, EndsWith, Relay, Termination},
};

/// The kernel's `IFNAMSIZ` less the terminating zero.
const MAX_DEVICE_NAME_BYTES: usize = 15;

/// A WAN between two network namespaces: rate, delay, loss, a bounded queue and counters.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Join two namespaces; prints `ready` once packets pass, ends on SIGINT or SIGTERM.
    Run(Run),
    /// Send a command to a running emulator: stats, set rate|rtt|loss|queue VALUE, cut or heal [a-to-b|b-to-a].
    Ctl(Ctl),
}

#[derive(Debug, Args)]
struct Run {
    /// The first namespace, as `ip netns` names it.
    #[arg(long, value_name = "NS")]
    a: NamespaceName,
    /// The second namespace.
    #[arg(long, value_name = "NS")]
    b: NamespaceName,
    /// An address of the device in the first namespace; may be repeated.
    #[arg(long, value_name = "IP/BITS", default_value = "10.99.0.1/30")]
    a_ip: Vec<Cidr>,
    /// An address of the device in the second namespace; may be repeated.
    #[arg(long, value_name = "IP/BITS", default_value = "10.99.0.2/30")]
    b_ip: Vec<Cidr>,
    /// The name of the device in both namespaces.
    #[arg(long, value_name = "NAME", default_value = "wan0", value_parser = device_name)]
    device: String,
    /// The rate of each direction, such as 85Mbit, or `unlimited`.
    #[arg(long)]
    rate: Rate,
    /// The round trip, such as 27ms; each direction delays by half of it.
    #[arg(long, value_name = "TIME", value_parser = parse_rtt)]
    rtt: Duration,
    /// The share of packets lost in each direction, such as 0.1%.
    #[arg(long, value_name = "PERCENT", default_value = "0%")]
    loss: Loss,
    /// How much waits for each direction, in bytes or as 300KiB; `auto` is one bandwidth-delay product, at least 128 KiB.
    #[arg(long, value_name = "BYTES", default_value = "auto")]
    queue: QueueLimit,
    /// The largest IP packet.
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u32).range(576..=65535))]
    mtu: u32,
    /// The seed of the losses.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Make the namespaces if they are absent, and remove those made in the end.
    #[arg(long)]
    create_namespaces: bool,
    /// Serve commands on this unix socket.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Write the counters to this file in the end, as one JSON line.
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// End when standard input does.
    #[arg(long)]
    watch_stdin: bool,
}

#[derive(Debug, Args)]
struct Ctl {
    /// The emulator's control socket.
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
    /// The command and its words.
    #[arg(required = true, value_name = "CMD")]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Run(run) => self::run(&run),
        Verb::Ctl(ctl) => control(&ctl),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wanem: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(run: &Run) -> anyhow::Result<()> {
    if run.a == run.b {
        return Err(Error::SameNamespace { name: run.a.to_string() }.into());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot.into());
    }
    // First of all, so that a signal during the set-up does not leave a namespace behind.
    let termination = Termination::block()?;
    let missing = if run.create_namespaces { Missing::Create } else { Missing::Refuse };
    let mut namespaces = Namespaces::default();
    namespaces.ensure(&run.a, missing)?;
    namespaces.ensure(&run.b, missing)?;
    let a = Device::open(&run.end(&run.a, &run.a_ip))?;
    let b = Device::open(&run.end(&run.b, &run.b_ip))?;
    let control = run.control.as_deref().map(Server::bind).transpose()?;
    let settings = Settings { rate: run.rate, rtt: run.rtt, loss: run.loss, queue: run.queue };
    let ends_with = if run.watch_stdin { EndsWith::Stdin } else { EndsWith::Signal };
    let relay = Relay::new(a, b, Wan::new(settings, run.seed), control, termination, ends_with)?;
    if let Err(error) = relay::run_before_others() {
        eprintln!("wanem: goes on without real-time priority, less exact under load: {error}");
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "ready").and_then(|()| stdout.flush()).context("standard output")?;
    let report = relay.run()?;
    match &run.stats {
        Some(path) => write_report(path, &report),
        None => Ok(()),
    }
}

fn write_report(path: &Path, report: &Report) -> anyhow::Result<()> {
    let line = serde_json::to_string(report)? + "\n";
    std::fs::write(path, line).with_context(|| path.display().to_string())
}

fn control(ctl: &Ctl) -> anyhow::Result<()> {
    let command: Command = ctl.command.join(" ").parse()?;
    let answer = Client::connect(&ctl.control)?.send(command)?;
    writeln!(std::io::stdout(), "{answer}").context("standard output")
}

fn device_name(text: &str) -> Result<String, &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let fits = (1..=MAX_DEVICE_NAME_BYTES).contains(&text.len()) && text.chars().all(plain) && !text.starts_with(['-', '.']);
    if fits { Ok(text.into()) } else { Err("a device's name is at most 15 letters, digits, '.', '_' and '-'") }
}

impl Run {
    fn end(&self, namespace: &NamespaceName, addresses: &[Cidr]) -> End {
        End { namespace: namespace.clone(), addresses: addresses.to_vec(), device: self.device.clone(), mtu_bytes: self.mtu }
    }
}
