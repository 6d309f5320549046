//! Verbs that change the primary.

use super::values;
use blockd_api::{NbdAddress, SocketPath, Span, VolumeName};
use clap::{ArgGroup, Args};
use std::path::PathBuf;
use std::str::FromStr;

/// Makes this site the primary.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// Which volume
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// Accept the loss of what is not in the last recovery point; fence an active primary
    #[arg(long)]
    pub force: bool,
    /// Go back to this recovery point
    #[arg(long, value_name = "POINT")]
    pub at: Option<u64>,
    /// On trial: taken back after SPAN, once no client is attached, unless `tern commit` makes it final
    #[arg(long, value_name = "SPAN", requires = "force")]
    pub trial: Option<Span>,
}

/// Takes a promotion on trial back.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// Which volume
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// Go on although a client is active
    #[arg(long)]
    pub force: bool,
}

/// Gives up being the primary.
#[derive(Debug, Args)]
pub struct DemoteArgs {
    /// Which volume
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// Go on although a client is active
    #[arg(long)]
    pub force: bool,
}

/// Lets an old primary follow.
#[derive(Debug, Args)]
pub struct ResyncArgs {
    /// Which volume
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// Give up this site's own changes; they are kept aside
    #[arg(long)]
    pub discard_local: bool,
    /// Let go of what was kept aside, too
    #[arg(long, requires = "discard_local")]
    pub yes: bool,
}

/// Works on a copy.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("export").args(["nbd", "vhost_user", "end", "report"]).required(true).multiple(true))]
pub struct DrillArgs {
    /// Which volume
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// Serve the copy over NBD at unix:PATH or tcp:IP:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = values::nbd_address, conflicts_with = "vhost_user")]
    pub nbd: Option<NbdAddress>,
    /// Serve the copy over vhost-user-blk on this socket
    #[arg(long, value_name = "PATH", value_parser = values::socket_path)]
    pub vhost_user: Option<SocketPath>,
    /// Which recovery point, or `kept`: this site's own state from before it became a standby [default: the newest]
    #[arg(long, value_name = "POINT|kept")]
    pub at: Option<DrillAt>,
    /// End it and forget the copy
    #[arg(long, conflicts_with_all = ["nbd", "vhost_user", "at"])]
    pub end: bool,
    /// Tell of every drill: when, of which point, how long until the first read; as JSON into FILE, if one is named
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    pub report: Option<Option<PathBuf>>,
}

/// Of what a drill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrillAt {
    /// A recovery point.
    Point(u64),
    /// The old state that is kept.
    Kept,
}

impl FromStr for DrillAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kept" => Ok(Self::Kept),
            number => number.parse().map(Self::Point).map_err(|_| "neither a number of `tern points` nor \"kept\"".into()),
        }
    }
}
