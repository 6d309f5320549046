//! Rates by the time of day and the day of the week: `mon-fri 08:00-18:00=20Mbit,else=200Mbit`.
//!
//! Times are in UTC, where no hour comes twice or never, as in cron syntax elsewhere. The first entry that covers an instant counts; where
//! none does, what follows `else`; without that there is no limit. An entry that ends before it begins goes on over midnight, and its days
//! are those on which it begins.

use super::{InForce, limit_of};
use crate::Rate;
use std::fmt;

/// Most entries beside `else`.
pub const MAX_ENTRIES: usize = 64;

const MINUTE_MS: u64 = 60_000;
const DAY_MINUTES: u64 = 24 * 60;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// 1970 began on a Thursday.
const FIRST_WEEKDAY: u64 = 3;
const ELSE: &str = "else";

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    entries: Vec<Entry>,
    otherwise: Option<Rate>,
    /// As it was given.
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    /// The weekdays on which it begins, Monday first.
    days: [bool; 7],
    /// Minutes since midnight; the end may be 24:00, or on the next day.
    from: u64,
    until: u64,
    limit: Option<Rate>,
}

/// Why a text is no calendar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// An entry that is none.
    #[error(
        "{0:?} is no entry of a calendar: write \"08:00-18:00=20Mbit\", \"mon-fri 08:00-18:00=20Mbit\" or \"else=200Mbit\", times in UTC"
    )]
    Entry(String),
    /// One without a rate.
    #[error("{0:?} has no rate: write 50Mbit, 800kbit or 1Gbit, or none for no limit")]
    Rate(String),
    /// No time passes in it.
    #[error("{0:?} ends as it begins: write 00:00-24:00 for the whole day")]
    Empty(String),
    /// Something follows `else`.
    #[error("{0:?} follows \"else\": that comes last, and once")]
    AfterElse(String),
    /// Too long.
    #[error("more than {MAX_ENTRIES} entries: leave some out")]
    TooMany,
}

impl Calendar {
    /// What holds at this instant.
    pub fn at(&self, unix_ms: u64) -> InForce {
        let now = unix_ms / MINUTE_MS;
        let limit = self.limit_at(now);
        let changes = self.boundaries_after(now).filter(|minute| self.limit_at(*minute) != limit);
        InForce { limit, until_unix_ms: changes.min().map(|minute| minute.saturating_mul(MINUTE_MS)) }
    }

    /// The least that it ever allows.
    pub fn lowest(&self) -> Option<Rate> {
        self.entries.iter().map(|entry| entry.limit).chain([self.otherwise]).flatten().min()
    }

    /// The limit in this minute since 1970.
    fn limit_at(&self, minute: u64) -> Option<Rate> {
        self.entries.iter().find(|entry| entry.covers(minute)).map_or(self.otherwise, |entry| entry.limit)
    }

    /// Where something may begin or end in the week that follows.
    fn boundaries_after(&self, now: u64) -> impl Iterator<Item = u64> {
        let today = now - now % DAY_MINUTES;
        let midnights = (0..=8).map(move |days| today + days * DAY_MINUTES);
        let of_entries = self.entries.iter().flat_map(|entry| [entry.from, entry.until]);
        of_entries.flat_map(move |time| midnights.clone().map(move |midnight| midnight + time)).filter(move |minute| *minute > now)
    }
}

impl Entry {
    fn covers(&self, minute: u64) -> bool {
        let (day, time) = (minute / DAY_MINUTES + FIRST_WEEKDAY, minute % DAY_MINUTES);
        let begins_on = |day: u64| self.days[(day % 7) as usize];
        if self.from < self.until {
            return begins_on(day) && (self.from..self.until).contains(&time);
        }
        begins_on(day) && time >= self.from || begins_on(day + 6) && time < self.until
    }

    /// `mon-fri 08:00-18:00`, and what it is worth.
    fn parse(when: &str, limit: Option<Rate>) -> Option<Self> {
        let (days, times) = when.rsplit_once(char::is_whitespace).unwrap_or(("", when));
        let (from, until) = times.split_once('-')?;
        let (from, until) = (minutes(from)?, minutes(until)?);
        (from < DAY_MINUTES).then_some(Self { days: weekdays(days.trim())?, from, until, limit })
    }
}

/// `mon-fri`, `sun`, or every day.
fn weekdays(text: &str) -> Option<[bool; 7]> {
    if text.is_empty() {
        return Some([true; 7]);
    }
    let day = |text: &str| DAYS.iter().position(|day| day.eq_ignore_ascii_case(text.trim()));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (day(first)?, day(last)?);
    let span = (last + 7 - first) % 7;
    Some(std::array::from_fn(|day| (day + 7 - first) % 7 <= span))
}

/// `08:00`, up to `24:00`.
fn minutes(text: &str) -> Option<u64> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let number = |text: &str| text.parse().ok().filter(|_| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit()));
    let (hours, minutes): (u64, u64) = (number(hours)?, number(minutes)?);
    let time = hours * 60 + minutes;
    (minutes < 60 && time <= DAY_MINUTES).then_some(time)
}

impl std::str::FromStr for Calendar {
    type Err = CalendarError;

    fn from_str(text: &str) -> Result<Self, CalendarError> {
        let mut calendar = Self { entries: Vec::new(), otherwise: None, text: text.trim().to_owned() };
        let mut is_over = false;
        for part in text.split(',').map(str::trim) {
            let given = || part.to_owned();
            let (when, limit) = part.split_once('=').ok_or_else(|| CalendarError::Entry(given()))?;
            let limit = limit_of(limit.trim()).map_err(|_| CalendarError::Rate(given()))?;
            if is_over {
                return Err(CalendarError::AfterElse(given()));
            }
            if when.trim() == ELSE {
                (calendar.otherwise, is_over) = (limit, true);
                continue;
            }
            let entry = Entry::parse(when.trim(), limit).ok_or_else(|| CalendarError::Entry(given()))?;
            if entry.from == entry.until {
                return Err(CalendarError::Empty(given()));
            }
            calendar.entries.push(entry);
            if calendar.entries.len() > MAX_ENTRIES {
                return Err(CalendarError::TooMany);
            }
        }
        Ok(calendar)
    }
}

impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    const OFFICE: &str = "08:00-18:00=20Mbit,else=200Mbit";

    fn unix_ms(text: &str) -> u64 {
        OffsetDateTime::parse(text, &Rfc3339).unwrap().unix_timestamp() as u64 * 1000
    }

    /// Megabits a second at this instant, and for how many minutes more.
    fn seen(calendar: &str, at: &str) -> (Option<u64>, Option<u64>) {
        let (calendar, now) = (calendar.parse::<Calendar>().unwrap(), unix_ms(at));
        let InForce { limit, until_unix_ms } = calendar.at(now);
        (limit.map(|rate| rate.bits_per_second() / 1_000_000), until_unix_ms.map(|until| (until - now).div_ceil(MINUTE_MS)))
    }

    #[test]
    fn a_day_has_its_hours_in_utc() {
        assert_eq!(seen(OFFICE, "2026-11-22T07:59:59Z"), (Some(200), Some(1)));
        assert_eq!(seen(OFFICE, "2026-11-22T08:00:00Z"), (Some(20), Some(600)));
        assert_eq!(seen(OFFICE, "2026-11-22T17:59:00Z"), (Some(20), Some(1)));
        assert_eq!(seen(OFFICE, "2026-11-22T18:00:00Z"), (Some(200), Some(840)));
        assert_eq!(seen("08:00-18:00=20Mbit", "2026-11-22T19:00:00Z"), (None, Some(780)), "no limit without an else");
        assert_eq!(seen("else=7Mbit", "2026-11-22T19:00:00Z"), (Some(7), None));
        assert_eq!(seen("00:00-24:00=7Mbit,else=none", "2026-11-22T19:00:00Z"), (Some(7), None), "whole days follow each other");
    }

    #[test]
    fn a_night_goes_on_over_midnight_and_belongs_to_the_day_on_which_it_begins() {
        let nights = "22:00-06:00=none,else=5Mbit";
        assert_eq!(seen(nights, "2026-11-22T21:59:00Z"), (Some(5), Some(1)));
        assert_eq!(seen(nights, "2026-11-22T23:00:00Z"), (None, Some(420)));
        assert_eq!(seen(nights, "2026-11-23T05:59:00Z"), (None, Some(1)));
        // Friday's ends on Saturday, Sunday's has not begun on Monday morning.
        let work = "mon-fri 22:00-06:00=9Mbit,else=5Mbit";
        assert_eq!(seen(work, "2026-11-28T05:59:00Z"), (Some(9), Some(1)));
        assert_eq!(seen(work, "2026-11-23T05:59:00Z"), (Some(5), Some(16 * 60 + 1)));
    }

    #[test]
    fn weekdays_are_ranges_that_may_go_over_sunday() {
        // 22 November 2026 is a Sunday.
        let (sunday, monday, thursday) = ("2026-11-22T12:00:00Z", "2026-11-23T12:00:00Z", "2026-11-26T12:00:00Z");
        for (text, on) in [("mon-fri", [false, true, true]), ("sat-mon", [true, true, false]), ("SUN", [true, false, false])] {
            let calendar = format!("{text} 00:00-24:00=1Mbit,else=2Mbit");
            assert_eq!([sunday, monday, thursday].map(|at| seen(&calendar, at).0 == Some(1)), on, "{text}");
        }
        assert_eq!(seen("tue 00:00-24:00=1Mbit,else=2Mbit", "2026-11-25T00:00:00Z"), (Some(2), Some(6 * 24 * 60)), "six days off");
    }

    #[test]
    fn of_entries_that_overlap_the_first_counts() {
        let calendar = "12:00-13:00=1Mbit,08:00-18:00=2Mbit,else=3Mbit";
        assert_eq!(seen(calendar, "2026-11-22T11:00:00Z"), (Some(2), Some(60)));
        assert_eq!(seen(calendar, "2026-11-22T12:30:00Z"), (Some(1), Some(30)));
        assert_eq!(seen(calendar, "2026-11-22T13:00:00Z"), (Some(2), Some(300)));
        assert_eq!(seen("08:00-12:00=2Mbit,12:00-18:00=2Mbit", "2026-11-22T11:00:00Z"), (Some(2), Some(420)), "no change, no end");
    }

    #[test]
    fn what_is_no_calendar_is_refused_with_the_reason_and_the_cure() {
        let error = |text: &str| text.parse::<Calendar>().expect_err(text).to_string();
        for bad in
            ["", "8:00-18:00=1Mbit", "08:00=1Mbit", "08:00-24:01=1Mbit", "08:60-09:00=1Mbit", "24:00-01:00=1Mbit", "x 08:00-09:00=1Mbit"]
        {
            assert!(error(bad).contains("is no entry of a calendar: write"), "{bad}");
        }
        for bad in
            ["08:00-18:00,else=1Mbit", "+8:00-18:00=1Mbit", "mon-fri-sat 08:00-09:00=1Mbit", "Else=1Mbit", OFFICE.trim_start_matches("08")]
        {
            assert!(error(bad).contains("is no entry of a calendar: write"), "{bad}");
        }
        for bad in ["08:00-18:00=", "08:00-18:00=fast", "else=0Mbit", "08:00-18:00=1Mbit=2"] {
            assert!(error(bad).contains("has no rate: write 50Mbit"), "{bad}");
        }
        assert!(error("08:00-08:00=1Mbit").contains("write 00:00-24:00"));
        assert!(error("else=1Mbit,08:00-09:00=1Mbit").contains("comes last"));
        assert!(error("else=1Mbit,else=1Mbit").contains("comes last"));
        let entries = |count: usize| vec!["08:00-09:00=1Mbit"; count].join(",");
        assert!(entries(MAX_ENTRIES).parse::<Calendar>().is_ok());
        assert!(error(&entries(MAX_ENTRIES + 1)).contains("more than 64"));
    }

    proptest! {
        #[test]
        fn until_it_ends_a_limit_holds_and_then_there_is_another(
            entries in prop::collection::vec((0u64..1440, 1u64..=1440, 0usize..7, 0usize..7, 1u64..4), 1..6),
            at in 0u64..4_000_000_000_000,
        ) {
            let entry = |(from, until, first, last, rate): &(u64, u64, usize, usize, u64)| {
                let time = |minutes: u64| format!("{:02}:{:02}", minutes / 60, minutes % 60);
                let until = if from == until { 1440 - from % 2 } else { *until };
                format!("{}-{} {}-{}={rate}Mbit", DAYS[*first], DAYS[*last], time(*from), time(until))
            };
            let text = entries.iter().map(entry).collect::<Vec<_>>().join(",");
            let Ok(calendar) = text.parse::<Calendar>() else { return Ok(()) };
            let InForce { limit, until_unix_ms } = calendar.at(at);
            let end = until_unix_ms.unwrap_or(at + 8 * DAY_MINUTES * MINUTE_MS);
            prop_assert!(end > at);
            for minute in (at / MINUTE_MS..end / MINUTE_MS).step_by(7) {
                prop_assert_eq!(calendar.limit_at(minute), limit, "{}", text);
            }
            if let Some(until) = until_unix_ms {
                prop_assert_ne!(calendar.at(until).limit, limit);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[a-z0-9:=, -]{0,40}", at in any::<u64>()) {
            if let Ok(calendar) = text.parse::<Calendar>() {
                calendar.at(at);
            }
        }
    }
}
