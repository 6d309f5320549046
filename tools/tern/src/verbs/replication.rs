//! `tern replicate`, `mode`, `wait`, `snapshot`

use super::{Context, group, quiesce};
use crate::{
    cli::{ModeArgs, ReplicateArgs, SnapshotArgs, WaitArgs},
    report::Report,
};
use blockd_api::{
    ApiError, Done, ErrorCode, Mode, Replicate, SetMode, SiteName, Snapshot, State, StopReplication, VolumeStatus, Wait, Waited,
    human_seconds, routes::VolumeOp,
};

/// `tern replicate NAME --to SITE`, `--stop`.
pub async fn replicate(context: &Context<'_>, arguments: ReplicateArgs) -> Result<Report, ApiError> {
    let ReplicateArgs { volume, to, mode, rpo, bandwidth, on_disconnect, ack_timeout, schedule, stop, .. } = arguments;
    let ReplicateArgs { fence, lease, witness, auto_promote, force, .. } = arguments;
    if stop {
        let document = context.client.post(&VolumeOp::Stop.path(&volume), &StopReplication { to, force }).await?;
        return Report::of(document, context.format, |now: VolumeStatus| match now.replicas.len() {
            0 => format!("{}: replication ended, it is {}", now.name, now.role),
            left => format!("{}: replication to that site ended; standbys left: {left}", now.name),
        });
    }
    let to = to.ok_or_else(|| ApiError::new(ErrorCode::InvalidRequest, "--to SITE is missing"))?;
    let request = Replicate { to, mode, rpo, bandwidth, on_disconnect, ack_timeout, schedule, fence, lease, witness, auto_promote, force };
    let document = context.client.post(&VolumeOp::Replicate.path(&volume), &request).await?;
    Report::of(document, context.format, |now: VolumeStatus| {
        let (mode, state) = of(&now, Some(&request.to));
        format!("{}: replicates to {} ({mode}), {state}", now.name, request.to)
    })
}

/// `tern mode NAME MODE`.
pub async fn mode(context: &Context<'_>, arguments: ModeArgs) -> Result<Report, ApiError> {
    let ModeArgs { volume, mode, schedule, to } = arguments;
    let document = context.client.post(&VolumeOp::Mode.path(&volume), &SetMode { mode, schedule, to: to.clone() }).await?;
    Report::of(document, context.format, |now: VolumeStatus| {
        let (mode, state) = of(&now, to.as_ref());
        format!("{}: {mode}, {state}", now.name)
    })
}

/// How replication to this site goes; without one, or if it is not there yet, as the volume's own status says.
fn of(now: &VolumeStatus, site: Option<&SiteName>) -> (Mode, State) {
    let replica = site.and_then(|site| now.replicas.iter().find(|replica| replica.site == *site));
    replica.map_or((now.mode, now.state), |replica| (replica.mode, replica.state))
}

/// `tern wait NAME --for CONDITION`.
pub async fn wait(context: &Context<'_>, arguments: WaitArgs) -> Result<Report, ApiError> {
    let WaitArgs { volume, condition, timeout } = arguments;
    let request = Wait { condition, timeout: Some(timeout) };
    let document = context.client.follow(&VolumeOp::Wait.path(&volume), &request, |progress| context.progress.tell(&progress)).await?;
    Report::of(document, context.format, |now: Waited| match now {
        Waited::Volume(now) => format!("{}: {}, {}, epoch {} committed", now.name, now.role, now.state, now.epoch_committed),
        Waited::Group(now) => {
            let point = now.point.map_or_else(|| "no recovery point yet".to_owned(), |point| format!("recovery point {point}"));
            format!("{}: {}, {}, {point}", now.name, group::role(&now), now.state)
        }
    })
}

/// `tern snapshot NAME`, `--quiesce SOCKET`.
pub async fn snapshot(context: &Context<'_>, arguments: SnapshotArgs) -> Result<Report, ApiError> {
    let SnapshotArgs { volume, quiesce } = arguments;
    let document = match quiesce {
        Some(agent) => quiesce::snapshot(context, &volume, &agent).await?,
        None => context.client.follow(&VolumeOp::Snapshot.path(&volume), &Done {}, |progress| context.progress.tell(&progress)).await?,
    };
    Report::of(document, context.format, |point: Snapshot| {
        format!("{volume}: recovery point {} is durable at the standby after {}", point.epoch, human_seconds(point.seconds))
    })
}
