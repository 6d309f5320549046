//! `tern promote`, `commit`, `rollback`, `points`, `demote`, `resync`, `verify`

use super::{Context, proof};
use crate::{
    cli::{DemoteArgs, PromoteArgs, ResyncArgs, RollbackArgs},
    client::decode,
    report::Report,
    table::{Align, Table},
};
use blockd_api::{
    ApiError, Demote, Done, ExitCode, PointList, Promote, Promotion, PromotionKind, Resync, Resynced, TakeBack, Verification, VolumeName,
    VolumeStatus, human_bytes, human_seconds,
    routes::{self, VolumeOp},
};

/// `tern promote NAME`.
pub async fn promote(context: &Context<'_>, arguments: PromoteArgs) -> Result<Report, ApiError> {
    let PromoteArgs { volume, force, at, trial } = arguments;
    let path = VolumeOp::Promote.path(&volume);
    let document = context.client.follow(&path, &Promote { force, at, trial }, |progress| context.progress.tell(&progress)).await?;
    Report::of(document, context.format, |done: Promotion| match trial {
        Some(span) => format!(
            "{volume}: on trial here from recovery point {}, in {}; `tern commit {volume}` makes it final, `tern rollback {volume}` takes it back; \
             so do {span} without a client",
            done.epoch,
            human_seconds(done.seconds)
        ),
        None => promoted(&volume, &done),
    })
}

fn promoted(volume: &VolumeName, done: &Promotion) -> String {
    let kind = match done.kind {
        PromotionKind::Handover => "handover",
        PromotionKind::Failover => "failover",
    };
    let lost = match done.lost_bytes {
        Some(0) => "nothing lost".to_owned(),
        Some(bytes) => format!("{} lost", human_bytes(bytes)),
        None => "what was lost cannot be known".to_owned(),
    };
    let (epoch, generation, seconds) = (done.epoch, done.generation, human_seconds(done.seconds));
    let damaged = match done.damaged_blocks {
        0 => String::new(),
        blocks => format!("; {blocks} blocks are wrong, which this site's disk has lost: see the log"),
    };
    format!("{volume}: primary here after a {kind} at epoch {epoch}, generation {generation}, in {seconds}; {lost}{damaged}")
}

/// `tern commit NAME`.
pub async fn commit(context: &Context<'_>, volume: VolumeName) -> Result<Report, ApiError> {
    let document = context.client.post(&VolumeOp::Commit.path(&volume), &Done {}).await?;
    Report::of(document, context.format, |done: Promotion| {
        format!("{volume}: primary here for good, from epoch {} on, generation {}", done.epoch, done.generation)
    })
}

/// `tern rollback NAME`.
pub async fn rollback(context: &Context<'_>, arguments: RollbackArgs) -> Result<Report, ApiError> {
    let RollbackArgs { volume, force } = arguments;
    let path = VolumeOp::Rollback.path(&volume);
    let document = context.client.follow(&path, &TakeBack { force }, |progress| context.progress.tell(&progress)).await?;
    Report::of(document, context.format, |now: VolumeStatus| {
        format!("{}: the trial is taken back; {}, with recovery point {}", now.name, now.role, now.epoch_committed)
    })
}

/// `tern points NAME`.
pub async fn points(context: &Context<'_>, volume: VolumeName) -> Result<Report, ApiError> {
    let document = context.client.get(&routes::points(&volume)).await?;
    Report::of(document, context.format, |list: PointList| {
        if list.points.is_empty() {
            return format!("{volume} has no recovery point yet: its first sync has not ended");
        }
        let columns = [
            ("POINT", Align::Right),
            ("TIME", Align::Left),
            ("CHANGED SINCE", Align::Right),
            ("SIZE", Align::Right),
            ("DAMAGED", Align::Right),
        ];
        let is_damaged = list.points.iter().any(|point| point.damaged_blocks > 0);
        let columns = if is_damaged { &columns[..] } else { &columns[..4] };
        let mut table = Table::new(columns);
        for point in list.points {
            let time = point.time.map_or_else(|| "-".to_owned(), |time| time.to_string());
            let name = if point.pinned { "kept".to_owned() } else { point.epoch.to_string() };
            let damaged = format!("{} blocks", point.damaged_blocks);
            let cells = [name, time, human_bytes(point.bytes), human_bytes(point.size_bytes), damaged];
            table.row(cells);
        }
        table.render()
    })
}

/// `tern demote NAME`.
pub async fn demote(context: &Context<'_>, arguments: DemoteArgs) -> Result<Report, ApiError> {
    let DemoteArgs { volume, force } = arguments;
    let path = VolumeOp::Demote.path(&volume);
    let document = context.client.follow(&path, &Demote { force }, |progress| context.progress.tell(&progress)).await?;
    Report::of(document, context.format, |now: VolumeStatus| format!("{}: {}, {}", now.name, now.role, now.state))
}

/// `tern resync NAME --discard-local`.
pub async fn resync(context: &Context<'_>, arguments: ResyncArgs) -> Result<Report, ApiError> {
    let ResyncArgs { volume, discard_local, yes } = arguments;
    let path = VolumeOp::Resync.path(&volume);
    let request = Resync { discard_local, yes };
    let document = context.client.follow(&path, &request, |progress| context.progress.tell(&progress)).await?;
    Report::of(document, context.format, |gone: Resynced| {
        let kept = if gone.kept {
            format!("; as it was, it is kept until `tern resync {volume} --discard-local --yes`: `tern drill {volume} --at kept` shows it")
        } else {
            "; what was kept aside is gone".to_owned()
        };
        format!("{volume}: follows the new primary, gave up {} blocks ({}){kept}", gone.blocks, human_bytes(gone.bytes))
    })
}

/// `tern verify NAME`: a difference is a failure, told with the result.
pub async fn verify(context: &Context<'_>, volume: VolumeName) -> Result<Report, ApiError> {
    let path = VolumeOp::Verify.path(&volume);
    let document = context.client.follow(&path, &Done {}, |progress| context.progress.tell(&progress)).await?;
    let found: Verification = decode(document.clone())?;
    let report = Report::of(document, context.format, |found: Verification| {
        let Verification { blocks_compared, blocks_different, blocks_unsettled, at_epoch } = found;
        let unsettled = proof::unsettled(blocks_unsettled);
        format!("{volume}: {blocks_compared} blocks compared, {blocks_different} differ, at epoch {at_epoch}{unsettled}")
    })?;
    Ok(match found.blocks_different {
        0 => report,
        count => report.but(ExitCode::Failed, format!("{volume} differs between its sites in {count} blocks; replicate it afresh")),
    })
}
