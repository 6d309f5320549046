//! Verbs about standbys.

use super::values;
use blockd_api::{Bandwidth, Condition, Fence, Mode, OnDisconnect, SiteName, Span, VolumeName};
use clap::Args;
use std::path::PathBuf;

const ON_DISCONNECT_HELP: &str = "What becomes of requests that wait for a standby which is gone, slow or full: \
    they are acknowledged here alone as soon as the connection is gone (continue: all that async and snapshot do), \
    or after --ack-timeout and until it keeps up again (degrade: the default for barrier and sync), \
    or wait for as long as it takes (suspend)";

const SCHEDULE_HELP: &str = "When mode snapshot cuts: each time that a span such as 15m has passed, \
    or by cron syntax in UTC such as \"0 2 * * *\", or only when `tern snapshot` asks for it (none)";

const BANDWIDTH_HELP: &str = "Most to send to this standby: a rate such as 50Mbit, none for no limit, or a calendar in UTC \
    such as \"08:00-18:00=20Mbit,else=200Mbit\" or \"mon-fri 22:00-06:00=none,else=20Mbit\"; the first entry that fits counts";

const FENCE_HELP: &str = "When this primary stops acknowledging by itself: never (none), \
    or once neither its standby nor the witness has granted it a lease (lease); requests wait then, reads included";

/// Keeps a standby, or changes its settings: what is not given stays as it is.
#[derive(Debug, Args)]
pub struct ReplicateArgs {
    /// Which volume
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// Site of the standby
    #[arg(long, value_name = "SITE", required_unless_present = "stop")]
    pub to: Option<SiteName>,
    /// When writes and flushes are acknowledged [at first: async]
    #[arg(long, value_parser = values::mode())]
    pub mode: Option<Mode>,
    /// How much acknowledged data a disaster may cost [at first: 5s]
    #[arg(long, value_name = "DURATION")]
    pub rpo: Option<Span>,
    /// Most to send to this standby, such as 50Mbit, none for no limit, or a calendar [at first: none]
    #[arg(long, value_name = "RATE", long_help = BANDWIDTH_HELP)]
    pub bandwidth: Option<Bandwidth>,
    /// What becomes of requests that wait for a standby which is gone, slow or full
    #[arg(long, value_parser = values::on_disconnect(), long_help = ON_DISCONNECT_HELP)]
    pub on_disconnect: Option<OnDisconnect>,
    /// How long a request waits for the standby [at first: 5s]
    #[arg(long, value_name = "DURATION")]
    pub ack_timeout: Option<Span>,
    /// When mode snapshot cuts [at first: none]
    #[arg(long, value_name = "SCHEDULE", long_help = SCHEDULE_HELP)]
    pub schedule: Option<String>,
    /// When this primary stops acknowledging by itself [default: as it was, at first never]
    #[arg(long, value_parser = values::fence(), long_help = FENCE_HELP)]
    pub fence: Option<Fence>,
    /// How long a lease is [default: 10s]
    #[arg(long, value_name = "DURATION", requires = "fence")]
    pub lease: Option<Span>,
    /// Third site that grants leases, too: a `blockd --witness`
    #[arg(long, value_name = "SITE", requires = "fence")]
    pub witness: Option<SiteName>,
    /// Promote the standby without the operator after so much silence, if the witness agrees [default: never]
    #[arg(long, value_name = "DURATION", requires = "fence")]
    pub auto_promote: Option<Span>,
    /// Give up automatic promotion although the witness does not agree: the standby must not be promoted
    #[arg(long)]
    pub force: bool,
    /// End replication
    #[arg(long, conflicts_with_all = ["mode", "rpo", "bandwidth", "on_disconnect", "ack_timeout", "schedule", "fence"])]
    pub stop: bool,
}

/// Changes the mode.
#[derive(Debug, Args)]
pub struct ModeArgs {
    /// Which volume
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// The new mode
    #[arg(value_parser = values::mode())]
    pub mode: Mode,
    /// When mode snapshot cuts
    #[arg(long, value_name = "SCHEDULE", long_help = SCHEDULE_HELP)]
    pub schedule: Option<String>,
    /// Which standby, where there are several
    #[arg(long, value_name = "SITE")]
    pub to: Option<SiteName>,
}

/// Waits.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Which volume or group
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// in-sync, primary or committed=N
    #[arg(long = "for", value_name = "CONDITION")]
    pub condition: Condition,
    /// How long at most
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub timeout: Span,
}

/// Makes a recovery point.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Which volume
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// Freeze the guest's file systems while the cut is made: the socket of its QEMU guest agent
    #[arg(long, value_name = "SOCKET")]
    pub quiesce: Option<PathBuf>,
}
