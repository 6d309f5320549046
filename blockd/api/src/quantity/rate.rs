//! Rates in bits a second: `50Mbit`. Units are decimal, as those of every network.

use super::{
    QuantityError,
    decimal::{split_number, times},
    quantity_serde,
    size::three_digits,
};
use std::{fmt, str::FromStr};

/// Units by size, largest first.
const UNITS: [(&str, u64); 4] = [("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("kbit", 1000), ("bit", 1)];

/// A number of bits a second; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

impl Rate {
    /// A rate; `None` for zero.
    pub const fn from_bits_per_second(bits: u64) -> Option<Self> {
        if bits == 0 { None } else { Some(Self(bits)) }
    }

    /// Bits a second.
    pub const fn bits_per_second(self) -> u64 {
        self.0
    }

    /// Bytes a second, at least one.
    pub const fn bytes_per_second(self) -> u64 {
        if self.0 < 8 { 1 } else { self.0 / 8 }
    }
}

impl FromStr for Rate {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let malformed = || QuantityError::Malformed { what: "rate", example: "50Mbit, 800kbit or 1Gbit", text: text.to_owned() };
        let (number, unit) = split_number(text.trim()).ok_or_else(malformed)?;
        let unit = unit.trim_start();
        let unit = unit.strip_suffix("/s").unwrap_or(unit);
        let (_, bits) = UNITS.into_iter().find(|(word, _)| word.eq_ignore_ascii_case(unit)).ok_or_else(malformed)?;
        let out_of_range = || QuantityError::Range { base: "bits a second, at least one,", text: text.to_owned() };
        times(number, bits).and_then(Self::from_bits_per_second).ok_or_else(out_of_range)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, bits) = UNITS.into_iter().find(|(_, bits)| self.0.is_multiple_of(*bits)).unwrap_or(("bit", 1));
        f.pad(&format!("{}{word}", self.0 / bits))
    }
}

quantity_serde!(Rate, "a rate such as \"50Mbit\" or a number of bits a second", Rate::from_bits_per_second);

/// A rate for a table: three digits and a decimal unit.
pub fn human_rate(bits_per_second: f64) -> String {
    let bits_per_second = if bits_per_second.is_finite() { bits_per_second.max(0.0) } else { 0.0 };
    let units = [("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)];
    let Some((word, unit)) = units.into_iter().find(|(_, unit)| bits_per_second >= unit * 0.9995) else {
        return format!("{bits_per_second:.0} bit/s");
    };
    format!("{} {word}", three_digits(bits_per_second / unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_have_decimal_units() {
        for (text, bits) in [("50Mbit", 50_000_000), ("1Gbit", 1_000_000_000), ("1.5mbit/s", 1_500_000), ("800 kbit", 800_000), ("9bit", 9)]
        {
            assert_eq!(text.parse(), Ok(Rate(bits)), "{text}");
        }
        for bad in ["0Mbit", "50", "50M", "50MB/s", "50Mbps", "0.1bit", "-1Mbit", "99999999999Gbit"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_for_tables_are_short() {
        assert_eq!([0.0, 999.0, 85e6, 1e9, f64::NAN].map(human_rate), ["0 bit/s", "999 bit/s", "85.0 Mbit/s", "1.00 Gbit/s", "0 bit/s"]);
    }

    proptest! {
        #[test]
        fn a_printed_rate_reads_back(bits in 1u64.., zeroes in 0u32..10) {
            let rate = Rate((bits / 10u64.pow(zeroes)).max(1) * if bits < 1 << 20 { 10u64.pow(zeroes) } else { 1 });
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }
    }
}
