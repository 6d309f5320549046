//! What the daemon does for the admin API: one method for each operation.
//!
//! The server has checked the shape of a request, not its sense: whether a name exists, a size fits or a role allows it is for the
//! implementation to say, with an [`ApiError`] whose message is one line and whose hint is the cure. Implementations write `async fn`.

use super::progress::ProgressSink;
use blockd_api::{
    ApiError, BeginDrill, ChangeGroup, Condition, CreateGroup, CreateVolume, DeleteVolume, Demote, Done, Drill, DrillList, Export,
    ForecastList, GroupList, GroupStatus, HandoverList, Invite, InvitePeer, JoinPeer, Peer, PeerList, PointList, Promote, Promotion,
    Replicate, ResizeVolume, Resync, Resynced, ScrubStatus, SetMode, SiteName, Snapshot, Status, StopReplication, TakeBack, Unexport,
    Verification, VolumeInfo, VolumeList, VolumeName, VolumeStatus, Waited,
};

/// What an operation comes to.
pub type Outcome<T> = Result<T, ApiError>;

/// The operations. Those that change something run to their end even if the client hangs up; `status`, the lists, `wait`, `scrub`
/// and `verify` are dropped then, so each of their awaits must be a place where stopping is safe.
pub trait Control: Send + Sync + 'static {
    /// The state of one volume, or of all. Cheap: dashboards and metrics ask every few seconds.
    fn status(&self, volume: Option<VolumeName>) -> impl Future<Output = Outcome<Status>> + Send;

    /// How long it would take to hand volumes over now.
    fn forecast(&self, volume: Option<VolumeName>, to: Option<SiteName>) -> impl Future<Output = Outcome<ForecastList>> + Send;
    /// How long it took.
    fn handovers(&self, volume: Option<VolumeName>) -> impl Future<Output = Outcome<HandoverList>> + Send;

    /// Makes a volume, and imports its first content.
    fn create_volume(&self, request: CreateVolume, progress: ProgressSink) -> impl Future<Output = Outcome<VolumeInfo>> + Send;
    /// All volumes.
    fn list_volumes(&self) -> impl Future<Output = Outcome<VolumeList>> + Send;
    /// One volume.
    fn show_volume(&self, volume: VolumeName) -> impl Future<Output = Outcome<VolumeInfo>> + Send;
    /// Deletes a volume; refuses without `yes`.
    fn delete_volume(&self, volume: VolumeName, request: DeleteVolume) -> impl Future<Output = Outcome<Done>> + Send;
    /// Changes a volume's size.
    fn resize_volume(&self, volume: VolumeName, request: ResizeVolume) -> impl Future<Output = Outcome<VolumeInfo>> + Send;
    /// Serves a volume at an address from now on, restarts included. Asking again for the same is no error.
    fn export_volume(&self, volume: VolumeName, export: Export) -> impl Future<Output = Outcome<VolumeInfo>> + Send;
    /// Ends one or all of a volume's exports.
    fn unexport_volume(&self, volume: VolumeName, request: Unexport) -> impl Future<Output = Outcome<VolumeInfo>> + Send;

    /// Makes a one-time token.
    fn invite_peer(&self, request: InvitePeer) -> impl Future<Output = Outcome<Invite>> + Send;
    /// Uses a token.
    fn join_peer(&self, request: JoinPeer) -> impl Future<Output = Outcome<Peer>> + Send;
    /// All peers.
    fn list_peers(&self) -> impl Future<Output = Outcome<PeerList>> + Send;
    /// Forgets a peer.
    fn remove_peer(&self, site: SiteName) -> impl Future<Output = Outcome<Done>> + Send;

    /// Makes a consistency group.
    fn create_group(&self, request: CreateGroup) -> impl Future<Output = Outcome<GroupStatus>> + Send;
    /// Changes its members.
    fn change_group(&self, group: VolumeName, request: ChangeGroup) -> impl Future<Output = Outcome<GroupStatus>> + Send;
    /// Its members are replicated by themselves again.
    fn delete_group(&self, group: VolumeName) -> impl Future<Output = Outcome<Done>> + Send;
    /// All groups, or one.
    fn list_groups(&self, group: Option<VolumeName>) -> impl Future<Output = Outcome<GroupList>> + Send;

    /// Begins replication or replaces its settings.
    fn replicate(&self, volume: VolumeName, request: Replicate) -> impl Future<Output = Outcome<VolumeStatus>> + Send;
    /// Ends replication.
    fn stop_replication(&self, volume: VolumeName, request: StopReplication) -> impl Future<Output = Outcome<VolumeStatus>> + Send;
    /// Changes the mode.
    fn set_mode(&self, volume: VolumeName, request: SetMode) -> impl Future<Output = Outcome<VolumeStatus>> + Send;
    /// Returns as soon as the condition holds, or can never hold. The server keeps the time.
    fn wait(&self, volume: VolumeName, condition: Condition, progress: ProgressSink) -> impl Future<Output = Outcome<Waited>> + Send;
    /// Cuts now; returns when the recovery point is durable at the standby.
    fn snapshot(&self, volume: VolumeName, progress: ProgressSink) -> impl Future<Output = Outcome<Snapshot>> + Send;

    /// The recovery points of a standby.
    fn points(&self, volume: VolumeName) -> impl Future<Output = Outcome<PointList>> + Send;
    /// Serves a copy of a recovery point that can be written to.
    fn begin_drill(&self, volume: VolumeName, request: BeginDrill) -> impl Future<Output = Outcome<Drill>> + Send;
    /// Ends that, and forgets the copy.
    fn end_drill(&self, volume: VolumeName) -> impl Future<Output = Outcome<Drill>> + Send;
    /// The drills that are remembered.
    fn drills(&self, volume: VolumeName) -> impl Future<Output = Outcome<DrillList>> + Send;
    /// Makes this site the primary.
    fn promote(&self, volume: VolumeName, request: Promote, progress: ProgressSink) -> impl Future<Output = Outcome<Promotion>> + Send;
    /// Makes a promotion on trial final.
    fn commit(&self, volume: VolumeName) -> impl Future<Output = Outcome<Promotion>> + Send;
    /// Takes a promotion on trial back.
    fn rollback(&self, volume: VolumeName, request: TakeBack, progress: ProgressSink)
    -> impl Future<Output = Outcome<VolumeStatus>> + Send;
    /// Hands the volume to its standby.
    fn demote(&self, volume: VolumeName, request: Demote, progress: ProgressSink) -> impl Future<Output = Outcome<VolumeStatus>> + Send;
    /// Lets an old primary follow the new one.
    fn resync(&self, volume: VolumeName, request: Resync, progress: ProgressSink) -> impl Future<Output = Outcome<Resynced>> + Send;
    /// Looks through a standby's image now.
    fn scrub(&self, volume: VolumeName, progress: ProgressSink) -> impl Future<Output = Outcome<ScrubStatus>> + Send;
    /// Compares both sites.
    fn verify(&self, volume: VolumeName, progress: ProgressSink) -> impl Future<Output = Outcome<Verification>> + Send;
}
