//! Verbs about standbys.

use super::values;
use blockd_api::{Condition, Mode, Rate, SiteName, Span, VolumeName};
use clap::Args;

/// Keeps a standby.
#[derive(Debug, Args)]
pub struct ReplicateArgs {
    /// Which volume
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// Site of the standby
    #[arg(long, value_name = "SITE", required_unless_present = "stop")]
    pub to: Option<SiteName>,
    /// When writes and flushes are acknowledged
    #[arg(long, value_parser = values::mode(), default_value = "async")]
    pub mode: Mode,
    /// How much acknowledged data a disaster may cost, such as 5s
    #[arg(long, value_name = "DURATION")]
    pub rpo: Option<Span>,
    /// Most to send, such as 50Mbit [default: no limit]
    #[arg(long, value_name = "RATE")]
    pub bandwidth: Option<Rate>,
    /// End replication
    #[arg(long, conflicts_with_all = ["mode", "rpo", "bandwidth"])]
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
    /// Which standby, where there are several
    #[arg(long, value_name = "SITE")]
    pub to: Option<SiteName>,
}

/// Waits.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Which volume
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
}
