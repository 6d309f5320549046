//! Which request does what.

use super::{
    Control, Outcome, ProgressSink,
    extract::{Document, Named, Parameters},
    reply::{Refusal, Reply, change, read},
    stream::{OnHangup, stream},
};
use axum::{
    Router,
    extract::State,
    http::{Method, StatusCode, Uri},
    response::Response,
    routing::{get, post},
};
use blockd_api::{
    ApiError, BeginDrill, ChangeGroup, CreateGroup, CreateVolume, DeleteVolume, Demote, Done, Drill, DrillList, ErrorCode, Export,
    ForecastList, GroupList, GroupStatus, HandoverList, Invite, InvitePeer, JoinPeer, Peer, PeerList, PointList, Promote, Promotion,
    Replicate, ResizeVolume, Resync, SetMode, SiteName, Status, StopReplication, TakeBack, Unexport, VolumeInfo, VolumeList, VolumeName,
    VolumeStatus, Wait, Waited,
    routes::{self, VolumeOp},
};
use serde::Deserialize;
use std::sync::Arc;

/// The whole API over a daemon.
pub fn router<C: Control>(control: Arc<C>) -> Router {
    let op = VolumeOp::pattern;
    Router::new()
        .route(routes::STATUS, get(status::<C>))
        .route(routes::VOLUMES, get(list_volumes::<C>).post(create_volume::<C>))
        .route(routes::VOLUME, get(show_volume::<C>).delete(delete_volume::<C>))
        .route(routes::FORECAST, get(forecast::<C>))
        .route(routes::HANDOVERS, get(list_handovers::<C>))
        .route(routes::POINTS, get(list_points::<C>))
        .route(routes::DRILLS, get(list_drills::<C>))
        .route(&op(VolumeOp::Drill), post(begin_drill::<C>))
        .route(&op(VolumeOp::EndDrill), post(end_drill::<C>))
        .route(&op(VolumeOp::Resize), post(resize_volume::<C>))
        .route(&op(VolumeOp::Export), post(export_volume::<C>))
        .route(&op(VolumeOp::Unexport), post(unexport_volume::<C>))
        .route(&op(VolumeOp::Replicate), post(replicate::<C>))
        .route(&op(VolumeOp::Stop), post(stop_replication::<C>))
        .route(&op(VolumeOp::Mode), post(set_mode::<C>))
        .route(&op(VolumeOp::Wait), post(wait::<C>))
        .route(&op(VolumeOp::Snapshot), post(snapshot::<C>))
        .route(&op(VolumeOp::Promote), post(promote::<C>))
        .route(&op(VolumeOp::Commit), post(commit::<C>))
        .route(&op(VolumeOp::Rollback), post(rollback::<C>))
        .route(&op(VolumeOp::Demote), post(demote::<C>))
        .route(&op(VolumeOp::Resync), post(resync::<C>))
        .route(&op(VolumeOp::Verify), post(verify::<C>))
        .route(&op(VolumeOp::Scrub), post(scrub::<C>))
        .route(routes::GROUPS, get(list_groups::<C>).post(create_group::<C>))
        .route(routes::GROUP, get(show_group::<C>).delete(delete_group::<C>))
        .route(routes::GROUP_MEMBERS, post(change_group::<C>))
        .route(routes::PEERS, get(list_peers::<C>))
        .route(routes::PEER_INVITE, post(invite_peer::<C>))
        .route(routes::PEER_JOIN, post(join_peer::<C>))
        .route(routes::PEER_REMOVE, post(remove_peer::<C>))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .with_state(control)
}

type Daemon<C> = State<Arc<C>>;
type Volume = Named<VolumeName>;
/// The body of an operation without settings.
type Nothing = Document<Done>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusQuery {
    volume: Option<VolumeName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForecastQuery {
    volume: Option<VolumeName>,
    to: Option<SiteName>,
}

async fn no_such_route(method: Method, uri: Uri) -> Refusal {
    let message = format!("no such operation: {method} {}", uri.path());
    ApiError::new(ErrorCode::NotFound, message).with_hint("the client may be newer than the daemon").into()
}

async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    let error = ApiError::new(ErrorCode::InvalidRequest, format!("{} takes no {method}", uri.path()));
    Refusal::with_status(StatusCode::METHOD_NOT_ALLOWED, error)
}

async fn status<C: Control>(State(control): Daemon<C>, Parameters(query): Parameters<StatusQuery>) -> Reply<Status> {
    read(async move { control.status(query.volume).await }).await
}

async fn forecast<C: Control>(State(control): Daemon<C>, Parameters(query): Parameters<ForecastQuery>) -> Reply<ForecastList> {
    read(async move { control.forecast(query.volume, query.to).await }).await
}

async fn list_handovers<C: Control>(State(control): Daemon<C>, Parameters(query): Parameters<StatusQuery>) -> Reply<HandoverList> {
    read(async move { control.handovers(query.volume).await }).await
}

async fn list_volumes<C: Control>(State(control): Daemon<C>) -> Reply<VolumeList> {
    read(async move { control.list_volumes().await }).await
}

async fn show_volume<C: Control>(State(control): Daemon<C>, Named(volume): Volume) -> Reply<VolumeInfo> {
    read(async move { control.show_volume(volume).await }).await
}

async fn list_points<C: Control>(State(control): Daemon<C>, Named(volume): Volume) -> Reply<PointList> {
    read(async move { control.points(volume).await }).await
}

async fn list_drills<C: Control>(State(control): Daemon<C>, Named(volume): Volume) -> Reply<DrillList> {
    read(async move { control.drills(volume).await }).await
}

async fn begin_drill<C: Control>(
    State(control): Daemon<C>,
    Named(volume): Volume,
    Document(request): Document<BeginDrill>,
) -> Reply<Drill> {
    change("drill", async move { control.begin_drill(volume, request).await }).await
}

async fn end_drill<C: Control>(State(control): Daemon<C>, Named(volume): Volume, Document(Done {}): Nothing) -> Reply<Drill> {
    change("end-drill", async move { control.end_drill(volume).await }).await
}

async fn create_volume<C: Control>(State(control): Daemon<C>, Document(request): Document<CreateVolume>) -> Response {
    stream("volume create", OnHangup::Finish, |sink| async move { control.create_volume(request, sink).await }).await
}

async fn delete_volume<C: Control>(
    State(control): Daemon<C>,
    Named(volume): Volume,
    Parameters(request): Parameters<DeleteVolume>,
) -> Reply<Done> {
    change("volume delete", async move { control.delete_volume(volume, request).await }).await
}

async fn resize_volume<C: Control>(
    State(control): Daemon<C>,
    Named(volume): Volume,
    Document(request): Document<ResizeVolume>,
) -> Reply<VolumeInfo> {
    change("volume resize", async move { control.resize_volume(volume, request).await }).await
}

async fn export_volume<C: Control>(
    State(control): Daemon<C>,
    Named(volume): Volume,
    Document(export): Document<Export>,
) -> Reply<VolumeInfo> {
    change("volume export", async move { control.export_volume(volume, export).await }).await
}

async fn unexport_volume<C: Control>(
    State(control): Daemon<C>,
    Named(volume): Volume,
    Document(request): Document<Unexport>,
) -> Reply<VolumeInfo> {
    change("volume unexport", async move { control.unexport_volume(volume, request).await }).await
}

async fn invite_peer<C: Control>(State(control): Daemon<C>, Document(request): Document<InvitePeer>) -> Reply<Invite> {
    change("peer invite", async move { control.invite_peer(request).await }).await
}

async fn join_peer<C: Control>(State(control): Daemon<C>, Document(request): Document<JoinPeer>) -> Reply<Peer> {
    change("peer join", async move { control.join_peer(request).await }).await
}

async fn list_peers<C: Control>(State(control): Daemon<C>) -> Reply<PeerList> {
    read(async move { control.list_peers().await }).await
}

async fn remove_peer<C: Control>(State(control): Daemon<C>, Named(site): Named<SiteName>, _: Nothing) -> Reply<Done> {
    change("peer remove", async move { control.remove_peer(site).await }).await
}

async fn list_groups<C: Control>(State(control): Daemon<C>) -> Reply<GroupList> {
    read(async move { control.list_groups(None).await }).await
}

async fn show_group<C: Control>(State(control): Daemon<C>, Named(group): Volume) -> Reply<GroupStatus> {
    let one = async move {
        let list = control.list_groups(Some(group.clone())).await?;
        list.groups.into_iter().next().ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("there is no group {group} here")))
    };
    read(one).await
}

async fn create_group<C: Control>(State(control): Daemon<C>, Document(request): Document<CreateGroup>) -> Reply<GroupStatus> {
    change("group create", async move { control.create_group(request).await }).await
}

async fn delete_group<C: Control>(State(control): Daemon<C>, Named(group): Volume) -> Reply<Done> {
    change("group delete", async move { control.delete_group(group).await }).await
}

async fn change_group<C: Control>(
    State(control): Daemon<C>,
    Named(group): Volume,
    Document(request): Document<ChangeGroup>,
) -> Reply<GroupStatus> {
    change("group", async move { control.change_group(group, request).await }).await
}

async fn replicate<C: Control>(
    State(control): Daemon<C>,
    Named(volume): Volume,
    Document(request): Document<Replicate>,
) -> Reply<VolumeStatus> {
    change("replicate", async move { control.replicate(volume, request).await }).await
}

async fn stop_replication<C: Control>(
    State(control): Daemon<C>,
    Named(volume): Volume,
    Document(request): Document<StopReplication>,
) -> Reply<VolumeStatus> {
    change("replicate stop", async move { control.stop_replication(volume, request).await }).await
}

async fn set_mode<C: Control>(
    State(control): Daemon<C>,
    Named(volume): Volume,
    Document(request): Document<SetMode>,
) -> Reply<VolumeStatus> {
    change("mode", async move { control.set_mode(volume, request).await }).await
}

async fn wait<C: Control>(State(control): Daemon<C>, Named(volume): Volume, Document(request): Document<Wait>) -> Response {
    stream("wait", OnHangup::Cancel, |sink| async move { wait_in_time(&*control, volume, request, sink).await }).await
}

async fn wait_in_time<C: Control>(control: &C, volume: VolumeName, request: Wait, sink: ProgressSink) -> Outcome<Waited> {
    let waiting = control.wait(volume.clone(), request.condition, sink);
    let Some(timeout) = request.timeout else {
        return waiting.await;
    };
    if let Ok(outcome) = tokio::time::timeout(timeout.duration(), waiting).await {
        return outcome;
    }
    let status = control.status(Some(volume.clone())).await?;
    let of_group = status.groups.iter().find(|group| group.name == volume);
    let in_the_way = |group: &GroupStatus| format!(": it is {}: {}", group.state, group.reason.as_deref().unwrap_or("its members are"));
    let now = of_group.map(in_the_way).or_else(|| status.volumes.first().map(of_volume));
    let message = format!("{volume} did not reach {} within {timeout}{}", request.condition, now.unwrap_or_default());
    Err(ApiError::new(ErrorCode::Timeout, message).with_hint("look at `tern status`, or wait longer with --timeout"))
}

/// How far a volume has come.
fn of_volume(now: &VolumeStatus) -> String {
    let backlog = blockd_api::human_bytes(now.backlog_bytes);
    format!(": it is {} and {}, with {backlog} to send and epoch {} committed", now.role, now.state, now.epoch_committed)
}

async fn snapshot<C: Control>(State(control): Daemon<C>, Named(volume): Volume, _: Nothing) -> Response {
    stream("snapshot", OnHangup::Finish, |sink| async move { control.snapshot(volume, sink).await }).await
}

async fn promote<C: Control>(State(control): Daemon<C>, Named(volume): Volume, Document(request): Document<Promote>) -> Response {
    stream("promote", OnHangup::Finish, |sink| async move { control.promote(volume, request, sink).await }).await
}

async fn commit<C: Control>(State(control): Daemon<C>, Named(volume): Volume, _: Nothing) -> Reply<Promotion> {
    change("commit", async move { control.commit(volume).await }).await
}

async fn rollback<C: Control>(State(control): Daemon<C>, Named(volume): Volume, Document(request): Document<TakeBack>) -> Response {
    stream("rollback", OnHangup::Finish, |sink| async move { control.rollback(volume, request, sink).await }).await
}

async fn demote<C: Control>(State(control): Daemon<C>, Named(volume): Volume, Document(request): Document<Demote>) -> Response {
    stream("demote", OnHangup::Finish, |sink| async move { control.demote(volume, request, sink).await }).await
}

async fn resync<C: Control>(State(control): Daemon<C>, Named(volume): Volume, Document(request): Document<Resync>) -> Response {
    stream("resync", OnHangup::Finish, |sink| async move { control.resync(volume, request, sink).await }).await
}

async fn verify<C: Control>(State(control): Daemon<C>, Named(volume): Volume, _: Nothing) -> Response {
    stream("verify", OnHangup::Cancel, |sink| async move { control.verify(volume, sink).await }).await
}

async fn scrub<C: Control>(State(control): Daemon<C>, Named(volume): Volume, _: Nothing) -> Response {
    stream("scrub", OnHangup::Cancel, |sink| async move { control.scrub(volume, sink).await }).await
}
