//! How often this site proves that what it keeps is what was written, and how fast.

use super::options::ProofOptions;
use super::{ConfigError, within, wrong};
use blockd_api::Size;
use replicator::standby::ScrubPace;
use std::time::Duration;

/// From one round to the next.
const DAY_MS: u64 = 24 * 3_600_000;
/// A year.
const LONGEST_MS: u64 = 366 * DAY_MS;
/// What a disk hardly notices.
const SCRUB_RATE: Size = Size::mib(10);
/// Slower ones would never end.
const LOWEST_RATE: Size = Size::mib(1);

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofConfig {
    /// Looking through standbys' images.
    pub scrub: ScrubPace,
}

impl ProofConfig {
    pub(super) fn resolve(options: &ProofOptions) -> Result<Self, ConfigError> {
        let every = within("proof.scrub", options.scrub, 7 * DAY_MS, 0..=LONGEST_MS)?;
        let bytes_per_second = rate("proof.scrub_rate", options.scrub_rate, SCRUB_RATE)?;
        Ok(Self { scrub: ScrubPace { every: (every > Duration::ZERO).then_some(every), bytes_per_second } })
    }
}

fn rate(key: &'static str, given: Option<Size>, default: Size) -> Result<u64, ConfigError> {
    match given.unwrap_or(default) {
        rate if rate < LOWEST_RATE => Err(wrong(key, format_args!("{rate} a second would never end: give {LOWEST_RATE} or more"))),
        rate => Ok(rate.bytes()),
    }
}
