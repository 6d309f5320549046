//! The first message on a link, sent by both sides on its first stream, and what follows from it: the protocol's version.
//!
//! A site speaks a range of versions; the highest that both speak is used, so that sites can be upgraded one after the other. Fields may
//! be added at the end in later releases: what follows the known ones is skipped.

use super::fields::{FieldError, FieldReader, put_text};
use std::fmt;

/// First bytes of a hello.
const MAGIC: [u8; 8] = *b"TERNLINK";

/// Longest hello that is read, in bytes.
pub(crate) const MAX_HELLO_BYTES: usize = 4096;

/// A protocol version.
pub type Version = u16;

/// The versions that a site speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// The oldest.
    pub oldest: Version,
    /// The newest.
    pub newest: Version,
}

impl VersionRange {
    /// What this release speaks.
    pub const CURRENT: Self = Self { oldest: 1, newest: 1 };

    /// The highest version in both ranges.
    pub fn highest_common(self, other: Self) -> Option<Version> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest { write!(f, "{}", self.oldest) } else { write!(f, "{} to {}", self.oldest, self.newest) }
    }
}

/// What a site says about itself when a link begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The versions it speaks.
    pub versions: VersionRange,
    /// A bit for each optional ability; unknown bits are ignored.
    pub features: u64,
    /// Drawn anew each time its daemon starts: tells a restarted peer from a second connection of the same one.
    pub instance: u64,
    /// Its software and version, for people.
    pub software: String,
    /// The name it has given itself, for people.
    pub site_name: String,
}

impl Hello {
    /// The message's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.versions.oldest.to_le_bytes());
        out.extend_from_slice(&self.versions.newest.to_le_bytes());
        out.extend_from_slice(&self.features.to_le_bytes());
        out.extend_from_slice(&self.instance.to_le_bytes());
        put_text(&mut out, &self.software);
        put_text(&mut out, &self.site_name);
        out
    }

    /// Reads a message.
    pub(crate) fn decode(message: &[u8]) -> Result<Self, FieldError> {
        let mut reader = FieldReader::new(message);
        if reader.array("magic")? != MAGIC {
            return Err(FieldError::Invalid("magic"));
        }
        let versions = VersionRange { oldest: reader.u16("versions")?, newest: reader.u16("versions")? };
        if versions.oldest > versions.newest {
            return Err(FieldError::Invalid("versions"));
        }
        Ok(Self {
            versions,
            features: reader.u64("features")?,
            instance: reader.u64("instance")?,
            software: reader.text("software")?,
            site_name: reader.text("site name")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented::{PROTOCOL, example};
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            versions: VersionRange { oldest: 2, newest: 5 },
            features: 7,
            instance: 9,
            software: "tern 1".into(),
            site_name: "osaka".into(),
        }
    }

    #[test]
    fn a_hello_has_the_documented_bytes() {
        let hello = Hello {
            versions: VersionRange::CURRENT,
            features: 0,
            instance: 0x0807_0605_0403_0201,
            software: "tern 0.1.0".into(),
            site_name: "osaka".into(),
        };
        assert_eq!(hello.encode(), example(PROTOCOL, "hello"));
    }

    #[test]
    fn the_highest_common_version_is_used() {
        let range = |oldest, newest| VersionRange { oldest, newest };
        assert_eq!(range(1, 3).highest_common(range(2, 5)), Some(3));
        assert_eq!(range(2, 5).highest_common(range(1, 3)), Some(3));
        assert_eq!(range(1, 1).highest_common(range(1, 9)), Some(1));
        assert_eq!(range(1, 2).highest_common(range(3, 4)), None);
    }

    #[test]
    fn later_fields_are_skipped() {
        let mut bytes = hello().encode();
        bytes.extend_from_slice(b"something new");
        assert_eq!(Hello::decode(&bytes), Ok(hello()));
        assert!(bytes.len() <= MAX_HELLO_BYTES);
    }

    #[test]
    fn a_hello_that_is_cut_short_is_refused() {
        let bytes = hello().encode();
        for len in 0..bytes.len() {
            assert!(matches!(Hello::decode(&bytes[..len]), Err(FieldError::CutShort(_))), "{len}");
        }
    }

    #[test]
    fn a_range_must_not_be_empty() {
        let hello = Hello { versions: VersionRange { oldest: 3, newest: 2 }, ..hello() };
        assert_eq!(Hello::decode(&hello.encode()), Err(FieldError::Invalid("versions")));
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), with_magic in any::<bool>()) {
            let message = if with_magic { [&MAGIC[..], &bytes].concat() } else { bytes };
            if let Ok(hello) = Hello::decode(&message) {
                prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
            }
        }
    }
}
