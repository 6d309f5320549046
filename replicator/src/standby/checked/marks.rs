//! What the catalogue remembers of an image's digests: whose they are, and for which blocks they mean nothing.

use replicator_engine::generation::Id;
use roaring::RoaringBitmap;
use std::io::{self, Read};

/// Of this layout.
const VERSION: u8 = 1;

/// See the module's documentation. docs/formats.md has the byte table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::standby) struct Marks {
    /// The copy whose digests they are: one that is made anew has another.
    pub replica: Id,
    /// Where the round that is under way goes on.
    pub cursor: u32,
    /// When the last round ended, in milliseconds since 1970; 0 if none has.
    pub ended_unix_ms: u64,
    /// Damaged blocks that were found, ever.
    pub found: u64,
    /// Those of them that were written anew since.
    pub repaired: u64,
    /// Blocks of which nobody has said what they should hold.
    pub unknown: RoaringBitmap,
    /// Blocks that do not hold what they should.
    pub damaged: RoaringBitmap,
}

impl Marks {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.replica.0);
        out.extend_from_slice(&self.cursor.to_le_bytes());
        [self.ended_unix_ms, self.found, self.repaired].iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        for set in [&self.unknown, &self.damaged] {
            set.serialize_into(&mut out).expect("writing to memory does not fail");
        }
        out
    }

    pub fn decode(mut bytes: &[u8]) -> io::Result<Self> {
        let from = &mut bytes;
        let (mut version, mut replica, mut cursor) = ([0], [0; 16], [0; 4]);
        from.read_exact(&mut version)?;
        from.read_exact(&mut replica)?;
        from.read_exact(&mut cursor)?;
        let mut number = || -> io::Result<u64> {
            let mut bytes = [0; 8];
            from.read_exact(&mut bytes)?;
            Ok(u64::from_le_bytes(bytes))
        };
        let (ended_unix_ms, found, repaired) = (number()?, number()?, number()?);
        let unknown = RoaringBitmap::deserialize_from(&mut *from)?;
        let damaged = RoaringBitmap::deserialize_from(&mut *from)?;
        if version != [VERSION] || !from.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self { replica: Id(replica), cursor: u32::from_le_bytes(cursor), ended_unix_ms, found, repaired, unknown, damaged })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented::{FORMATS, example};

    #[test]
    fn marks_have_the_documented_bytes_and_nothing_else_is_taken_for_them() {
        let marks = Marks {
            replica: Id([0x88; 16]),
            cursor: 64,
            ended_unix_ms: 1_800_000_000_000,
            found: 3,
            repaired: 2,
            unknown: (5..9).collect(),
            damaged: RoaringBitmap::from_iter([9]),
        };
        let bytes = marks.encode();
        assert_eq!(bytes, example(FORMATS, "digests"), "{bytes:02x?}");
        assert_eq!(Marks::decode(&bytes).unwrap(), marks);
        (0..bytes.len()).for_each(|len| assert!(Marks::decode(&bytes[..len]).is_err(), "cut at {len}"));
        assert!(Marks::decode(&[&[2], &bytes[1..]].concat()).is_err());
        assert!(Marks::decode(&[&bytes[..], &[0]].concat()).is_err());
    }
}
