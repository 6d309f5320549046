//! A volume that is served while its image is led back to an older recovery point.
//!
//! The role and where to go back to are recorded before anything is overwritten; from then on whoever opens the volume goes on with it before
//! anybody is served. What is not there yet comes first if somebody asks for it.

use super::part::volume_id;
use super::volumes::{Volumes, io_error};
use crate::admin::Outcome;
use crate::catalogue::{RecordedRole, VolumeRecord};
use crate::store::Image;
use crate::volume::{Origin, Source, Volume, Wanted};
use blockd_api::{ApiError, ErrorCode, GoingBack};
use replicator::catalogue::Catalogue;
use replicator::disk::{BlockDevice, Pages};
use replicator::site_link::request::lineage_of;
use replicator::standby::Rollback;
use replicator_engine::block::{BLOCK_BYTES, Run};
use roaring::RoaringBitmap;
use std::io;
use std::sync::Arc;

/// An older recovery point as what an image is filled from.
struct Older(Rollback);

impl Source for Older {
    fn fill(&mut self, image: &Image, run: Run) -> io::Result<()> {
        let mut content = Pages::new(run.len);
        self.0.read(run, &mut content)?;
        if content.iter().all(|byte| *byte == 0) { BlockDevice::zero(image, run) } else { BlockDevice::write(image, run, &content) }
    }

    fn record(&mut self, image: &Image, filled: &RoaringBitmap) -> io::Result<()> {
        image.sync_data()?;
        self.0.record(filled)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.finish()
    }
}

/// Serves the point from now on, while the image is led back to it. `size_bytes` is the volume's size: what lies beyond it goes at once.
pub(super) fn lead_back(volume: &Volume, size_bytes: u64, rollback: Rollback) -> io::Result<()> {
    volume.image.go_back_to(size_bytes)?;
    let (point, plan) = (rollback.point().epoch, rollback.runs());
    volume.origin.set(Origin::start(volume.image.clone(), point, Older(rollback), Wanted::Plan(plan))?);
    Ok(())
}

/// Refuses what needs the whole image in its place.
pub(super) fn check_whole(record: &VolumeRecord, volume: &Volume) -> Outcome<()> {
    let Some(GoingBack { point, bytes_left, .. }) = progress(volume) else { return Ok(()) };
    let left = blockd_api::human_bytes(bytes_left);
    let message = format!("{} is still being led back to recovery point {point}: {left} are left", record.name);
    Err(ApiError::new(ErrorCode::Busy, message).with_hint("`tern status` shows how far it is: try again when it is done"))
}

/// How far it is.
pub(super) fn progress(volume: &Volume) -> Option<GoingBack> {
    let origin = volume.origin.get().filter(|origin| origin.is_under_way())?;
    let (left, total) = origin.left();
    let block = BLOCK_BYTES as u64;
    Some(GoingBack { point: origin.point, bytes_left: left * block, bytes_total: total * block })
}

/// Why it does not go on.
pub(super) fn failure(volume: &Volume) -> Option<String> {
    let origin = volume.origin.get()?;
    origin
        .failure()
        .map(|why| format!("going back to recovery point {} stands still, and what is left of it cannot be had: {why}", origin.point))
}

impl Volumes {
    /// Size to open a volume's image with: larger than the volume while what lies beyond it may still have to go.
    pub(super) fn image_bytes(&self, record: &VolumeRecord) -> Outcome<u64> {
        let (id, lineage) = (volume_id(record)?, lineage_of(&record.lineage));
        let Some(lineage) = lineage.filter(|_| record.role != RecordedRole::Standby) else { return Ok(record.size_bytes) };
        let before = Rollback::image_bytes(id, &lineage, &*self.catalogue).map_err(io_error)?;
        Ok(before.unwrap_or(0).max(record.size_bytes))
    }

    /// Goes on with what a crash, or an error, has interrupted. Nobody is served meanwhile.
    pub(super) fn resume_going_back(&self, volume: &Volume, record: &VolumeRecord) -> Outcome<()> {
        let (id, lineage) = (volume_id(record)?, lineage_of(&record.lineage));
        let Some(lineage) = lineage.filter(|_| record.role != RecordedRole::Standby && volume.origin.get().is_none()) else {
            return Ok(());
        };
        let catalogue: Arc<dyn Catalogue> = self.catalogue.clone();
        let failed = |why: &dyn std::fmt::Display| {
            ApiError::new(ErrorCode::Io, format!("going back to an older recovery point was interrupted: {why}"))
        };
        match Rollback::resume(id, &lineage, &self.state_dir.undo(&record.id), &catalogue).map_err(|error| failed(&error))? {
            Some(rollback) => lead_back(volume, record.size_bytes, rollback).map_err(|error| failed(&error)),
            None => Ok(()),
        }
    }
}
