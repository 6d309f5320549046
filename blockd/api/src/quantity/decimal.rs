//! A decimal number times a unit, in integers: what a `f64` would round.

/// Most digits that a number may have.
const MAX_DIGITS: usize = 24;

/// Splits the number at the beginning of a text from what follows it. The number is digits with at most one point between digits.
pub fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let well_formed = !whole.is_empty() && !fraction.is_empty() && !fraction.contains('.') && number.len() <= MAX_DIGITS;
    well_formed.then_some((number, rest))
}

/// `number` times `unit`; `None` unless that is a whole number that fits.
pub fn times(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u128 = whole.parse().ok()?;
    let fraction = fraction.trim_end_matches('0');
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scaled = whole.checked_mul(scale)?.checked_add(fraction)?.checked_mul(u128::from(unit))?;
    if !scaled.is_multiple_of(scale) {
        return None;
    }
    u64::try_from(scaled / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_exact_or_refused() {
        assert_eq!(times("1.5", 1024), Some(1536));
        assert_eq!(times("0.001", 1000), Some(1));
        assert_eq!(times("0.0001", 1000), None);
        assert_eq!(times("1.000000", 1), Some(1));
        assert_eq!(times("18446744073709551615", 1), Some(u64::MAX));
        assert_eq!(times("18446744073709551616", 1), None);
        assert_eq!(times("99999999999999999999999", 1 << 60), None);
    }

    #[test]
    fn only_plain_numbers_are_numbers() {
        for bad in ["", ".", "1.", ".5", "1.2.3", "-1", "+1", "G", "１"] {
            assert_eq!(split_number(bad), None, "{bad}");
        }
        assert_eq!(split_number("10GiB"), Some(("10", "GiB")));
    }
}
