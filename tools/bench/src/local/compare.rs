//! One thing with and without another, in turns: each turn with it against the mean of its neighbours without.

use anyhow::Result;

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What it is compared to.
    Reference,
    /// What is looked at.
    Subject,
}

/// A turn of the subject, and the mean of the reference's before and after.
#[derive(Debug, Clone, Copy)]
pub struct Compared {
    /// The subject's.
    pub subject: f64,
    /// The reference's.
    pub reference: f64,
}

impl Compared {
    /// The subject's, by the reference's.
    pub fn ratio(&self) -> f64 {
        self.subject / self.reference
    }
}

/// Carries out all turns; `turn` says how much was done in one.
pub fn compare(rounds: u32, mut turn: impl FnMut(Side) -> Result<f64>) -> Result<Vec<Compared>> {
    let mut compared = Vec::new();
    let mut before = turn(Side::Reference)?;
    for _ in 0..rounds {
        let subject = turn(Side::Subject)?;
        let after = turn(Side::Reference)?;
        compared.push(Compared { subject, reference: (before + after) / 2.0 });
        before = after;
    }
    Ok(compared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_compared_to_both_neighbours() {
        let mut turns = [10.0, 6.0, 14.0, 9.0, 16.0].into_iter();
        let compared = compare(2, |_| Ok(turns.next().unwrap())).unwrap();
        assert_eq!(compared.iter().map(Compared::ratio).collect::<Vec<_>>(), [0.5, 0.6]);
    }
}
