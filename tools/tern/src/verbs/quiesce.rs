//! `tern snapshot --quiesce`: the guest's file systems stand still while the cut is made, and only then.
//!
//! ```text
//!   freeze ──► snapshot ──► the daemon says "cut" ──► thaw ──► the recovery point is durable
//! ```

use super::Context;
use crate::guest_agent::GuestAgent;
use blockd_api::{ApiError, Done, ErrorCode, Progress, VolumeName, routes::VolumeOp};
use serde_json::Value;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::mpsc;

/// For how long the guest may stand still.
const FROZEN_LIMIT: Duration = Duration::from_secs(10);

/// Makes a recovery point of file systems that stand still.
pub async fn snapshot(context: &Context<'_>, volume: &VolumeName, agent: &Path) -> Result<Value, ApiError> {
    let (cut, mut cuts) = mpsc::unbounded_channel();
    let tell = |progress: Progress| {
        if progress.phase == "cut" {
            let _ = cut.send(progress.done);
        }
        context.progress.tell(&progress);
    };
    let (path, frozen) = (VolumeOp::Snapshot.path(volume), GuestAgent::connect(agent)?.freeze()?);
    let mut made = pin!(context.client.follow(&path, &Done {}, tell));
    let first = tokio::select! {
        made = &mut made => return frozen.thaw().and(made),
        first = cuts.recv() => first,
        () = tokio::time::sleep(FROZEN_LIMIT) => {
            frozen.thaw()?;
            let error = ApiError::new(ErrorCode::Timeout, format!("{volume}: no cut within {} s; the guest goes on", FROZEN_LIMIT.as_secs()));
            return Err(error.with_hint("too much is not at the standby yet: `tern wait --for in-sync`, then again"));
        }
    };
    frozen.thaw()?;
    let document = made.await?;
    while let Ok(later) = cuts.try_recv() {
        if Some(later) != first {
            let error = ApiError::new(ErrorCode::Io, format!("{volume}: the cut was given up and taken anew after the guest went on"));
            return Err(error.with_hint("`tern status` and the daemon's log say why; then again"));
        }
    }
    Ok(document)
}
