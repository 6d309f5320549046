//! Reading undo again before the day on which it is needed.

use super::{LEVELS, Undo};
use crate::disk::SegmentFiles;
use crate::journal::Position;
use replicator_engine::tracker::Epoch;
use std::io;

/// Where a piece is: its level, and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PiecePlace {
    level: usize,
    at: Position,
}

impl<F: SegmentFiles> Undo<F> {
    /// The piece behind this one, or the first, and the point that it belongs to.
    pub fn piece_after(&self, after: Option<PiecePlace>) -> Option<(PiecePlace, Epoch)> {
        (after.map_or(0, |after| after.level)..LEVELS).find_map(|level| {
            let after = after.filter(|after| after.level == level).map(|after| after.at);
            self.levels[level].piece_after(after).map(|(at, epoch)| (PiecePlace { level, at }, epoch))
        })
    }

    /// Reads a piece, as it is on the disk, against its checksums; says how much was read.
    pub fn check_piece(&mut self, place: PiecePlace) -> io::Result<u64> {
        self.levels[place.level].check_piece(place.at, &mut self.decoder)
    }

    /// Drops the points up to this one: what leads back to them cannot be read.
    pub fn drop_until(&mut self, epoch: Epoch) -> io::Result<()> {
        while self.points().any(|kept| kept.point.epoch == epoch) && self.drop_oldest()? {}
        Ok(())
    }
}
