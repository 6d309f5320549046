//! How often this site proves that what it keeps is what was written, and how fast.

use super::options::ProofOptions;
use super::{ConfigError, within, wrong};
use blockd_api::{Size, Span};
use replicator::standby::ScrubPace;
use replicator_engine::schedule::Schedule;
use std::time::Duration;

/// From one round to the next.
const DAY_MS: u64 = 24 * 3_600_000;
/// A year.
const LONGEST_MS: u64 = 366 * DAY_MS;
/// What a disk hardly notices.
const SCRUB_RATE: Size = Size::mib(10);
/// Both sites are compared so often.
const VERIFY: &str = "7d";
/// As a disk of its own time would read beside its guest.
const VERIFY_RATE: Size = Size::mib(50);
/// Slower ones would never end.
const LOWEST_RATE: Size = Size::mib(1);

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofConfig {
    /// Looking through standbys' images.
    pub scrub: ScrubPace,
    /// When both sites are compared: a span or cron syntax; `None`: only when asked.
    pub verify: Option<String>,
    /// What is read for that in a second, at most.
    pub verify_bytes_per_second: u64,
}

impl ProofConfig {
    pub(super) fn resolve(options: &ProofOptions) -> Result<Self, ConfigError> {
        let every = within("proof.scrub", options.scrub, 7 * DAY_MS, 0..=LONGEST_MS)?;
        let bytes_per_second = rate("proof.scrub_rate", options.scrub_rate, SCRUB_RATE)?;
        Ok(Self {
            scrub: ScrubPace { every: (every > Duration::ZERO).then_some(every), bytes_per_second },
            verify: schedule(options.verify.as_deref().unwrap_or(VERIFY))?,
            verify_bytes_per_second: rate("proof.verify_rate", options.verify_rate, VERIFY_RATE)?,
        })
    }
}

fn schedule(text: &str) -> Result<Option<String>, ConfigError> {
    if text == "none" {
        return Ok(None);
    }
    let schedule = text.parse::<Span>().map_or_else(|_| Schedule::cron(text), |span| Schedule::every(span.duration().as_millis() as u64));
    match schedule {
        Ok(_) => Ok(Some(text.to_owned())),
        Err(error) => {
            Err(wrong("proof.verify", format_args!("{text:?}: {error}: write it as in \"7d\", \"0 3 * * 0\" in UTC, or \"none\"")))
        }
    }
}

fn rate(key: &'static str, given: Option<Size>, default: Size) -> Result<u64, ConfigError> {
    match given.unwrap_or(default) {
        rate if rate < LOWEST_RATE => Err(wrong(key, format_args!("{rate} a second would never end: give {LOWEST_RATE} or more"))),
        rate => Ok(rate.bytes()),
    }
}
