//! Quantities as an operator writes them: rates, durations, losses and queue limits.
//!
//! Parsing is strict: a number without its unit, a negative one or one beyond the named limit is refused.

use std::{fmt, num::NonZeroU64, str::FromStr, time::Duration};

/// The fastest link that can be asked for.
pub const MAX_RATE_BITS_PER_SECOND: u64 = 100_000_000_000;
/// The longest round trip that can be asked for.
pub const MAX_RTT: Duration = Duration::from_secs(60);
/// The largest queue that can be asked for.
pub const MAX_QUEUE_BYTES: u64 = 128 << 20;
/// The smallest queue that `auto` chooses: a burst of 64 KiB from one sender, and some room beside it.
pub const MIN_AUTO_QUEUE_BYTES: u64 = 128 << 10;

const PPM: f64 = 1_000_000.0;
const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Text that is not the quantity it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct ParseError {
    text: String,
    wanted: &'static str,
}

/// How fast a link serialises IP bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// As fast as the emulator can carry them.
    Unlimited,
    /// Bits per second.
    BitsPerSecond(NonZeroU64),
}

impl Rate {
    /// How long `len_bytes` occupy the link.
    pub fn time_for(self, len_bytes: u64) -> Duration {
        match self {
            Self::Unlimited => Duration::ZERO,
            Self::BitsPerSecond(rate) => {
                let nanos = u128::from(len_bytes) * 8 * NANOS_PER_SECOND / u128::from(rate.get());
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        }
    }

    /// How many bytes the link carries in `time`, or `None` if there is no limit.
    pub fn bytes_in(self, time: Duration) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::BitsPerSecond(rate) => {
                let bytes = u128::from(rate.get()) * time.as_nanos() / NANOS_PER_SECOND / 8;
                Some(u64::try_from(bytes).unwrap_or(u64::MAX))
            }
        }
    }

    /// Bits per second, or `None` if there is no limit.
    pub fn bits_per_second(self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::BitsPerSecond(rate) => Some(rate.get()),
        }
    }
}

impl FromStr for Rate {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.eq_ignore_ascii_case("unlimited") {
            return Ok(Self::Unlimited);
        }
        let units = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)];
        scaled(text, &units)
            .filter(|rate| *rate <= MAX_RATE_BITS_PER_SECOND as f64)
            .and_then(|rate| NonZeroU64::new(rate as u64))
            .map(Self::BitsPerSecond)
            .ok_or_else(|| ParseError { text: text.into(), wanted: "a rate such as 85Mbit, 500kbit or unlimited (at most 100Gbit)" })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::BitsPerSecond(rate) => write!(f, "{rate}bit"),
        }
    }
}

/// The share of packets that the link loses, in parts per million.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    ppm: u32,
}

impl Loss {
    /// `ppm` packets of a million are lost; more than a million is all of them.
    pub fn from_ppm(ppm: u32) -> Self {
        Self { ppm: ppm.min(PPM as u32) }
    }

    /// Parts per million.
    pub fn ppm(self) -> u32 {
        self.ppm
    }

    /// The share, 0 to 1.
    pub fn ratio(self) -> f64 {
        f64::from(self.ppm) / PPM
    }
}

impl FromStr for Loss {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let percent = if text == "0" { Some(0.0) } else { scaled(text, &[("%", 1.0)]) };
        percent
            .filter(|percent| *percent <= 100.0)
            .map(|percent| Self::from_ppm((percent / 100.0 * PPM).round() as u32))
            .ok_or_else(|| ParseError { text: text.into(), wanted: "a loss such as 0.1% (0% to 100%)" })
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.ppm) / (PPM / 100.0))
    }
}

/// How many bytes may wait in front of the serialiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueLimit {
    /// One bandwidth-delay product, at least [`MIN_AUTO_QUEUE_BYTES`].
    Auto,
    /// This many bytes.
    Bytes(u64),
}

impl QueueLimit {
    /// The limit in bytes for a link of this rate and round trip.
    pub fn bytes(self, rate: Rate, rtt: Duration) -> u64 {
        match self {
            Self::Auto => rate.bytes_in(rtt).unwrap_or(0).clamp(MIN_AUTO_QUEUE_BYTES, MAX_QUEUE_BYTES),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl FromStr for QueueLimit {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        let units = [("kib", 1024.0), ("mib", 1024.0 * 1024.0), ("", 1.0)];
        scaled(text, &units)
            .filter(|bytes| (1.0..=MAX_QUEUE_BYTES as f64).contains(bytes))
            .map(|bytes| Self::Bytes(bytes as u64))
            .ok_or_else(|| ParseError { text: text.into(), wanted: "a queue such as 300KiB, 65536 or auto (at most 128MiB)" })
    }
}

impl fmt::Display for QueueLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

/// Parses a round trip such as `27ms`, `1.5s` or `300us`.
///
/// # Errors
/// A missing unit, or more than [`MAX_RTT`].
pub fn parse_rtt(text: &str) -> Result<Duration, ParseError> {
    let seconds = if text == "0" { Some(0.0) } else { scaled(text, &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0)]) };
    seconds
        .filter(|seconds| *seconds <= MAX_RTT.as_secs_f64())
        .map(Duration::from_secs_f64)
        .ok_or_else(|| ParseError { text: text.into(), wanted: "a round trip such as 27ms, 1.5s or 300us (at most 60s)" })
}

/// A plain decimal number times the factor of the first unit that `text` ends with.
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let lower = text.to_ascii_lowercase();
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?.trim_end(), factor)))?;
    // `f64` would also take "inf", "1e9" and "-1".
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    plain.then(|| number.parse::<f64>().ok())?.map(|value| value * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Option<u64> {
        text.parse::<Rate>().ok().and_then(Rate::bits_per_second)
    }

    #[test]
    fn rates_have_units_and_limits() {
        assert_eq!(rate("85Mbit"), Some(85_000_000));
        assert_eq!(rate("1.5mbit"), Some(1_500_000));
        assert_eq!(rate("100Gbit"), Some(MAX_RATE_BITS_PER_SECOND));
        assert_eq!("unlimited".parse(), Ok(Rate::Unlimited));
        for bad in ["", "85", "Mbit", "0bit", "0.5bit", "101Gbit", "-1Mbit", "1e3kbit", "infbit", "1..5Mbit", "nanMbit"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn losses_are_percentages() {
        assert_eq!("0.1%".parse(), Ok(Loss::from_ppm(1_000)));
        assert_eq!("100%".parse(), Ok(Loss::from_ppm(1_000_000)));
        assert_eq!("0".parse(), Ok(Loss::default()));
        for bad in ["0.1", "100.1%", "-1%", "%", ""] {
            assert!(bad.parse::<Loss>().is_err(), "{bad}");
        }
    }

    #[test]
    fn round_trips_have_units_and_limits() {
        assert_eq!(parse_rtt("27ms"), Ok(Duration::from_millis(27)));
        assert_eq!(parse_rtt("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_rtt("300us"), Ok(Duration::from_micros(300)));
        assert_eq!(parse_rtt("60s"), Ok(MAX_RTT));
        for bad in ["27", "61s", "ms", "-1ms", ""] {
            assert!(parse_rtt(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn automatic_queue_is_one_bandwidth_delay_product_with_a_floor() {
        let rtt = Duration::from_millis(27);
        let limit = |text: &str| QueueLimit::Auto.bytes(text.parse().unwrap(), rtt);
        assert_eq!(limit("85Mbit"), 286_875);
        assert_eq!(limit("1Mbit"), MIN_AUTO_QUEUE_BYTES);
        assert_eq!(limit("unlimited"), MIN_AUTO_QUEUE_BYTES);
        assert_eq!("300KiB".parse(), Ok(QueueLimit::Bytes(300 << 10)));
        for bad in ["0", "129MiB", "x", ""] {
            assert!(bad.parse::<QueueLimit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn displayed_quantities_parse_to_themselves() {
        for text in ["85Mbit", "unlimited", "1bit"] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.to_string().parse(), Ok(rate));
        }
        for text in ["0.1%", "0%", "0.0001%", "33.3333%"] {
            let loss: Loss = text.parse().unwrap();
            assert_eq!(loss.to_string().parse(), Ok(loss));
        }
    }
}
