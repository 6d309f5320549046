//! How long an evacuation would take, and how long it took.

use crate::{SiteName, UtcTime, VolumeName};
use serde::{Deserialize, Serialize};

/// How long it would take to hand volumes over now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForecastList {
    /// One for each volume and standby.
    pub volumes: Vec<Forecast>,
}

/// How long it would take to hand a volume over to a standby now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// The volume.
    pub name: VolumeName,
    /// The standby's site.
    pub to: SiteName,
    /// From the order until it is primary there, while clients write on as they did; `null` if nobody can tell, or if it does not end.
    pub seconds: Option<f64>,
    /// The same if no client writes from now on.
    pub seconds_if_idle: Option<f64>,
    /// What it would send; `null` if nobody can tell.
    pub bytes: Option<u64>,
    /// What that is worth.
    pub confidence: Confidence,
    /// What the standby lacks, before it is compressed.
    pub backlog_bytes: u64,
    /// Content that clients change in a second, as in the last minute.
    pub write_bytes_per_second: u64,
    /// What the link takes in a second, within the limit that is in force; `null` before anything filled it.
    pub link_bytes_per_second: Option<u64>,
    /// What a byte of content becomes on its way, as lately; `null` before anything was sent.
    pub wire_per_byte: Option<f64>,
    /// What a handover costs beside sending, by those before; `null` before the first.
    pub fixed_seconds: Option<f64>,
    /// What is to be known of it, in words.
    pub note: Option<String>,
}

/// What a forecast is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// All that it rests on was measured.
    High,
    /// Something of it was not.
    Low,
    /// Nobody can tell.
    None,
}

impl std::fmt::Display for Confidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::High => "high",
            Self::Low => "low",
            Self::None => "none",
        })
    }
}

/// Handovers that were, the oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HandoverList {
    /// At most a hundred of each volume.
    pub handovers: Vec<Handover>,
}

/// A handover that was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Handover {
    /// The volume.
    pub name: VolumeName,
    /// When it was ordered, by the clock of the site that stepped down.
    pub time: Option<UtcTime>,
    /// That site.
    pub from: SiteName,
    /// The site that took over; `null` if this site has not heard of that.
    pub to: Option<SiteName>,
    /// The volume's last epoch before.
    pub epoch: u64,
    /// The forecast at the order; `null` if nobody could tell.
    pub forecast_seconds: Option<f64>,
    /// From the order until the other site was primary; `null` if this site has not heard of that.
    pub actual_seconds: Option<f64>,
    /// By how much the forecast was too high, in percent of what it took; below 0: too low.
    pub error_percent: Option<f64>,
    /// What would be sent, by the forecast.
    pub forecast_bytes: Option<u64>,
}
