//! Names of volumes and sites: safe in a path, a URL, an NBD export name, a metric's label and a shell.

use serde::{Deserialize, Serialize};
use std::{borrow::Borrow, fmt, ops::Deref, str::FromStr};

/// Longest name.
pub const MAX_NAME_BYTES: usize = 64;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to {MAX_NAME_BYTES} letters, digits, '.', '_' or '-', and begins with a letter or a digit")]
pub struct NameError;

fn check(text: &str) -> Result<(), NameError> {
    let begins_well = text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    let all_allowed = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if begins_well && all_allowed && text.len() <= MAX_NAME_BYTES { Ok(()) } else { Err(NameError) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check(&text).map(|()| Self(text))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl Deref for $type {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name! {
    /// A volume's name.
    VolumeName
}

name! {
    /// A site's name.
    SiteName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for bad in ["", ".", "..", "-rf", "a/b", "a b", "a\0", "é", "a%2f", &"x".repeat(MAX_NAME_BYTES + 1)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
        }
        for good in ["vm1", "0", "a.b_c-d", &"x".repeat(MAX_NAME_BYTES)] {
            assert_eq!(good.parse::<SiteName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_document_with_a_bad_name_does_not_decode() {
        assert!(serde_json::from_str::<VolumeName>(r#""../x""#).is_err());
        assert_eq!(serde_json::to_string(&"vm1".parse::<VolumeName>().unwrap()).unwrap(), r#""vm1""#);
    }
}
