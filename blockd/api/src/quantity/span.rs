//! Durations: `5s`, `15m`, `1h30m`, `250ms`.

use super::{
    QuantityError,
    decimal::{split_number, times},
    quantity_serde,
};
use std::{fmt, str::FromStr, time::Duration};

/// Units in milliseconds, largest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A duration in whole milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    millis: u64,
}

impl Span {
    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self { millis }
    }

    /// So many seconds; saturates.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self { millis: seconds.saturating_mul(1000) }
    }

    /// As the standard library has it.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.millis)
    }

    /// In seconds.
    pub fn seconds(self) -> f64 {
        self.millis as f64 / 1000.0
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.duration()
    }
}

impl FromStr for Span {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let malformed = || QuantityError::Malformed { what: "duration", example: "5s, 15m or 250ms", text: text.to_owned() };
        let out_of_range = || QuantityError::Range { base: "milliseconds", text: text.to_owned() };
        let mut rest = text.trim();
        let mut millis = 0u64;
        // Each unit once, in falling order: "5s5s" is a typo.
        let mut units = UNITS.as_slice();
        while !rest.is_empty() || units.len() == UNITS.len() {
            let (number, tail) = split_number(rest).ok_or_else(malformed)?;
            let word_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (word, tail) = tail.split_at(word_len);
            let found = units.iter().position(|(unit, _)| *unit == word).ok_or_else(malformed)?;
            let part = times(number, units[found].1).ok_or_else(out_of_range)?;
            millis = millis.checked_add(part).ok_or_else(out_of_range)?;
            units = &units[found + 1..];
            rest = tail;
        }
        Ok(Self { millis })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millis == 0 {
            return f.pad("0s");
        }
        let mut rest = self.millis;
        let mut text = String::new();
        for (word, unit) in UNITS {
            if rest >= unit {
                text.push_str(&format!("{}{word}", rest / unit));
                rest %= unit;
            }
        }
        f.pad(&text)
    }
}

quantity_serde!(Span, "a duration such as \"5s\" or \"15m\"", |_| None);

/// Seconds for a table: `0.4 s`, `12 s`, `3m 20s`, `2h 05m`, `3d 04h`.
pub fn human_seconds(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.max(0.0) } else { 0.0 };
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole} s"),
        (0, 0, _) => format!("{minutes}m {:02}s", whole % 60),
        (0, _, _) => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_have_units() {
        for (text, millis) in
            [("5s", 5000), ("15m", 900_000), ("250ms", 250), ("1h30m", 5_400_000), ("0.5s", 500), ("1d", 86_400_000), ("0s", 0)]
        {
            assert_eq!(text.parse(), Ok(Span::from_millis(millis)), "{text}");
        }
        for bad in ["", "5", "s", "5 s", "5s5s", "1m1h", "-5s", "0.0001s", "5sec", "99999999999999999999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bare_number_in_a_document_is_refused_as_ambiguous() {
        assert!(serde_json::from_str::<Span>("5").is_err());
        assert_eq!(serde_json::from_str::<Span>(r#""5s""#).unwrap(), Span::from_seconds(5));
    }

    #[test]
    fn durations_for_tables_are_short() {
        let shown = [0.0, 0.44, 9.96, 59.6, 200.0, 7500.0, 273_600.0, f64::INFINITY].map(human_seconds);
        assert_eq!(shown, ["0.0 s", "0.4 s", "10 s", "1m 00s", "3m 20s", "2h 05m", "3d 04h", "0.0 s"]);
    }

    proptest! {
        #[test]
        fn a_printed_duration_reads_back(millis: u64, shift in 0u32..64) {
            let span = Span::from_millis(millis >> shift);
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn no_text_panics(text in "[0-9.a-zµ ]{0,14}") {
            let _ = text.parse::<Span>();
        }
    }
}
