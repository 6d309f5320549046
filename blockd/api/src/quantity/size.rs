//! Sizes in bytes: `4096`, `512MiB`, `10G`. Units are binary, as those of `qemu-img`.

use super::{
    QuantityError,
    decimal::{split_number, times},
    quantity_serde,
};
use std::{fmt, str::FromStr};

/// The unit letters, by their power of 1024.
const LETTERS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl Size {
    /// So many KiB.
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// So many MiB.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// So many GiB.
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let malformed = || QuantityError::Malformed { what: "size", example: "10G, 512MiB or a number of bytes", text: text.to_owned() };
        let (number, unit) = split_number(text.trim()).ok_or_else(malformed)?;
        let shift = shift_of(unit.trim_start()).ok_or_else(malformed)?;
        times(number, 1 << shift).map(Self).ok_or_else(|| QuantityError::Range { base: "bytes", text: text.to_owned() })
    }
}

/// The power of two that a unit stands for. `KB` and its like are refused: half the world reads them as 1000.
fn shift_of(unit: &str) -> Option<u32> {
    if matches!(unit, "" | "B") {
        return Some(0);
    }
    let mut chars = unit.chars();
    let letter = chars.next()?.to_ascii_uppercase();
    let power = (1..).zip(LETTERS).find(|(_, candidate)| *candidate == letter)?.0;
    matches!(chars.as_str(), "" | "i" | "iB").then_some(10 * power)
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = (self.0.trailing_zeros() / 10).min(6);
        match power {
            _ if self.0 == 0 => f.pad("0B"),
            0 => f.pad(&format!("{}B", self.0)),
            _ => f.pad(&format!("{}{}iB", self.0 >> (10 * power), LETTERS[power as usize - 1])),
        }
    }
}

quantity_serde!(Size, "a size such as \"10G\", \"512MiB\" or a number of bytes", |bytes| Some(Size(bytes)));

/// A size for a table: three digits and a binary unit.
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut power = 0;
    // 999.5 would print as 1000: four digits.
    while value >= 999.5 && power < LETTERS.len() {
        value /= 1024.0;
        power += 1;
    }
    match power {
        0 => format!("{bytes} B"),
        _ => format!("{} {}iB", three_digits(value), LETTERS[power - 1]),
    }
}

/// A number below 1000 with three significant digits.
pub(super) fn three_digits(value: f64) -> String {
    match value {
        _ if value >= 99.95 => format!("{value:.0}"),
        _ if value >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [
            ("10G", 10 << 30),
            ("512MiB", 512 << 20),
            ("1.5T", 3 << 39),
            ("4096", 4096),
            ("4096B", 4096),
            ("8k", 8192),
            ("1Ki", 1024),
            (" 2 GiB ", 2 << 30),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn ambiguous_and_impossible_sizes_are_refused() {
        for bad in ["10GB", "10Gb", "G", "-1", "1e9", "10 G B", "0x10", "16E", "1.0001K", "10Gi B", ""] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_for_tables_have_three_digits() {
        let shown: Vec<_> = [0, 999, 1000, 1024, 10 << 20, 1 << 40, u64::MAX].map(human_bytes).into();
        assert_eq!(shown, ["0 B", "999 B", "0.98 KiB", "1.00 KiB", "10.0 MiB", "1.00 TiB", "16.0 EiB"]);
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back(bytes: u64, shift in 0u32..64) {
            let size = Size(bytes >> shift << (shift / 2));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
            prop_assert_eq!(serde_json::from_str::<Size>(&serde_json::to_string(&size).unwrap()).unwrap(), size);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,12}") {
            let _ = text.parse::<Size>();
        }

        #[test]
        fn tables_never_get_wide(bytes: u64) {
            prop_assert!(human_bytes(bytes).len() <= 8);
        }
    }
}
