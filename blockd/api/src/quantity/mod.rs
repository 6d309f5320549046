//! Sizes, rates and durations as people write them, exact in both directions.
//!
//! Each prints in a form that it reads back unchanged. `human_*` are for tables: short, rounded, not to be read back.

mod decimal;
mod rate;
mod size;
mod span;

pub use rate::{Rate, human_rate};
pub use size::{Size, human_bytes};
pub use span::{Span, human_seconds};

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// No number at the beginning.
    #[error("{text:?} is no {what}: write {example}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// How to write it.
        example: &'static str,
        /// What was found.
        text: String,
    },
    /// The number is too large or has a fraction that its unit cannot hold.
    #[error("{text:?} is not a whole number of {base} that fits 64 bits")]
    Range {
        /// What is counted.
        base: &'static str,
        /// What was found.
        text: String,
    },
}

/// Reads a quantity from a string, or a plain number of base units.
macro_rules! quantity_serde {
    ($type:ident, $expected:literal, $from_number:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$type, E> {
                        let convert: fn(u64) -> Option<$type> = $from_number;
                        convert(number).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Unsigned(number), &self))
                    }
                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$type, E> {
                        match u64::try_from(number) {
                            Ok(number) => self.visit_u64(number),
                            Err(_) => Err(E::invalid_value(serde::de::Unexpected::Signed(number), &self)),
                        }
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}
use quantity_serde;
