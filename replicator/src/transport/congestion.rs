//! How the sending rate is found.

mod filters;
mod round;
#[cfg(test)]
mod sim;
mod tern;
#[cfg(test)]
mod tests;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use std::sync::Arc;

/// The ways to choose from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// CUBIC: backs off at each loss.
    Cubic,
    /// Ours: follows what the path delivers, and takes a little loss for granted.
    #[default]
    Tern,
    /// BBR, as QUIC's implementation has it.
    Bbr,
}

impl Congestion {
    pub(crate) fn factory(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::Cubic => Arc::new(CubicConfig::default()),
            Self::Tern => Arc::new(tern::TernFactory),
            Self::Bbr => Arc::new(BbrConfig::default()),
        }
    }
}
