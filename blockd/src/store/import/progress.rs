//! What `qemu-img -p` prints: `    (12.34/100%)`, each over the one before.

/// Longest text between two carriage returns that can be a percentage.
const MAX_TEXT_BYTES: usize = 64;

/// Finds percentages in a stream of bytes.
#[derive(Debug, Default)]
pub(super) struct Percentages {
    text: Vec<u8>,
}

impl Percentages {
    /// The fractions, from 0 to 1, that `bytes` complete.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<f64> {
        let mut found = Vec::new();
        for &byte in bytes {
            match byte {
                b'(' => self.text.clear(),
                b'/' => found.extend(self.fraction()),
                _ if self.text.len() < MAX_TEXT_BYTES => self.text.push(byte),
                _ => {}
            }
        }
        found
    }

    fn fraction(&self) -> Option<f64> {
        let percent: f64 = str::from_utf8(&self.text).ok()?.trim().parse().ok()?;
        (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_found_wherever_the_stream_is_cut() {
        let text = b"    (0.00/100%)\r    (12.50/100%)\r    (100.00/100%)\n";
        for at in 0..text.len() {
            let mut percentages = Percentages::default();
            let mut found = percentages.feed(&text[..at]);
            found.extend(percentages.feed(&text[at..]));
            assert_eq!(found, [0.0, 0.125, 1.0], "cut at {at}");
        }
    }

    #[test]
    fn other_text_is_no_percentage() {
        assert!(Percentages::default().feed(b"(nan/1%) (1e9/100%) (-1/100%) what/ever (").is_empty());
        assert!(Percentages::default().feed(&[b'x'; 1000]).is_empty());
    }
}
