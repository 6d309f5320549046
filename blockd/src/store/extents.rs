//! Which parts of an image may hold something other than zeroes.

use super::image::{Inner, Kind, shrunk};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::io;
use std::ops::Range;

/// An iterator over the allocated parts of a range, by `SEEK_DATA` and `SEEK_HOLE`. The first error ends it.
#[derive(Debug)]
pub struct Extents<'a> {
    image: &'a Inner,
    /// What has not been looked at yet.
    rest: Range<u64>,
}

impl<'a> Extents<'a> {
    pub(super) fn new(image: &'a Inner, range: Range<u64>) -> Self {
        Self { image, rest: range }
    }

    fn find(&mut self) -> io::Result<Option<Range<u64>>> {
        let Range { start, end } = self.rest.clone();
        if start >= end || self.image.kind != Kind::File {
            self.rest = end..end;
            return Ok((start < end).then_some(start..end));
        }
        let data = match rustix::fs::seek(&self.image.file, SeekFrom::Data(start)) {
            Ok(data) => data,
            // A file that somebody has cut off has no hole there: what was in it is lost, not zero.
            Err(Errno::NXIO) if self.image.is_cut_off()? => return Err(shrunk()),
            Err(Errno::NXIO) => end,
            // A file system that cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.rest = end..end;
                return Ok(Some(start..end));
            }
            Err(error) => return Err(error.into()),
        };
        if data >= end {
            self.rest = end..end;
            return Ok(None);
        }
        let hole = match rustix::fs::seek(&self.image.file, SeekFrom::Hole(data)) {
            // A hole that was punched at `data` meanwhile: it was data when we looked.
            Ok(hole) => hole.clamp(data + 1, end),
            Err(error) => return Err(error.into()),
        };
        self.rest = hole..end;
        Ok(Some(data..hole))
    }
}

impl Iterator for Extents<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.find().inspect_err(|_| self.rest = 0..0);
        found.transpose()
    }
}
