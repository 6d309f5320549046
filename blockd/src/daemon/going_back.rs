//! A volume that is served while its image is led back to an older recovery point.
//!
//! The role and where to go back to are recorded before anything is overwritten; from then on whoever opens the volume goes on with it before
//! anybody is served. What is not there yet comes first if somebody asks for it.

use super::Daemon;
use super::handover::wrong_state;
use super::part::volume_id;
use super::volumes::{Volumes, io_error};
use crate::admin::Outcome;
use crate::catalogue::{RecordedRole, VolumeRecord};
use crate::store::Image;
use crate::volume::{Origin, Source, Trouble, Unfilled, Volume, Wanted};
use blockd_api::{ApiError, ErrorCode, GoingBack, Promotion, PromotionKind};
use replicator::catalogue::Catalogue;
use replicator::clock::unix_ms;
use replicator::disk::{BlockDevice, Pages};
use replicator::site_link::request::lineage_of;
use replicator::standby::{Lost, Rollback};
use replicator_engine::block::{BLOCK_BYTES, Run, runs};
use roaring::RoaringBitmap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// An older recovery point as what an image is filled from.
struct Older(Rollback);

impl Source for Older {
    fn fill(&mut self, image: &Image, run: Run) -> Result<(), Unfilled> {
        let mut content = Pages::new(run.len);
        self.0.read(run, &mut content).map_err(Unfilled::Lost)?;
        let is_zero = content.iter().all(|byte| *byte == 0);
        let filled = if is_zero { BlockDevice::zero(image, run) } else { BlockDevice::write(image, run, &content) };
        Ok(filled?)
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
    let Some(GoingBack { point, bytes_left, lost_blocks, .. }) = progress(volume) else { return Ok(()) };
    let name = &record.name;
    if lost_blocks > 0 {
        let message =
            format!("{name}: {lost_blocks} blocks of recovery point {point} cannot be had, and the image is not whole without them");
        return Err(wrong_state(message, &format!("`tern promote {name} --force` {WITHOUT}")));
    }
    let left = blockd_api::human_bytes(bytes_left);
    let message = format!("{name} is still being led back to recovery point {point}: {left} are left");
    Err(ApiError::new(ErrorCode::Busy, message).with_hint("`tern status` shows how far it is: try again when it is done"))
}

/// What becomes of them then.
const WITHOUT: &str = "goes on with zeroes in their place";

/// Refuses to keep the image as it is, as an old state, while more of its point can be had.
pub(super) fn check_settled(record: &VolumeRecord, volume: &Volume) -> Outcome<()> {
    match volume.origin.get().filter(|origin| origin.is_under_way()) {
        Some(origin) if origin.left_blocks() != origin.trouble().lost => check_whole(record, volume),
        _ => Ok(()),
    }
}

/// Gives up what is still to come: the image is to be another site's copy. What does not hold what it held at the point, and why. No request may be
/// under way, and nobody may look at the volume: the thread that fills has ended on return.
pub(super) fn leave_off(volume: &Volume) -> Lost {
    let left = volume.origin.get().filter(|origin| origin.is_under_way()).map(|origin| (origin.left_blocks(), origin.trouble().why_lost));
    volume.origin.clear();
    left.map_or_else(Lost::default, |(blocks, why)| Lost { all: false, blocks, why })
}

/// How far it is.
pub(super) fn progress(volume: &Volume) -> Option<GoingBack> {
    let origin = volume.origin.get().filter(|origin| origin.is_under_way())?;
    let ((left, total), lost) = (origin.left(), origin.trouble().lost);
    let block = BLOCK_BYTES as u64;
    Some(GoingBack {
        point: origin.point,
        bytes_left: left * block,
        bytes_total: total * block,
        lost_blocks: lost.len(),
        first_lost_block: lost.min().map(u64::from),
    })
}

/// What keeps it from its end.
pub(super) fn failure(record: &VolumeRecord, volume: &Volume) -> Option<String> {
    let origin = volume.origin.get()?;
    let (point, Trouble { failure, lost, why_lost }) = (origin.point, origin.trouble());
    let cure = match record.role {
        RecordedRole::Standby => "`tern rollback` takes the trial back".to_owned(),
        RecordedRole::Primary | RecordedRole::Standalone => format!("`tern promote {} --force` {WITHOUT}", record.name),
        RecordedRole::Stale | RecordedRole::SplitBrain => "`tern resync --discard-local` follows the other site without them".to_owned(),
    };
    let lost = lost.min().map(|first| {
        format!(
            "{} blocks of recovery point {point}, the first of them {first}, cannot be had, and give errors: {why_lost}; {cure}",
            lost.len()
        )
    });
    lost.or_else(|| failure.map(|why| format!("going back to recovery point {point} stands still, and is tried again: {why}")))
}

impl Daemon {
    /// A primary of which some blocks cannot be led back goes on without them, if the operator accepts that.
    pub(super) async fn go_on_without(&self, record: &VolumeRecord, force: bool, began: Instant) -> Outcome<Promotion> {
        let name = &record.name;
        let volume = self.volumes.lock().await.get(name)?.volume.clone();
        let origin = volume.origin.get().filter(|origin| !origin.trouble().lost.is_empty());
        let Some(origin) = origin else { return Err(wrong_state(format!("{name} is primary here"), "promote it at its standby")) };
        let (lost, block) = (origin.trouble().lost, BLOCK_BYTES as u64);
        if !force {
            let bytes = blockd_api::human_bytes(lost.len() * block);
            let message =
                format!("{} blocks ({bytes}) of recovery point {}, which {name} is led back to, cannot be had", lost.len(), origin.point);
            return Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint(format!("--force {WITHOUT}")));
        }
        let given_up = tokio::task::block_in_place(|| {
            // First: after a crash they are compared with what the standby has.
            volume.intake.log().heat(runs(&lost))?;
            let given_up = origin.give_up(lost)?;
            volume.intake.tracker().mark(&given_up, Some(unix_ms()));
            Ok(given_up)
        });
        let given_up = given_up.map_err(io_error)?;
        let where_they_are: Vec<String> = runs(&given_up).take(LISTED).map(|run| format!("{}+{}", run.start, run.len)).collect();
        tracing::error!(volume = %name, point = origin.point, blocks = given_up.len(), runs = where_they_are.join(" "), "zeroes stand for what could not be led back");
        let lineage = lineage_of(&record.lineage);
        Ok(Promotion {
            kind: PromotionKind::Failover,
            epoch: origin.point,
            generation: lineage.map_or(0, |lineage| lineage.current().counter),
            seconds: began.elapsed().as_secs_f64(),
            lost_bytes: Some(given_up.len() * block),
            damaged_blocks: given_up.len(),
        })
    }
}

/// Runs that are named in the log.
const LISTED: usize = 1000;

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
