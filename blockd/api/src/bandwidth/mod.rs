//! Most that may be sent: one rate, none, or a calendar of rates.

mod calendar;

pub use calendar::{Calendar, CalendarError};

use crate::{QuantityError, Rate};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most that a replica may send: a rate, `none`, or a [`Calendar`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Bandwidth {
    /// As much as the link takes.
    #[default]
    Unlimited,
    /// This much.
    AtMost(Rate),
    /// As the time has it.
    By(Calendar),
}

/// What holds at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The limit, if there is one.
    pub limit: Option<Rate>,
    /// From when on there is another one, in milliseconds since 1970; `None`: never.
    pub until_unix_ms: Option<u64>,
}

/// Why a text says no bandwidth.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BandwidthError {
    /// Neither `none` nor a rate.
    #[error(transparent)]
    Rate(#[from] QuantityError),
    /// Not a calendar, either.
    #[error(transparent)]
    Calendar(#[from] CalendarError),
}

impl Bandwidth {
    /// What holds at this instant.
    pub fn at(&self, unix_ms: u64) -> InForce {
        match self {
            Self::Unlimited => InForce { limit: None, until_unix_ms: None },
            Self::AtMost(rate) => InForce { limit: Some(*rate), until_unix_ms: None },
            Self::By(calendar) => calendar.at(unix_ms),
        }
    }

    /// The least that it ever allows, for a site that knows no calendars; `None`: there never is a limit.
    pub fn lowest(&self) -> Option<Rate> {
        match self {
            Self::Unlimited => None,
            Self::AtMost(rate) => Some(*rate),
            Self::By(calendar) => calendar.lowest(),
        }
    }

    /// Whether it says anything at all.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::Unlimited
    }
}

/// `none` is no limit.
fn limit_of(text: &str) -> Result<Option<Rate>, QuantityError> {
    if text == "none" { Ok(None) } else { text.parse().map(Some) }
}

impl std::str::FromStr for Bandwidth {
    type Err = BandwidthError;

    fn from_str(text: &str) -> Result<Self, BandwidthError> {
        if text.contains('=') {
            return Ok(Self::By(text.parse()?));
        }
        Ok(limit_of(text)?.map_or(Self::Unlimited, Self::AtMost))
    }
}

impl TryFrom<String> for Bandwidth {
    type Error = BandwidthError;

    fn try_from(text: String) -> Result<Self, BandwidthError> {
        text.parse()
    }
}

impl From<Bandwidth> for String {
    fn from(bandwidth: Bandwidth) -> Self {
        bandwidth.to_string()
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("none"),
            Self::AtMost(rate) => rate.fmt(f),
            Self::By(calendar) => calendar.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_none_and_a_calendar_read_back_as_they_are_printed() {
        for text in ["none", "50Mbit", "08:00-18:00=20Mbit,else=200Mbit"] {
            let bandwidth: Bandwidth = text.parse().unwrap();
            assert_eq!(bandwidth.to_string(), text);
            assert_eq!(serde_json::from_str::<Bandwidth>(&format!("\"{text}\"")).unwrap(), bandwidth);
        }
        assert_eq!("none".parse(), Ok(Bandwidth::Unlimited));
        assert!("fast".parse::<Bandwidth>().unwrap_err().to_string().contains("write 50Mbit"));
    }

    #[test]
    fn a_site_without_calendars_is_told_the_least() {
        let lowest = |text: &str| text.parse::<Bandwidth>().unwrap().lowest().map(Rate::bits_per_second);
        assert_eq!(lowest("none"), None);
        assert_eq!(lowest("5Mbit"), Some(5_000_000));
        assert_eq!(lowest("08:00-18:00=20Mbit,else=none"), Some(20_000_000));
        assert_eq!(lowest("08:00-18:00=none,else=none"), None);
    }
}
