//! Bars and curves out of block characters, for one line of text.

const EIGHTHS_ACROSS: [char; 9] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
const EIGHTHS_UP: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A bar of `width` characters, filled to `fraction` of it. Anything above nothing shows.
pub fn bar(fraction: f64, width: usize) -> String {
    let fraction = if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (fraction * (width * 8) as f64).round() as usize;
    let eighths = if fraction > 0.0 { eighths.max(1) } else { 0 };
    (0..width).map(|cell| EIGHTHS_ACROSS[eighths.saturating_sub(cell * 8).min(8)]).collect()
}

/// The newest `width` values as a curve, newest on the right, `full` being the top.
pub fn curve(values: &[f64], full: f64, width: usize) -> String {
    let shown = &values[values.len().saturating_sub(width)..];
    let cell = |value: &f64| {
        let fraction = if full > 0.0 && value.is_finite() { (value / full).clamp(0.0, 1.0) } else { 0.0 };
        let eighths = (fraction * 8.0).round() as usize;
        EIGHTHS_UP[if *value > 0.0 { eighths.max(1) } else { eighths }]
    };
    let mut text = " ".repeat(width - shown.len());
    text.extend(shown.iter().map(cell));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bar_fills_from_the_left() {
        assert_eq!([0.0, 1e-9, 0.5, 1.0, 7.0, f64::NAN].map(|fraction| bar(fraction, 4)), ["    ", "▏   ", "██  ", "████", "████", "    "]);
    }

    #[test]
    fn a_curve_ends_with_the_newest_value() {
        assert_eq!(curve(&[9.0, 0.0, 0.1, 4.0, 8.0], 8.0, 4), " ▁▄█");
        assert_eq!(curve(&[1.0], 0.0, 3), "  ▁");
    }

    proptest! {
        #[test]
        fn strips_have_exactly_their_width(fraction: f64, values in proptest::collection::vec(any::<f64>(), 0..50), full: f64, width in 0usize..40) {
            prop_assert_eq!(bar(fraction, width).chars().count(), width);
            prop_assert_eq!(curve(&values, full, width).chars().count(), width);
        }
    }
}
