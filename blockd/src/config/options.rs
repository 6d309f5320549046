//! Every key, once: its flag, its place in the file and its help. All are optional here; `None` leaves the word to the next source.

use blockd_api::{Rate, SiteName, Size, Span};
use clap::{Args, Parser, ValueEnum};
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf};

/// The Tern daemon: serves volumes to virtual machines and keeps their standbys one step behind.
#[derive(Debug, Parser)]
#[command(name = "blockd", version)]
pub struct CommandLine {
    /// Configuration file (TOML); every flag below is also a key of it, and flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub options: Options,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Who decides how fast to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// Follows what the path delivers and takes a little loss for granted.
    Tern,
    /// Backs off at loss: fair, slow on a link that loses without being full.
    Cubic,
    /// Follows the measured bandwidth: fast over loss, and sends more than it needs.
    Bbr,
}

/// Declares a group of optional keys and how two sources of them merge.
macro_rules! options {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* } $(sections { $($section:ident: $section_type:ident,)* })?) => {
        $(#[$meta])*
        #[derive(Debug, Default, Args, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: Option<$type>,)*
            $($(#[command(flatten)] pub $section: $section_type,)*)?
        }

        impl $name {
            /// These, and where they are silent, the others.
            pub fn or(self, other: Self) -> Self {
                Self {
                    $($field: self.$field.or(other.$field),)*
                    $($($section: self.$section.or(other.$section),)*)?
                }
            }
        }
    };
}

options! {
    /// The keys at the top of the file.
    Options {
        /// This site's name [default: the host's name]
        #[arg(long, value_name = "NAME")]
        site: SiteName,
        /// Where everything is kept [default: /var/lib/tern]
        #[arg(long, value_name = "DIR")]
        #[serde(alias = "state-dir")]
        state_dir: PathBuf,
        /// Where other sites connect, QUIC [default: 0.0.0.0:7447]
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
        /// Socket of the admin API [default: /run/tern/blockd.sock]
        #[arg(long, value_name = "PATH")]
        admin: PathBuf,
        /// Where to serve /metrics and /healthz, HTTP [default: nowhere]
        #[arg(long, value_name = "IP:PORT")]
        metrics: SocketAddr,
        /// How log lines look [default: text]
        #[arg(long, value_name = "FORMAT")]
        #[serde(alias = "log-format")]
        log_format: LogFormat,
        /// For how long a standby keeps recovery points; 0s for the newest alone [default: 24h]
        #[arg(long, value_name = "DURATION")]
        keep: Span,
        /// Most that a volume's older recovery points may take on a standby's disk: the oldest go first [default: 50GiB]
        #[arg(long, value_name = "SIZE")]
        #[serde(alias = "keep-bytes")]
        keep_bytes: Size,
        /// From which age on one recovery point a minute is kept, and from which on one an hour [default: 1h,6h]
        #[arg(long, value_name = "DURATION,DURATION")]
        #[serde(alias = "keep-thinning")]
        keep_thinning: String,
        /// Be a witness: grant leases to the primaries of other sites, agree to automatic promotions, hold no data [default: false]
        #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
        witness: bool,
        /// Program that is run when something happens that an operator should know of: no shell, no arguments [default: none]
        #[arg(long, value_name = "PROGRAM")]
        #[serde(alias = "on-event")]
        on_event: PathBuf,
        /// User to become once started by root: it owns the state directory [default: whoever starts it]
        #[arg(long, value_name = "NAME")]
        user: String,
    }
    sections {
        sockets: SocketOptions,
        journal: JournalOptions,
        proof: ProofOptions,
        spill: SpillOptions,
        delta: DeltaOptions,
        transport: TransportOptions,
        nbd: NbdOptions,
        vhost_user: VhostUserOptions,
        sandbox: SandboxOptions,
        danger_zone: DangerOptions,
    }
}

options! {
    /// `[sockets]`: who may open unix sockets. Users and groups are names or numbers, modes are octal.
    SocketOptions {
        /// Owner of the sockets of exports [default: the daemon's user]
        #[arg(long = "sockets-owner", value_name = "USER")]
        #[serde(deserialize_with = "name_or_number")]
        owner: String,
        /// Group of the sockets of exports [default: the daemon's group]
        #[arg(long = "sockets-group", value_name = "GROUP")]
        #[serde(deserialize_with = "name_or_number")]
        group: String,
        /// Mode of the sockets of exports [default: 0660]
        #[arg(long = "sockets-mode", value_name = "MODE")]
        mode: String,
        /// Owner of the admin socket [default: the daemon's user]
        #[arg(long = "sockets-admin-owner", value_name = "USER")]
        #[serde(deserialize_with = "name_or_number")]
        admin_owner: String,
        /// Group of the admin socket [default: the daemon's group]
        #[arg(long = "sockets-admin-group", value_name = "GROUP")]
        #[serde(deserialize_with = "name_or_number")]
        admin_group: String,
        /// Mode of the admin socket [default: 0660]
        #[arg(long = "sockets-admin-mode", value_name = "MODE")]
        admin_mode: String,
    }
}

options! {
    /// `[journal]`.
    JournalOptions {
        /// Most that the journals may take [default: 20GiB]
        #[arg(id = "journal-quota", long = "journal-quota", value_name = "SIZE")]
        quota: Size,
    }
}

options! {
    /// `[spill]`.
    SpillOptions {
        /// Most that old content of frozen blocks may take on disk [default: 10GiB]
        #[arg(id = "spill-quota", long = "spill-quota", value_name = "SIZE")]
        quota: Size,
        /// What each volume keeps in memory of it before it goes to a file [default: 64MiB]
        #[arg(id = "spill-memory", long = "spill-memory", value_name = "SIZE")]
        memory: Size,
    }
}

options! {
    /// `[delta]`: what was sent, or came, last of hot blocks; they then go as what differs.
    DeltaOptions {
        /// Most memory for it for each volume and standby; 0 for none [default: 64MiB]
        #[arg(id = "delta-memory", long = "delta-memory", value_name = "SIZE")]
        memory: Size,
        /// Most memory for it for all of them together [default: 256MiB]
        #[arg(long = "delta-total", value_name = "SIZE")]
        total: Size,
    }
}

options! {
    /// `[transport]`.
    TransportOptions {
        /// Congestion control [default: tern]
        #[arg(long = "transport-congestion", value_name = "NAME")]
        congestion: Congestion,
        /// Fastest link to plan buffers for; no limit to what is sent [default: 1Gbit]
        #[arg(long = "transport-bandwidth", value_name = "RATE")]
        bandwidth: Rate,
        /// Longest round trip to plan buffers for [default: 200ms]
        #[arg(long = "transport-round-trip", value_name = "DURATION")]
        round_trip: Span,
    }
}

options! {
    /// `[nbd]`.
    NbdOptions {
        /// Most NBD connections at once [default: 256]
        #[arg(long = "nbd-max-connections", value_name = "COUNT")]
        max_connections: usize,
        /// How long an NBD client may take to choose an export [default: 10s]
        #[arg(long = "nbd-handshake-timeout", value_name = "DURATION")]
        handshake_timeout: Span,
        /// Certificate of this server in PEM, followed by those up to its authority's; TCP clients may then use TLS [default: no TLS]
        #[arg(long = "nbd-tls-certificate", value_name = "PATH")]
        tls_certificate: PathBuf,
        /// Key of the certificate, in PEM
        #[arg(long = "nbd-tls-key", value_name = "PATH")]
        tls_key: PathBuf,
        /// Authorities, in PEM, of which every TLS client has to show a certificate [default: none is asked for]
        #[arg(long = "nbd-tls-client-ca", value_name = "PATH")]
        tls_client_ca: PathBuf,
        /// Whether TCP clients have to use TLS [default: true, if there is a certificate]
        #[arg(long = "nbd-tls-required", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
        tls_required: bool,
    }
}

options! {
    /// `[vhost_user]`.
    VhostUserOptions {
        /// Processors to bind the threads of queues to, in turns, as in "2,3" or "4-7" [default: wherever the system puts them]
        #[arg(long = "vhost-user-cpus", value_name = "LIST")]
        cpus: String,
        /// Microseconds at most that such a thread looks for work before it sleeps; for processors that nothing else needs [default: 0]
        #[arg(long = "vhost-user-poll-us", value_name = "MICROSECONDS")]
        poll_us: u64,
    }
}

options! {
    /// `[sandbox]`.
    SandboxOptions {
        /// Directories that backings, imports and sockets of exports lie in; nothing else can be touched. /dev for block devices
        /// [default: everything but the system's own directories]
        #[arg(id = "sandbox-paths", long = "sandbox-paths", value_name = "DIR,…", value_delimiter = ',')]
        paths: Vec<PathBuf>,
    }
}

options! {
    /// `[proof]`: checking that what is kept is what was written.
    ProofOptions {
        /// How long after the end of one look through a standby's image the next one begins; 0s for only when asked [default: 7d]
        #[arg(long = "proof-scrub", value_name = "DURATION")]
        scrub: Span,
        /// Most that is read for it in a second [default: 10MiB]
        #[arg(long = "proof-scrub-rate", value_name = "SIZE")]
        #[serde(alias = "scrub-rate")]
        scrub_rate: Size,
        /// When the volumes whose primary is here are compared with their standbys: a span, cron syntax in UTC, or none [default: 7d]
        #[arg(long = "proof-verify", value_name = "SCHEDULE")]
        verify: String,
        /// Most that is read for it here in a second [default: 50MiB]
        #[arg(long = "proof-verify-rate", value_name = "SIZE")]
        #[serde(alias = "verify-rate")]
        verify_rate: Size,
    }
}

options! {
    /// `[danger_zone]`: what is insecure.
    DangerOptions {
        /// INSECURE: allow plain NBD on TCP addresses that other hosts can reach
        #[arg(long = "danger-zone-plain-nbd-anywhere", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
        plain_nbd_anywhere: bool,
        /// INSECURE: keep every capability, system call and file in reach
        #[arg(long = "danger-zone-no-sandbox", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
        no_sandbox: bool,
    }
}

/// A user or a group: `"libvirt-qemu"` or `64055`.
fn name_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a name or a number")]
    enum Either {
        Name(String),
        Number(u32),
    }
    Either::deserialize(deserializer).map(|either| match either {
        Either::Name(name) => Some(name),
        Either::Number(number) => Some(number.to_string()),
    })
}

/// Reads the file's text; an error is a line number and one line that names the key.
pub fn from_toml(text: &str) -> Result<Options, (usize, String)> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = text.get(..at).unwrap_or_default();
        let number = before.matches('\n').count() + 1;
        let line = text.lines().nth(number - 1).unwrap_or_default();
        let message = error.message().replace('\n', ": ");
        match line.split_once('=').map(|(key, _)| key.trim()) {
            Some(key) if !message.contains(&format!("`{key}`")) => (number, format!("{key}: {message}")),
            _ => (number, message),
        }
    })
}
