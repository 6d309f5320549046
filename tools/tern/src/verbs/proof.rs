//! `tern scrub`

use super::Context;
use crate::{client::decode, report::Report};
use blockd_api::{ApiError, Done, ExitCode, LastVerify, ScrubStatus, VolumeName, routes::VolumeOp};

/// `tern scrub NAME`: damage is a failure, told with the result.
pub async fn scrub(context: &Context<'_>, volume: VolumeName) -> Result<Report, ApiError> {
    let path = VolumeOp::Scrub.path(&volume);
    let document = context.client.follow(&path, &Done {}, |progress| context.progress.tell(&progress)).await?;
    let found: ScrubStatus = decode(document.clone())?;
    let report = Report::of(document, context.format, |found: ScrubStatus| format!("{volume}: {}", said(&found)))?;
    Ok(match found.damaged_blocks {
        0 => report,
        count => report.but(ExitCode::Failed, format!("{volume}: the disk has lost {count} blocks; the primary sends them again")),
    })
}

/// How an image fares, in words.
pub fn said(scrub: &ScrubStatus) -> String {
    let when = scrub.last.map_or_else(|| "never looked through".to_owned(), |time| format!("looked through at {time}"));
    let percent = scrub.done_bytes.saturating_mul(100) / scrub.total_bytes.max(1);
    let running = if scrub.running { format!(", and now again: {percent} %") } else { String::new() };
    let ScrubStatus { damaged_blocks, found_blocks, repaired_blocks, unknown_blocks, .. } = scrub;
    let unknown = match unknown_blocks {
        0 => String::new(),
        count => format!("; {count} blocks cannot be checked before `tern verify` at the primary"),
    };
    let error = scrub.error.as_ref().map_or_else(String::new, |why| format!("; not checked: {why}"));
    format!("{when}{running}: {damaged_blocks} blocks damaged, {found_blocks} found ever, {repaired_blocks} repaired{unknown}{error}")
}

/// What the last comparison found, in words.
pub fn verified(last: &LastVerify) -> String {
    let LastVerify { time, blocks_compared, blocks_unsettled, blocks_different, at_epoch, error } = last;
    match error {
        Some(why) => format!("the verify at {time} could not be done: {why}"),
        None => {
            let unsettled = unsettled(*blocks_unsettled);
            format!("verified at {time}: {blocks_compared} blocks compared, {blocks_different} differ, at epoch {at_epoch}{unsettled}")
        }
    }
}

/// Of blocks that a comparison left out.
pub fn unsettled(blocks: u64) -> String {
    if blocks == 0 { String::new() } else { format!("; {blocks} blocks that are written all the time were not compared") }
}
