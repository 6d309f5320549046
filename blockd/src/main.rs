//! `blockd`: serves volumes to virtual machines.

use blockd::config::{Config, ConfigError, LogFormat};
use blockd::events::runner;
use blockd::sandbox;
use blockd::supervisor::Inherited;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// A wrong configuration, a taken port, a locked state directory.
const EXIT_SETUP: u8 = 2;
/// For threads that still wait for something at the end.
const FAREWELL: Duration = Duration::from_secs(1);
/// Without RUST_LOG: what the crates below vhost-user say of each client, we say in our own words.
const DEFAULT_LOG: &str = "info";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if let (Some(first), Some(program)) = (arguments.next(), arguments.next())
        && first == runner::ARGUMENT
    {
        return runner::run(&program);
    }
    let config = match Config::from_args(std::env::args_os()) {
        Ok(config) => config,
        Err(ConfigError::CommandLine(error)) => error.exit(),
        Err(error) => return setup_failed(&error),
    };
    log_to_stderr(config.log_format);
    raise_descriptor_limit();
    // Before anything else opens files.
    let inherited = match Inherited::take() {
        Ok(inherited) => inherited,
        Err(error) => return setup_failed(&error),
    };
    let runner = match runner::start(&config) {
        Ok(runner) => runner,
        Err(error) => return setup_failed(&format_args!("on_event: {error}: its runner cannot be started")),
    };
    // Before the first thread: what is given up later would be given up by one thread only.
    let roots = match sandbox::enter(&config) {
        Ok(roots) => roots,
        Err(error) => return setup_failed(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return setup_failed(&error),
    };
    let ended = runtime.block_on(blockd::daemon::run(config, inherited, roots, runner));
    // What matters has ended in order. Who waits for a name server still is left alone: guests wait for the next daemon.
    runtime.shutdown_timeout(FAREWELL);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => setup_failed(&format!("{error:#}")),
    }
}

/// To what the system allows: the usual 1024 are meant for programs that know no better than select(2), and fewer than many clients take.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, ?limit, "the limit of open files cannot be raised");
    }
}

fn setup_failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("blockd: {error}");
    ExitCode::from(EXIT_SETUP)
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    // A line that cannot be written must not become a panic: standard error may be a file on a full disk.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
