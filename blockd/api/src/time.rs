//! Points in time as documents write them: RFC 3339, UTC, to the second.

use serde::{Deserialize, Serialize};
use std::{fmt, time::SystemTime};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// A point in time, UTC, without fractions of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UtcTime(OffsetDateTime);

impl UtcTime {
    /// The time now.
    pub fn now() -> Self {
        OffsetDateTime::now_utc().into()
    }

    /// Seconds since 1970.
    pub fn unix_seconds(self) -> i64 {
        self.0.unix_timestamp()
    }

    /// From seconds since 1970; `None` beyond the year 9999.
    pub fn from_unix_seconds(seconds: i64) -> Option<Self> {
        OffsetDateTime::from_unix_timestamp(seconds).ok().map(Self::from)
    }
}

impl From<OffsetDateTime> for UtcTime {
    fn from(time: OffsetDateTime) -> Self {
        Self(time.to_offset(UtcOffset::UTC).truncate_to_second())
    }
}

impl From<SystemTime> for UtcTime {
    fn from(time: SystemTime) -> Self {
        OffsetDateTime::from(time).into()
    }
}

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl From<UtcTime> for String {
    fn from(time: UtcTime) -> Self {
        time.to_string()
    }
}

impl TryFrom<String> for UtcTime {
    type Error = time::error::Parse;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        OffsetDateTime::parse(&text, &Rfc3339).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_in_utc() {
        let time = UtcTime::from_unix_seconds(1_795_215_510).unwrap();
        assert_eq!(serde_json::to_string(&time).unwrap(), r#""2026-11-20T22:58:30Z""#);
        let elsewhere: UtcTime = serde_json::from_str(r#""2026-11-21T07:58:30.25+09:00""#).unwrap();
        assert_eq!(elsewhere, time);
    }
}
