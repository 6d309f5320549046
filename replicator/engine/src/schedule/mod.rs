//! When a volume in mode `snapshot` is cut: by the clock, which is passed in.
//!
//! Two clocks: one that never steps, in which spans are measured, and the one on the wall, which is set forwards and back. Cron syntax means
//! the one on the wall, in UTC, where no hour comes twice or never.
//!
//! - [`Schedule`]: what the operator asked for.
//! - [`Timetable`]: what comes of it: the next cut, and no other twice.
//! - [`Dues`]: whether the standby has what was due.

mod dues;
mod timetable;

pub use dues::Dues;
pub use timetable::{Clock, Timetable};

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// The shortest span between two cuts.
pub const MIN_PERIOD_MS: u64 = 1000;
/// The longest.
pub const MAX_PERIOD_MS: u64 = 366 * 86_400_000;
/// Some instant from which on a pattern must match some other: 2026 began.
const AN_INSTANT_MS: u64 = 1_767_225_600_000;

/// What the operator asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// A cut each time that so many milliseconds have passed.
    Every(u64),
    /// A cut each time that the clock on the wall, in UTC, matches.
    Cron(Box<Cron>),
}

/// Why something is no schedule.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Too short or too long.
    #[error("a cut every {0} ms: give at least 1s and at most 366d")]
    Period(u64),
    /// No cron syntax.
    #[error("neither a span such as 15m nor cron syntax such as \"0 2 * * *\": {0}")]
    Syntax(String),
    /// It matches no time.
    #[error("no time matches it")]
    Never,
}

impl Schedule {
    /// A cut every so many milliseconds.
    pub fn every(period_ms: u64) -> Result<Self, ScheduleError> {
        let fits = (MIN_PERIOD_MS..=MAX_PERIOD_MS).contains(&period_ms);
        if fits { Ok(Self::Every(period_ms)) } else { Err(ScheduleError::Period(period_ms)) }
    }

    /// Five fields of cron syntax: minute, hour, day of the month, month, day of the week.
    pub fn cron(pattern: &str) -> Result<Self, ScheduleError> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(pattern).map_err(|error| ScheduleError::Syntax(error.to_string()))?;
        let schedule = Self::Cron(Box::new(cron));
        schedule.after(AN_INSTANT_MS).map(|_| schedule).ok_or(ScheduleError::Never)
    }

    /// The first instant after this one, by the clock on the wall.
    pub fn after(&self, unix_ms: u64) -> Option<u64> {
        match self {
            Self::Every(period_ms) => unix_ms.checked_add(*period_ms),
            Self::Cron(cron) => {
                let from = DateTime::<Utc>::from_timestamp_millis(i64::try_from(unix_ms).ok()?)?;
                let next = cron.find_next_occurrence(&from, false).ok()?;
                u64::try_from(next.timestamp_millis()).ok()
            }
        }
    }
}

#[cfg(test)]
mod tests;
