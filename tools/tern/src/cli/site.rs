//! Verbs about this site and its peers.

use blockd_api::{SiteName, Span, VolumeName};
use clap::{Args, Subcommand};

/// Pairs sites.
#[derive(Debug, Subcommand)]
pub enum PeerVerb {
    /// Print a one-time token for another site's `tern peer join`
    Invite {
        /// Where the other site reaches this one, if not at the listen address
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// How long the token is good [default: 15m]
        #[arg(long, value_name = "DURATION")]
        ttl: Option<Span>,
    },
    /// Pair with the site that made the token: each pins the other's key
    Join {
        /// The token; `-` reads it from standard input, where no other user sees it
        token: String,
        /// Where the other site reaches this one, if not at the address it sees
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
    /// List the paired sites
    List,
    /// Forget a site
    Remove {
        /// Which one
        site: SiteName,
    },
}

/// Shows the state.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Which volume; all if left out
    #[arg(value_name = "NAME")]
    pub volume: Option<VolumeName>,
    /// Full-screen view that goes on until `q`
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// How often the view is renewed
    #[arg(long, value_name = "DURATION", default_value = "1s", requires = "watch")]
    pub interval: Span,
}

/// Estimates how long an evacuation would take.
#[derive(Debug, Args)]
pub struct ForecastArgs {
    /// Which volume or group; all if left out
    #[arg(value_name = "NAME")]
    pub volume: Option<VolumeName>,
    /// To which standby; to each if left out
    #[arg(long, value_name = "SITE", conflicts_with = "history")]
    pub to: Option<SiteName>,
    /// Show earlier handovers instead: what was forecast when each was ordered, and how long it took
    #[arg(long)]
    pub history: bool,
}
