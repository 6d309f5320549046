//! What the fuzz targets share: disks and services to work on, and ways to make something of the fuzzer's input.

pub mod disk;
pub mod front_end;
pub mod judge;
pub mod messages;
pub mod nbd_client;
pub mod primary;
pub mod served;
pub mod sys;
#[path = "../../../blockd/tests/vhost_user/wire.rs"]
#[expect(missing_docs, reason = "the tests of blockd, where it is at home, need none")]
pub mod wire;

use arbitrary::{Arbitrary, Unstructured};

/// What the fuzzer's input says, with zeroes behind its end.
pub fn made_of<'a, T: Arbitrary<'a>>(data: &'a [u8]) -> Option<T> {
    T::arbitrary(&mut Unstructured::new(data)).ok()
}

/// Takes bytes off the fuzzer's input; zeroes once there are none left.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// The next bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.slice(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// The next number.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// The next number.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next number.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next number.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Up to `len` bytes.
    pub fn slice(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
