//! The daemon's configuration: defaults, then the file, then the flags.
//!
//! `options` names every key once, as flag and as TOML key; here they become checked values. Nothing is touched but the configuration
//! file: whether a port is free or a directory can be made is for its user to find out.
//!
//! Every [`ConfigError`] is one line that names the key and the cure.

mod options;
mod proof;
mod sys;
#[cfg(test)]
mod tests;

pub use options::{Congestion, LogFormat};
pub use proof::ProofConfig;

use crate::nbd::{TlsFiles, TlsPolicy};
use crate::sandbox::RunAs;
use crate::unix_socket::SocketAccess;
use blockd_api::{DEFAULT_ADMIN_PATH, MAX_SOCKET_PATH_BYTES, Rate, SiteName, Size, Span};
use clap::{CommandFactory, Parser};
use options::{CommandLine, NbdOptions, Options, SocketOptions};
use replicator::undo::Keep;
use std::{
    ffi::OsString,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// Where sites find each other unless told otherwise.
pub const DEFAULT_PORT: u16 = 7447;
/// Catalogue, keys, journals and images.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/tern";

/// Smallest quota: a few epochs.
const MIN_QUOTA: Size = Size::mib(16);
/// Longest that points are kept: a year.
const MOST_KEPT_MS: u64 = 366 * 24 * 3_600_000;
/// Largest configuration file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Everything that the daemon can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This site's name.
    pub site: SiteName,
    /// Where everything is kept.
    pub state_dir: PathBuf,
    /// Where other sites connect (QUIC).
    pub listen: SocketAddr,
    /// The admin API's socket.
    pub admin: PathBuf,
    /// Where Prometheus looks; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Who may open the sockets of exports.
    pub export_access: SocketAccess,
    /// Who may open the admin socket.
    pub admin_access: SocketAccess,
    /// Most that the journals may take.
    pub journal_quota: Size,
    /// Most that old content of frozen blocks may take.
    pub spill_quota: Size,
    /// What of it one volume keeps in memory before it goes to a file.
    pub spill_memory: Size,
    /// Memory for what went last of hot blocks: of each stream, and of all.
    pub delta_memory: [Size; 2],
    /// Whether this site is a witness, which holds no data.
    pub witness: bool,
    /// Which recovery points standbys keep.
    pub keep: Keep,
    /// Checking that what is kept is what was written.
    pub proof: ProofConfig,
    /// What is run when something happens.
    pub on_event: Option<PathBuf>,
    /// Links to other sites.
    pub transport: TransportConfig,
    /// NBD clients.
    pub nbd: NbdConfig,
    /// Clients of vhost-user-blk.
    pub vhost_user: VhostUserConfig,
    /// Whom the daemon becomes; `None`: it stays who started it.
    pub user: Option<RunAs>,
    /// Where backings, imports and sockets lie; `None`: anywhere but in the system's directories.
    pub sandbox_paths: Option<Vec<PathBuf>>,
    /// What is insecure.
    pub danger_zone: DangerZone,
}

/// Links to other sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportConfig {
    /// Who decides how fast to send.
    pub congestion: Congestion,
    /// Fastest link to plan windows for.
    pub bandwidth: Rate,
    /// Longest round trip to plan windows for.
    pub round_trip: Duration,
}

impl TransportConfig {
    /// What such a link holds: bandwidth times delay.
    pub fn bandwidth_delay_bytes(&self) -> u64 {
        let bytes = u128::from(self.bandwidth.bytes_per_second()) * self.round_trip.as_millis() / 1000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// NBD clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdConfig {
    /// Most connections at once, over all addresses.
    pub max_connections: usize,
    /// How long a client may take to choose an export.
    pub handshake_timeout: Duration,
    /// What TCP clients may, or have to, secure their connections with.
    pub tls: Option<(TlsFiles, TlsPolicy)>,
}

/// Clients of vhost-user-blk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VhostUserConfig {
    /// Processors that the threads of queues are bound to; none: wherever the system puts them.
    pub cpus: Vec<usize>,
    /// Longest that those threads look for work before they sleep.
    pub poll: Duration,
}

/// What is insecure and off unless asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DangerZone {
    /// Plain NBD on TCP addresses that other hosts can reach.
    pub plain_nbd_anywhere: bool,
    /// Nothing is given up at the start.
    pub no_sandbox: bool,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line: help, version, or a wrong flag. `exit()` of it does the right thing.
    #[error("{0}")]
    CommandLine(#[from] clap::Error),
    /// The file cannot be read.
    #[error("--config {path}: {source}: give the path of a readable TOML file", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}:{line}: {message}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Where; from 1.
        line: usize,
        /// What is wrong, naming the key.
        message: String,
    },
    /// A value does not make sense.
    #[error("{key}: {why}")]
    Value {
        /// The key as in the file.
        key: &'static str,
        /// What is wrong and what to write.
        why: String,
    },
}

fn wrong(key: &'static str, why: impl fmt::Display) -> ConfigError {
    ConfigError::Value { key, why: why.to_string() }
}

impl Config {
    /// From the program's arguments, its name first.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, ConfigError> {
        let line = CommandLine::try_parse_from(args)?;
        let file = line.config.as_deref().map(read).transpose()?.unwrap_or_default();
        Self::resolve(line.options.or(file))
    }

    /// Checks everything and fills in what was left open.
    fn resolve(options: Options) -> Result<Self, ConfigError> {
        let user = options.user.as_deref().map(run_as).transpose()?;
        let (export_access, admin_access) = access(&options.sockets, user.as_ref())?;
        let listen = options.listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)));
        Ok(Self {
            site: options.site.map_or_else(site_of_host, Ok)?,
            state_dir: absolute("state_dir", options.state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()))?,
            listen,
            admin: socket_path("admin", options.admin.unwrap_or_else(|| DEFAULT_ADMIN_PATH.into()))?,
            metrics: options.metrics,
            log_format: options.log_format.unwrap_or(LogFormat::Text),
            export_access,
            admin_access,
            journal_quota: quota("journal.quota", options.journal.quota, Size::gib(20))?,
            spill_quota: quota("spill.quota", options.spill.quota, Size::gib(10))?,
            spill_memory: options.spill.memory.unwrap_or(DEFAULT_SPILL_MEMORY),
            delta_memory: [options.delta.memory.unwrap_or(Size::mib(64)), options.delta.total.unwrap_or(Size::mib(256))],
            witness: options.witness.unwrap_or(false),
            keep: keep(options.keep, options.keep_bytes, options.keep_thinning.as_deref())?,
            on_event: options.on_event.map(program).transpose()?,
            proof: ProofConfig::resolve(&options.proof)?,
            transport: TransportConfig {
                congestion: options.transport.congestion.unwrap_or(Congestion::Tern),
                bandwidth: options.transport.bandwidth.map_or_else(default_bandwidth, Ok)?,
                round_trip: within("transport.round_trip", options.transport.round_trip, 200, 1..=10_000)?,
            },
            nbd: NbdConfig {
                max_connections: connections(options.nbd.max_connections)?,
                handshake_timeout: within("nbd.handshake_timeout", options.nbd.handshake_timeout, 10_000, 100..=600_000)?,
                tls: tls(options.nbd)?,
            },
            vhost_user: VhostUserConfig {
                cpus: cpus(options.vhost_user.cpus.as_deref().unwrap_or_default())?,
                poll: poll(options.vhost_user.poll_us.unwrap_or(0))?,
            },
            sandbox_paths: options
                .sandbox
                .paths
                .map(|paths| paths.into_iter().map(|path| absolute("sandbox.paths", path)).collect())
                .transpose()?,
            user,
            danger_zone: DangerZone {
                plain_nbd_anywhere: options.danger_zone.plain_nbd_anywhere.unwrap_or(false),
                no_sandbox: options.danger_zone.no_sandbox.unwrap_or(false),
            },
        })
    }
}

/// The command line, for its manual page and completions.
pub fn command() -> clap::Command {
    CommandLine::command()
}

fn read(path: &Path) -> Result<Options, ConfigError> {
    use io::Read;
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(unreadable(io::Error::other(format!("larger than {MAX_FILE_BYTES} bytes"))));
    }
    options::from_toml(&text).map_err(|(line, message)| ConfigError::File { path: path.to_owned(), line, message })
}

fn site_of_host() -> Result<SiteName, ConfigError> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let first_label = host.trim().split('.').next().unwrap_or_default();
    first_label.parse().map_err(|_| wrong("site", format_args!("the host's name {first_label:?} cannot be a site's: give --site NAME")))
}

fn default_bandwidth() -> Result<Rate, ConfigError> {
    Rate::from_bits_per_second(1_000_000_000).ok_or_else(|| wrong("transport.bandwidth", "give a rate such as 1Gbit"))
}

fn absolute(key: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    std::path::absolute(&path).map_err(|error| wrong(key, format_args!("{path:?} is no path ({error}): give an absolute one")))
}

/// Whether it can be run is seen when it is.
fn program(path: PathBuf) -> Result<PathBuf, ConfigError> {
    let path = absolute("on_event", path)?;
    if path.is_file() {
        Ok(path)
    } else {
        Err(wrong("on_event", format_args!("{path:?} is no file: give the path of a program, without arguments")))
    }
}

fn socket_path(key: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    let path = absolute(key, path)?;
    if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        return Err(wrong(
            key,
            format_args!("{path:?} is longer than a unix socket's path may be: give one of {MAX_SOCKET_PATH_BYTES} bytes or less"),
        ));
    }
    Ok(path)
}

/// What is kept in memory of blocks that were overwritten, for each volume.
const DEFAULT_SPILL_MEMORY: Size = Size::mib(64);

fn quota(key: &'static str, given: Option<Size>, default: Size) -> Result<Size, ConfigError> {
    match given.unwrap_or(default) {
        quota if quota < MIN_QUOTA => Err(wrong(key, format_args!("{quota} is too small to work: give {MIN_QUOTA} or more"))),
        quota => Ok(quota),
    }
}

fn keep(span: Option<Span>, most: Option<Size>, thinning: Option<&str>) -> Result<Keep, ConfigError> {
    let mut keep = Keep::default();
    if let Some(span) = span {
        keep.span_ms = within("keep", Some(span), 0, 0..=MOST_KEPT_MS)?.as_millis() as u64;
    }
    if let Some(most) = most {
        keep.max_bytes = quota("keep_bytes", Some(most), most)?.bytes();
    }
    if let Some(text) = thinning {
        let ages = text.split_once(',').and_then(|(minutes, hours)| Some([minutes.parse::<Span>().ok()?, hours.parse().ok()?]));
        let wrong = || wrong("keep_thinning", format_args!("{text:?} is not two rising durations: write it as in \"1h,6h\""));
        let [minutes, hours] = ages.filter(|[minutes, hours]| minutes <= hours).ok_or_else(wrong)?;
        keep.thin[0].after_ms = minutes.duration().as_millis() as u64;
        keep.thin[1].after_ms = hours.duration().as_millis() as u64;
    }
    Ok(keep)
}

fn within(
    key: &'static str,
    given: Option<Span>,
    default_ms: u64,
    allowed_ms: std::ops::RangeInclusive<u64>,
) -> Result<Duration, ConfigError> {
    let (low, high) = (Span::from_millis(*allowed_ms.start()), Span::from_millis(*allowed_ms.end()));
    match given.unwrap_or(Span::from_millis(default_ms)) {
        span if span < low || span > high => Err(wrong(key, format_args!("{span} is out of range: give {low} to {high}"))),
        span => Ok(span.duration()),
    }
}

fn connections(given: Option<usize>) -> Result<usize, ConfigError> {
    const MOST: usize = 65_536;
    match given.unwrap_or(256) {
        count if (1..=MOST).contains(&count) => Ok(count),
        count => Err(wrong("nbd.max_connections", format_args!("{count} is out of range: give 1 to {MOST}"))),
    }
}

/// The files are for their user to read.
fn tls(given: NbdOptions) -> Result<Option<(TlsFiles, TlsPolicy)>, ConfigError> {
    let Some(certificate) = given.tls_certificate else {
        let useless = [
            ("nbd.tls_key", given.tls_key.is_some()),
            ("nbd.tls_client_ca", given.tls_client_ca.is_some()),
            ("nbd.tls_required", given.tls_required == Some(true)),
        ];
        return match useless.into_iter().find(|(_, is_given)| *is_given) {
            Some((key, _)) => Err(wrong(key, "of no use without a certificate: set nbd.tls_certificate, too")),
            None => Ok(None),
        };
    };
    let key = given.tls_key.ok_or_else(|| wrong("nbd.tls_key", "missing: give the key of nbd.tls_certificate"))?;
    let files = TlsFiles {
        certificate: absolute("nbd.tls_certificate", certificate)?,
        key: absolute("nbd.tls_key", key)?,
        client_ca: given.tls_client_ca.map(|path| absolute("nbd.tls_client_ca", path)).transpose()?,
    };
    let policy = if given.tls_required.unwrap_or(true) { TlsPolicy::Required } else { TlsPolicy::Offered };
    Ok(Some((files, policy)))
}

/// A list of processors, as the kernel writes them: numbers and ranges.
fn cpus(list: &str) -> Result<Vec<usize>, ConfigError> {
    const MOST: usize = 1024;
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last && last < MOST).then_some(first..=last)
    };
    let ranges: Option<Vec<_>> = list.split(',').filter(|_| !list.is_empty()).map(range).collect();
    let wrong = || wrong("vhost_user.cpus", format_args!("{list:?} is no list of processors: write it as in \"2,3\" or \"4-7\""));
    Ok(ranges.ok_or_else(wrong)?.into_iter().flatten().collect())
}

fn poll(us: u64) -> Result<Duration, ConfigError> {
    const MOST_US: u64 = 1000;
    if us > MOST_US {
        return Err(wrong("vhost_user.poll_us", format_args!("{us} is more than {MOST_US}: a sleep costs less")));
    }
    Ok(Duration::from_micros(us))
}

/// Who may open the sockets of exports, and who the admin socket.
fn access(sockets: &SocketOptions, daemon: Option<&RunAs>) -> Result<(SocketAccess, SocketAccess), ConfigError> {
    let exports = SocketAccess {
        owner: sockets.owner.as_deref().map(|name| user("sockets.owner", name)).transpose()?,
        group: sockets.group.as_deref().map(|name| group("sockets.group", name)).transpose()?,
        mode: mode("sockets.mode", sockets.mode.as_deref(), 0o660)?,
    };
    let admin = SocketAccess {
        owner: sockets.admin_owner.as_deref().map(|name| user("sockets.admin_owner", name)).transpose()?,
        group: sockets.admin_group.as_deref().map(|name| group("sockets.admin_group", name)).transpose()?,
        mode: mode("sockets.admin_mode", sockets.admin_mode.as_deref(), 0o660)?,
    };
    for (key, access) in [("sockets.owner", exports), ("sockets.admin_owner", admin)] {
        if let (Some(daemon), Some(owner)) = (daemon, access.owner)
            && daemon.uid != owner
        {
            return Err(wrong(key, format_args!("blockd runs as {} and can give a socket to nobody else: use the group", daemon.name)));
        }
    }
    if admin.mode & 0o007 != 0 {
        return Err(wrong(
            "sockets.admin_mode",
            "everybody on this host could control the daemon: let the last digit be 0 and use sockets.admin_group",
        ));
    }
    Ok((exports, admin))
}

fn mode(key: &'static str, given: Option<&str>, default: u32) -> Result<u32, ConfigError> {
    let Some(text) = given else { return Ok(default) };
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let well_formed = (3..=4).contains(&digits.len()) && digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let bits = u32::from_str_radix(digits, 8).ok().filter(|bits| well_formed && *bits <= 0o777);
    bits.ok_or_else(|| wrong(key, format_args!("{text:?} is no mode: write it in octal, as in \"0660\"")))
}

fn run_as(name: &str) -> Result<RunAs, ConfigError> {
    let unknown = |why: &dyn fmt::Display| wrong("user", format_args!("{name:?}: {why}: make the user, or name another one"));
    let (uid, gid) = sys::user(name).map_err(|error| unknown(&error))?.ok_or_else(|| unknown(&"there is no such user"))?;
    let groups = sys::groups(name, gid).map_err(|error| unknown(&error))?;
    Ok(RunAs { name: name.to_owned(), uid, gid, groups })
}

fn user(key: &'static str, name: &str) -> Result<u32, ConfigError> {
    known(key, name, "user", |name| Ok(sys::user(name)?.map(|(uid, _)| uid)))
}

fn group(key: &'static str, name: &str) -> Result<u32, ConfigError> {
    known(key, name, "group", sys::group_id)
}

fn known(key: &'static str, name: &str, kind: &str, look_up: impl FnOnce(&str) -> io::Result<Option<u32>>) -> Result<u32, ConfigError> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    match look_up(name) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(wrong(key, format_args!("there is no {kind} {name:?}: make it, or give its number"))),
        Err(error) => Err(wrong(key, format_args!("cannot look up {kind} {name:?} ({error}): give its number"))),
    }
}
