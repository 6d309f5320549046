//! Where each operation lives. The server registers the patterns; the client fills them in.
//!
//! Names need no escaping: see [`VolumeName`]. Operations marked *stream* answer with [`crate::Event`]s.

use crate::{SiteName, VolumeName};

/// GET → [`crate::Status`]; `?volume=NAME` for one volume.
pub const STATUS: &str = "/v1/status";
/// GET → [`crate::VolumeList`]; POST [`crate::CreateVolume`] → stream of [`crate::VolumeInfo`].
pub const VOLUMES: &str = "/v1/volumes";
/// GET → [`crate::VolumeInfo`]; DELETE, `?yes=true` to accept the loss → [`crate::Done`].
pub const VOLUME: &str = "/v1/volumes/{volume}";
/// POST of an operation on a volume, see [`VolumeOp`].
pub const VOLUME_OP: &str = "/v1/volumes/{volume}/{op}";
/// GET → [`crate::PointList`].
pub const POINTS: &str = "/v1/volumes/{volume}/points";
/// GET → [`crate::DrillList`].
pub const DRILLS: &str = "/v1/volumes/{volume}/drills";
/// GET → [`crate::ForecastList`]; `?volume=NAME` for one volume or group, `&to=SITE` for one standby.
pub const FORECAST: &str = "/v1/forecast";
/// GET → [`crate::HandoverList`]; `?volume=NAME` for one volume or group.
pub const HANDOVERS: &str = "/v1/handovers";
/// GET → [`crate::GroupList`]; POST [`crate::CreateGroup`] → [`crate::GroupStatus`].
pub const GROUPS: &str = "/v1/groups";
/// GET → [`crate::GroupStatus`]; DELETE → [`crate::Done`].
pub const GROUP: &str = "/v1/groups/{group}";
/// POST [`crate::ChangeGroup`] → [`crate::GroupStatus`].
pub const GROUP_MEMBERS: &str = "/v1/groups/{group}/members";
/// GET → [`crate::PeerList`].
pub const PEERS: &str = "/v1/peers";
/// POST [`crate::InvitePeer`] → [`crate::Invite`].
pub const PEER_INVITE: &str = "/v1/peers/invite";
/// POST [`crate::JoinPeer`] → [`crate::Peer`].
pub const PEER_JOIN: &str = "/v1/peers/join";
/// POST → [`crate::Done`]: forgets a peer.
pub const PEER_REMOVE: &str = "/v1/peers/{site}/remove";

/// Operations on one volume. `snapshot`, `promote`, `points`, `drill` and `drills` take a group's name, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeOp {
    /// [`crate::ResizeVolume`] → [`crate::VolumeInfo`].
    Resize,
    /// [`crate::Export`] → [`crate::VolumeInfo`].
    Export,
    /// [`crate::Unexport`] → [`crate::VolumeInfo`].
    Unexport,
    /// [`crate::Replicate`] → [`crate::VolumeStatus`].
    Replicate,
    /// [`crate::StopReplication`] → [`crate::VolumeStatus`].
    Stop,
    /// [`crate::SetMode`] → [`crate::VolumeStatus`].
    Mode,
    /// [`crate::Wait`] → stream of [`crate::VolumeStatus`].
    Wait,
    /// `{}` → stream of [`crate::Snapshot`].
    Snapshot,
    /// [`crate::Promote`] → stream of [`crate::Promotion`].
    Promote,
    /// `{}` → [`crate::Promotion`]: a promotion on trial is final.
    Commit,
    /// [`crate::TakeBack`] → stream of [`crate::VolumeStatus`]: it is taken back.
    Rollback,
    /// [`crate::Demote`] → stream of [`crate::VolumeStatus`].
    Demote,
    /// [`crate::Resync`] → stream of [`crate::Resynced`].
    Resync,
    /// `{}` → stream of [`crate::Verification`].
    Verify,
    /// `{}` → stream of [`crate::ScrubStatus`].
    Scrub,
    /// [`crate::BeginDrill`] → [`crate::Drill`].
    Drill,
    /// `{}` → [`crate::Drill`].
    EndDrill,
}

impl VolumeOp {
    /// Every operation.
    pub const ALL: [Self; 17] = [
        Self::Resize,
        Self::Export,
        Self::Unexport,
        Self::Replicate,
        Self::Stop,
        Self::Mode,
        Self::Wait,
        Self::Snapshot,
        Self::Promote,
        Self::Commit,
        Self::Rollback,
        Self::Demote,
        Self::Resync,
        Self::Verify,
        Self::Scrub,
        Self::Drill,
        Self::EndDrill,
    ];

    /// The last segment of its path.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resize => "resize",
            Self::Export => "export",
            Self::Unexport => "unexport",
            Self::Replicate => "replicate",
            Self::Stop => "stop",
            Self::Mode => "mode",
            Self::Wait => "wait",
            Self::Snapshot => "snapshot",
            Self::Promote => "promote",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::Demote => "demote",
            Self::Resync => "resync",
            Self::Verify => "verify",
            Self::Scrub => "scrub",
            Self::Drill => "drill",
            Self::EndDrill => "end-drill",
        }
    }

    /// The operation's path pattern: `/v1/volumes/{volume}/OP`.
    pub fn pattern(self) -> String {
        VOLUME_OP.replace("{op}", self.as_str())
    }

    /// The operation's path for a volume.
    pub fn path(self, name: &VolumeName) -> String {
        format!("{VOLUMES}/{name}/{}", self.as_str())
    }
}

/// The path of a volume.
pub fn volume(name: &VolumeName) -> String {
    format!("{VOLUMES}/{name}")
}

/// The path of a group.
pub fn group(name: &VolumeName) -> String {
    format!("{GROUPS}/{name}")
}

/// The path of a group's members.
pub fn group_members(name: &VolumeName) -> String {
    format!("{GROUPS}/{name}/members")
}

/// The path of a volume's recovery points.
pub fn points(name: &VolumeName) -> String {
    format!("{VOLUMES}/{name}/points")
}

/// The path of a volume's drills.
pub fn drills(name: &VolumeName) -> String {
    format!("{VOLUMES}/{name}/drills")
}

/// The path that deletes a volume.
pub fn delete_volume(name: &VolumeName, request: &crate::DeleteVolume) -> String {
    format!("{VOLUMES}/{name}?yes={}", request.yes)
}

/// The path of the status of one volume, or of all.
pub fn status(name: Option<&VolumeName>) -> String {
    name.map_or_else(|| STATUS.to_owned(), |name| format!("{STATUS}?volume={name}"))
}

/// The path of forecasts: of one volume or all, to one standby or all.
pub fn forecast(name: Option<&VolumeName>, to: Option<&SiteName>) -> String {
    let volume = name.map(|name| format!("volume={name}"));
    let query = volume.into_iter().chain(to.map(|to| format!("to={to}"))).collect::<Vec<_>>().join("&");
    if query.is_empty() { FORECAST.to_owned() } else { format!("{FORECAST}?{query}") }
}

/// The path of the handovers of one volume, or of all.
pub fn handovers(name: Option<&VolumeName>) -> String {
    name.map_or_else(|| HANDOVERS.to_owned(), |name| format!("{HANDOVERS}?volume={name}"))
}

/// The path that forgets a peer.
pub fn remove_peer(site: &SiteName) -> String {
    format!("{PEERS}/{site}/remove")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_fit_their_patterns() {
        let name = "vm-1.a".parse().unwrap();
        for op in VolumeOp::ALL {
            assert_eq!(op.pattern().replace("{volume}", "vm-1.a"), op.path(&name));
        }
        assert_eq!(VOLUME.replace("{volume}", "vm-1.a"), volume(&name));
        assert_eq!(POINTS.replace("{volume}", "vm-1.a"), points(&name));
        assert_eq!(DRILLS.replace("{volume}", "vm-1.a"), drills(&name));
        assert_eq!(PEER_REMOVE.replace("{site}", "osaka"), remove_peer(&"osaka".parse().unwrap()));
    }
}
