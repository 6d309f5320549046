//! Waiting for a volume, or a group, to get where one wants it.

use crate::{GroupStatus, Span, VolumeStatus};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Waits until a condition holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// What for.
    #[serde(rename = "for")]
    pub condition: Condition,
    /// How long at most; `None`: for ever.
    #[serde(default)]
    pub timeout: Option<Span>,
}

/// How that is which was waited for, once the condition holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Waited {
    /// A volume.
    Volume(Box<VolumeStatus>),
    /// A consistency group.
    Group(GroupStatus),
}

/// What can be waited for: `in-sync`, `primary` or `committed=N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Condition {
    /// The state is `in-sync`.
    InSync,
    /// This site is the primary.
    Primary,
    /// Every replica committed this epoch; every member of a group this recovery point, or a newer one.
    Committed(u64),
}

/// Why a text is not a condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be waited for: write in-sync, primary or committed=N")]
pub struct ConditionError(String);

impl FromStr for Condition {
    type Err = ConditionError;
    fn from_str(text: &str) -> Result<Self, ConditionError> {
        let wrong = || ConditionError(text.to_owned());
        match text {
            "in-sync" => Ok(Self::InSync),
            "primary" => Ok(Self::Primary),
            _ => {
                let number = text.strip_prefix("committed=").ok_or_else(wrong)?;
                number.parse().map(Self::Committed).map_err(|_| wrong())
            }
        }
    }
}

impl TryFrom<String> for Condition {
    type Error = ConditionError;
    fn try_from(text: String) -> Result<Self, ConditionError> {
        text.parse()
    }
}

impl From<Condition> for String {
    fn from(condition: Condition) -> Self {
        condition.to_string()
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InSync => f.write_str("in-sync"),
            Self::Primary => f.write_str("primary"),
            Self::Committed(epoch) => write!(f, "committed={epoch}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_read_back_what_they_print() {
        for condition in [Condition::InSync, Condition::Primary, Condition::Committed(0), Condition::Committed(u64::MAX)] {
            assert_eq!(condition.to_string().parse(), Ok(condition));
        }
        for bad in ["", "insync", "committed", "committed=", "committed=-1", "committed=1x", "committed=18446744073709551616"] {
            assert!(bad.parse::<Condition>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wait_is_written_with_for() {
        let wait: Wait = serde_json::from_str(r#"{"for":"committed=7","timeout":"60s"}"#).unwrap();
        assert_eq!(wait, Wait { condition: Condition::Committed(7), timeout: Some(Span::from_seconds(60)) });
    }
}
