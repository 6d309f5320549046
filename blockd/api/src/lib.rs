//! The documents, routes and units of blockd's admin API: what the daemon and its clients agree on.
//!
//! Field names, enum words and exit codes are an interface that scripts rely on: add to them freely, change none. A client that meets a
//! word it does not know must not fail where it can pass the document through. This crate moves no bytes: the server is
//! `blockd::admin`, the client `tern`.

mod bandwidth;
mod divergence;
mod drill;
mod error;
mod event;
mod export;
mod forecast;
mod group;
mod name;
mod peer;
mod proof;
mod quantity;
mod recovery;
mod replication;
pub mod routes;
mod status;
mod time;
mod volume;
mod wait;

pub use bandwidth::{Bandwidth, BandwidthError, Calendar, CalendarError, InForce};
pub use divergence::{Alone, Divergence};
pub use drill::{BeginDrill, Drill, DrillList, DrillState};
pub use error::{ApiError, ErrorCode, ErrorDocument, ExitCode};
pub use event::{Event, HEARTBEAT, MAX_EVENT_BYTES, Progress, Unit};
pub use export::{Export, ExportAccess, MAX_SOCKET_PATH_BYTES, NbdAddress, ParseExportError, SocketPath};
pub use forecast::{Confidence, Forecast, ForecastList, Handover, HandoverList};
pub use group::{ChangeGroup, CreateGroup, GroupList, GroupStatus};
pub use name::{MAX_NAME_BYTES, NameError, SiteName, VolumeName};
pub use peer::{Invite, InvitePeer, JoinPeer, Peer, PeerList};
pub use proof::{LastVerify, ScrubStatus};
pub use quantity::{QuantityError, Rate, Size, Span, human_bytes, human_rate, human_seconds};
pub use recovery::{Demote, Point, PointList, Promote, Promotion, PromotionKind, Resync, Resynced, TakeBack, Verification};
pub use replication::{Replicate, SetMode, Snapshot, StopReplication};
pub use status::{
    Fence, FrontEnd, GoingBack, LeaseStatus, Mode, OnDisconnect, ReplicaStatus, Role, State, Status, TrialStatus, Usage, VolumeStatus,
};
pub use time::UtcTime;
pub use volume::{CreateVolume, DeleteVolume, ResizeVolume, Unexport, VolumeInfo, VolumeList};
pub use wait::{Condition, Wait, Waited};

use serde::{Deserialize, Serialize};

/// Where the daemon serves its admin API and clients look for it, unless told otherwise.
pub const DEFAULT_ADMIN_PATH: &str = "/run/tern/blockd.sock";

/// Largest request body in bytes that the daemon reads; a bigger one is refused unread.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;

/// The answer of an operation that has nothing to tell but that it is done: `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}
