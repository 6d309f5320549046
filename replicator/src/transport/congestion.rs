//! How the sending rate is found.

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use std::sync::Arc;

/// The ways to choose from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// CUBIC: backs off at each loss.
    #[default]
    Cubic,
    /// BBR, as QUIC's implementation has it.
    Bbr,
}

impl Congestion {
    pub(crate) fn factory(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::Cubic => Arc::new(CubicConfig::default()),
            Self::Bbr => Arc::new(BbrConfig::default()),
        }
    }
}
