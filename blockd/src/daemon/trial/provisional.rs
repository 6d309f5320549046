//! A volume that runs on trial: its image may be changed once it is kept what it was.

use super::kept::Kept;
use crate::store::Image;
use crate::volume::{Origin, Source, Unfilled, Volume, Wanted};
use replicator::disk::{BlockDevice, Pages};
use replicator::standby::Rollback;
use replicator_engine::block::{Run, runs};
use replicator_engine::tracker::Epoch;
use roaring::RoaringBitmap;
use std::io;

/// What keeps the image, and leads it back where the trial is of an older point.
struct Provisional {
    kept: Kept,
    rollback: Option<Rollback>,
    /// Blocks that differ at the point and are not led back for good.
    planned: RoaringBitmap,
}

impl Source for Provisional {
    fn prepare(&mut self, image: &Image, blocks: &RoaringBitmap) -> io::Result<()> {
        self.kept.keep(image, blocks)
    }

    fn fill(&mut self, image: &Image, run: Run) -> Result<(), Unfilled> {
        self.kept.keep(image, &RoaringBitmap::from_sorted_iter(run.blocks()).unwrap_or_default())?;
        let Some(rollback) = &mut self.rollback else { return Ok(()) };
        let mut content = Pages::new(run.len);
        rollback.read(run, &mut content).map_err(Unfilled::Lost)?;
        let is_zero = content.iter().all(|byte| *byte == 0);
        let filled = if is_zero { BlockDevice::zero(image, run) } else { BlockDevice::write(image, run, &content) };
        Ok(filled?)
    }

    fn record(&mut self, image: &Image, filled: &RoaringBitmap) -> io::Result<()> {
        self.kept.keep(image, filled)?;
        let led_back = filled & &self.planned;
        let Some(rollback) = self.rollback.as_mut().filter(|_| !led_back.is_empty()) else { return Ok(()) };
        image.sync_data()?;
        rollback.record(&led_back)?;
        self.planned -= led_back;
        Ok(())
    }
}

/// Has the volume served on trial, from `point`.
pub(super) fn serve(volume: &Volume, point: Epoch, kept: Kept, rollback: Option<Rollback>) -> io::Result<()> {
    let plan = rollback.as_ref().map_or_else(Vec::new, Rollback::runs);
    let (mut planned, mut guarded) = (RoaringBitmap::new(), RoaringBitmap::new());
    plan.iter().for_each(|run| _ = planned.insert_range(run.blocks()));
    let all = Run::covering(0, volume.size_bytes());
    all.iter().for_each(|all| _ = guarded.insert_range(all.blocks()));
    // What was kept may be changed, but for what is still to be led back.
    guarded -= kept.blocks() - &planned;
    let guarded = runs(&guarded).collect();
    let source = Provisional { kept, rollback, planned };
    volume.origin.set(Origin::start(volume.image.clone(), point, source, Wanted::Guarded { plan, guarded })?);
    Ok(())
}
